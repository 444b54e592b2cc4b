"""What the tracer does with torch's functions that need no shape rule, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch

#: A rule takes the recorder, the operation's name, then the arguments of its function; it lists
#: what the operation costs and returns tensors without data. It raises :class:`NoRule` (or fails)
#: where it does not know, and must not list anything before it does.
Rule = Callable[..., Any]


class Entry(NamedTuple):
    """How to treat one function.

    Attributes
    ----------
    treatment
        ``rule`` (shapes by ``rule``), ``view`` (free: torch's own view of a tensor without data),
        ``plain`` (attribute reads, answered as they are), ``assign`` (attribute writes, taken back
        after the trace), ``read`` (needs values), ``factory`` (makes a tensor from nothing),
        ``device`` (says where a tensor lives), ``ignore`` (orders work and does none),
        ``autograd`` (differentiates), ``control`` (runs the functions it is given), ``unknown``.
    op
        The name a layer gets.
    rule
        Only for ``rule``; for ``control``, what the function means in Python.
    """

    treatment: str
    op: str
    rule: Rule | None = None


#: Views move no data, so they are free and not listed. Torch's own view kernels answer for tensors
#: without data in a microsecond or two and get every stride right.
_VIEWS: Final = (
    "view", "permute", "transpose", "transpose_", "t", "t_", "adjoint", "swapaxes", "swapdims",
    "swapaxes_", "swapdims_", "movedim", "moveaxis", "squeeze", "squeeze_", "unsqueeze",
    "unsqueeze_", "expand", "expand_as", "narrow", "select", "chunk", "unsafe_chunk", "split",
    "split_with_sizes", "unsafe_split", "tensor_split", "hsplit", "vsplit", "dsplit", "unbind",
    "diagonal", "detach", "detach_", "view_as", "view_as_real", "view_as_complex", "real", "imag",
    "as_strided", "as_strided_", "broadcast_to", "broadcast_tensors", "unflatten", "atleast_1d",
    "atleast_2d", "atleast_3d", "meshgrid", "set_", "__iter__", "resolve_conj", "resolve_neg",
    "conj", "unsafe_split_with_sizes", "_unpack_dual", "_efficientzerotensor",
    # It slides a window as a view; torch.nn.functional.unfold copies, and has a rule.
    torch.Tensor.unfold,
)  # fmt: skip

#: A tensor's description is free.
_DESCRIPTIONS: Final = (
    "size", "dim", "numel", "nelement", "stride", "is_contiguous", "is_floating_point",
    "is_complex", "element_size", "storage_offset", "ndimension", "__len__", "is_same_size",
    "has_names", "is_set_to", "result_type", "can_cast", "is_tensor",
    "is_inference", "is_conj", "is_neg", "promote_types", "is_pinned", "is_shared",
    "_is_view", "is_signed", "register_hook", "retain_grad", "__hash__", "__repr__", "dim_order",
    "untyped_storage", "storage", "data_ptr", "__dir__", "broadcast_shapes",
)  # fmt: skip

#: These need values: they stop the function route unless the tensor is real.
_READS: Final = (
    "item", "tolist", "numpy", "__array__", "__bool__", "__float__", "__int__", "__index__",
    "__complex__", "__contains__", "equal", "allclose", "is_nonzero", "__format__", "__dlpack__",
)  # fmt: skip

#: With these, values go where no operation is seen.
LEAVES_TORCH: Final = frozenset(
    ("item", "tolist", "numpy", "__array__", "__float__", "__complex__", "__dlpack__")
)

#: These compute a tensor, too, of a shape that depends on values.
DYNAMIC: Final = frozenset(
    ("nonzero", "nonzero_static", "argwhere", "masked_select", "unique", "_unique2",
     "unique_consecutive", "unique_dim", "bincount", "combinations", "histogram")
)  # fmt: skip

#: Factories by size, or like another tensor.
_SIZED: Final = (
    "zeros", "ones", "full", "empty", "rand", "randn", "randint", "empty_strided", "zeros_like",
    "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like", "new_zeros",
    "new_ones", "new_full", "new_empty", "new_empty_strided", "empty_permuted",
)  # fmt: skip
_OF_ONE_LENGTH: Final = (
    "randperm", "hann_window", "hamming_window", "blackman_window", "kaiser_window",
    "bartlett_window",
)  # fmt: skip
_RANGES: Final = (
    "arange",
    "range",
    "linspace",
    "logspace",
    "eye",
    "tril_indices",
    "triu_indices",
    *_OF_ONE_LENGTH,
)
#: Factories around data that is there already.
WRAPPERS: Final = ("tensor", "as_tensor", "asarray", "from_numpy", "scalar_tensor", "new_tensor")

#: Factories that allocate without writing, or wrap data.
FREE: Final = frozenset(
    (*WRAPPERS, "empty", "empty_like", "empty_strided", "empty_permuted", "new_empty",
     "new_empty_strided")
)  # fmt: skip

#: Treatments of functions: by name, or of one function alone.
FUNCTIONS: Final[dict[Any, str]] = {
    **dict.fromkeys(_VIEWS, "view"),
    **dict.fromkeys(_DESCRIPTIONS, "plain"),
    **dict.fromkeys((*_READS, *DYNAMIC), "read"),
    **dict.fromkeys((*_SIZED, *_RANGES, *WRAPPERS), "factory"),
    "requires_grad_": "assign",
    "get_device": "device",
    "record_stream": "ignore",
    # Only the dispatcher sees what autograd runs inside forward.
    torch.Tensor.backward: "autograd",
    torch.autograd.grad: "autograd",
    torch.autograd.backward: "autograd",
    "_make_dual": "autograd",
}

#: Treatments of ``Tensor``'s properties: by the descriptor's method and the property's name.
PROPERTIES: Final[dict[str, dict[str, str]]] = {
    "__get__": {
        **dict.fromkeys(("T", "mT", "H", "mH", "real", "imag", "data"), "view"),
        **dict.fromkeys(
            ("shape", "dtype", "ndim", "layout", "requires_grad", "grad", "grad_fn", "is_leaf",
             "names", "is_sparse", "is_quantized", "is_nested", "is_mkldnn", "itemsize", "nbytes",
             "_base", "_version", "_backward_hooks", "output_nr", "is_sparse_csr", "retains_grad"),
            "plain",
        ),
        # Answered as if the tensor were where the example inputs are.
        **dict.fromkeys(("device", "is_cuda", "is_cpu", "is_meta", "is_xpu", "is_mps"), "device"),
    },
    "__set__": dict.fromkeys(("requires_grad", "grad", "data"), "assign"),
}  # fmt: skip


# -- Tensors made from nothing: they stay real while small, so that masks and indices have values.

#: Integer and boolean tensors up to this many elements keep their values: masks, positions.
REAL_ELEMENTS: Final = 1_000_000
#: Floating ones keep theirs up to this many. Code rarely reads them, and computing with more
#: would take longer than all the rest of a trace.
REAL_FLOATS: Final = 65_536


def is_large(op: str, args: Any, kwargs: Any) -> bool:
    """Whether a factory's result is too large to be worth its values."""
    if op in _RANGES:
        return _length(op, args, kwargs) > REAL_ELEMENTS
    if op not in _SIZED:
        return False
    like = args[0] if args and isinstance(args[0], torch.Tensor) else None
    if op.endswith("_like"):
        count = like.numel() if like is not None else 0
    else:
        given = args if like is None else args[1:]
        size = kwargs.get("size")
        for one in given:
            if size is None and isinstance(one, (tuple, list)):
                size = one
        sizes = given if size is None else size
        count = math.prod(one for one in sizes if isinstance(one, int))
    dtype = kwargs.get("dtype") or (like.dtype if like is not None else torch.get_default_dtype())
    if op.startswith("randint") or (op == "full" and "dtype" not in kwargs):
        dtype = torch.int64
    # Python's own types stand for dtypes, too.
    floating = dtype is float or (isinstance(dtype, torch.dtype) and dtype.is_floating_point)
    return count > (REAL_FLOATS if floating else REAL_ELEMENTS)


def _length(op: str, args: Any, kwargs: Any) -> float:
    """Elements of a range or a window; 0 where its arguments are no plain numbers."""
    given = [one for one in args if isinstance(one, (int, float))]
    if op in ("arange", "range"):
        if len(given) == 1 and "end" not in kwargs:
            given = [0, *given]
        named = (("start", 0), ("end", 0), ("step", 1))
        bounds: list[Any] = [*given, *(kwargs.get(*one) for one in named[len(given) :])]
        start, end, step = bounds
        if not all(isinstance(one, (int, float)) for one in (start, end, step)) or not step:
            return 0
        return float((end - start) / step)
    if op in ("linspace", "logspace"):
        steps = kwargs.get("steps", given[2] if len(given) > 2 else 0)
        return steps if isinstance(steps, int) else 0
    if op == "eye":
        return given[0] * given[-1] if given else 0
    return given[0] if given and op in _OF_ONE_LENGTH else 0
