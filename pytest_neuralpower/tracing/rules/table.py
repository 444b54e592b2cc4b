"""The table from torch's functions to what the tracer does with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import torch

from pytest_neuralpower.tracing.torch_private import NATIVE_CLASS, NATIVE_MODULE

__all__ = [
    "FREE",
    "REAL_ELEMENTS",
    "REAL_FLOATS",
    "TABLE",
    "WRAPPERS",
    "Entry",
    "Rule",
    "enter",
    "functions_named",
    "is_large",
    "rule",
]


#: A rule takes the recorder, then the arguments of its function; it lists what the operation
#: costs and returns tensors without data. It raises :class:`NoRule` (or fails) where it does not
#: know, and must not list anything before it does.
Rule = Callable[..., Any]


class Entry(NamedTuple):
    """How to treat one function.

    Attributes
    ----------
    treatment
        ``rule`` (shapes by ``rule``), ``view`` (free: torch's own view of a tensor without data),
        ``plain`` (attribute reads, answered as they are), ``read`` (needs values), ``factory``
        (makes a tensor from nothing), ``device`` (says where a tensor lives).
    op
        The name a layer gets.
    rule
        Only for ``rule``, and for a ``view`` that does not always stay one.
    """

    treatment: str
    op: str
    rule: Rule | None = None


TABLE: Final[dict[Any, Entry]] = {}

#: Where torch's functions live. Of its modules the dictionaries, for most names are in some of
#: them only, and torch takes long to say that it has none of a name.
_MODULES: Final = tuple(map(vars, (torch, torch.nn.functional, NATIVE_MODULE)))
_CLASSES: Final = (torch.Tensor, NATIVE_CLASS)


def functions_named(name: str) -> Iterator[Any]:
    """Every public callable of torch with this name: function, method, functional."""
    found = [module.get(name) for module in _MODULES]
    found += [getattr(each, name, None) for each in _CLASSES]
    for function in found:
        if callable(function) and not isinstance(function, type):
            yield function


def enter(entry: Entry, *names: str) -> None:
    """Put an entry under every function with one of these names."""
    for name in names:
        for function in functions_named(name):
            TABLE.setdefault(function, entry)


def rule(*names: str, op: str | None = None) -> Callable[[Rule], Rule]:
    """Make the decorated function the rule of every torch function with one of these names."""

    def register(function: Rule) -> Rule:
        for name in names:
            enter(Entry("rule", op or name.strip("_"), function), name)
        return function

    return register


def method(name: str, entry: Entry) -> None:
    """Put an entry under one method or property of ``Tensor``."""
    attribute = getattr(torch.Tensor, name, None)
    if attribute is not None:
        TABLE[attribute if callable(attribute) else attribute.__get__] = entry


# -- Views: they move no data, so they are free and not listed.
#
# Torch's own view kernels answer for tensors without data in a microsecond or two and get every
# stride right, so there is nothing to write again here.

_VIEWS: Final = (
    "view", "permute", "transpose", "transpose_", "t", "t_", "adjoint", "swapaxes", "swapdims",
    "swapaxes_", "swapdims_", "movedim", "moveaxis", "squeeze", "squeeze_", "unsqueeze",
    "unsqueeze_", "expand", "expand_as", "narrow", "select", "chunk", "unsafe_chunk", "split",
    "split_with_sizes", "unsafe_split", "tensor_split", "hsplit", "vsplit", "dsplit", "unbind",
    "diagonal", "detach", "detach_", "view_as", "view_as_real", "view_as_complex", "real", "imag",
    "as_strided", "as_strided_", "broadcast_to", "broadcast_tensors", "unflatten", "atleast_1d",
    "atleast_2d", "atleast_3d", "alias", "meshgrid", "set_", "slice_scatter_view", "__iter__",
    "resolve_conj", "resolve_neg", "conj", "unsafe_split_with_sizes",
)  # fmt: skip

for _name in _VIEWS:
    enter(Entry("view", _name.strip("_")), _name)

# Tensor.unfold slides a window as a view; torch.nn.functional.unfold copies, and has a rule.
TABLE[torch.Tensor.unfold] = Entry("view", "unfold")

for _name in ("T", "mT", "H", "mH", "real", "imag", "data"):
    method(_name, Entry("view", _name))


# -- What is read from a tensor: its description is free, its values need a real forward.

#: Answered as they are.
_PROPERTIES: Final = (
    "shape", "dtype", "ndim", "layout", "requires_grad", "grad", "grad_fn", "is_leaf", "names",
    "is_sparse", "is_quantized", "is_nested", "is_mkldnn", "itemsize", "nbytes", "_base",
    "_version", "_backward_hooks", "output_nr", "is_sparse_csr", "retains_grad", "is_complex",
)  # fmt: skip
_METHODS: Final = (
    "size", "dim", "numel", "nelement", "stride", "is_contiguous", "is_floating_point",
    "is_complex", "element_size", "storage_offset", "ndimension", "__len__", "is_same_size",
    "has_names", "is_set_to", "result_type", "can_cast", "is_tensor",
    "is_inference", "is_conj", "is_neg", "promote_types", "is_pinned", "is_shared",
    "_is_view", "is_signed", "register_hook", "retain_grad", "__hash__", "__repr__", "dim_order",
    "untyped_storage", "storage", "data_ptr", "is_nonzero_", "__dir__", "broadcast_shapes",
)  # fmt: skip

for _name in _PROPERTIES:
    method(_name, Entry("plain", _name))
for _name in _METHODS:
    enter(Entry("plain", _name), _name)
#: Assigned, and taken back after the trace.
for _name in ("requires_grad", "grad", "data"):
    TABLE[getattr(torch.Tensor, _name).__set__] = Entry("assign", _name)
enter(Entry("assign", "requires_grad"), "requires_grad_")

#: Where a tensor lives: answered as if it were on the device of the example inputs.
for _name in ("device", "is_cuda", "is_cpu", "is_meta", "is_xpu", "is_mps"):
    method(_name, Entry("device", _name))
method("get_device", Entry("device", "get_device"))

#: These need values: they stop the function route unless the tensor is real.
_READS: Final = (
    "item", "tolist", "numpy", "__array__", "__bool__", "__float__", "__int__", "__index__",
    "__complex__", "__contains__", "nonzero", "nonzero_static", "argwhere", "masked_select",
    "unique", "_unique2", "unique_consecutive", "unique_dim", "equal", "allclose", "is_nonzero",
    "bincount", "__format__", "__dlpack__", "_local_scalar_dense", "cuda_",
    "combinations", "histogram", "masked_scatter_size",
)  # fmt: skip

for _name in _READS:
    enter(Entry("read", _name), _name)

#: Autograd inside forward: only the dispatcher sees what it runs.
for _function in (torch.Tensor.backward, torch.autograd.grad, torch.autograd.backward):
    TABLE[_function] = Entry("autograd", "backward")


# -- Tensors made from nothing: they stay real while small, so that masks and indices have values.

#: Integer and boolean tensors up to this many elements keep their values: masks, positions.
REAL_ELEMENTS: Final = 1_000_000
#: Floating ones keep theirs up to this many. Code rarely reads them, and computing with more
#: would take longer than all the rest of a trace.
REAL_FLOATS: Final = 65_536

#: By size, or like another tensor.
_SIZED: Final = (
    "zeros", "ones", "full", "empty", "rand", "randn", "randint", "empty_strided", "zeros_like",
    "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like", "new_zeros",
    "new_ones", "new_full", "new_empty", "new_empty_strided", "empty_permuted",
)  # fmt: skip
_RANGES: Final = (
    "arange", "range", "linspace", "logspace", "eye", "randperm", "tril_indices", "triu_indices",
    "hann_window", "hamming_window", "blackman_window", "kaiser_window", "bartlett_window",
)  # fmt: skip
#: Around data that is there already.
WRAPPERS: Final = ("tensor", "as_tensor", "asarray", "from_numpy", "scalar_tensor", "new_tensor")

#: Allocate without writing, or wrap data.
FREE: Final = frozenset(
    (*WRAPPERS, "empty", "empty_like", "empty_strided", "empty_permuted", "new_empty",
     "new_empty_strided")
)  # fmt: skip

for _name in (*_SIZED, *_RANGES, *WRAPPERS):
    enter(Entry("factory", _name), _name)


def is_large(op: str, args: Any, kwargs: Any) -> bool:
    """Whether a factory's result is too large to be worth its values."""
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
