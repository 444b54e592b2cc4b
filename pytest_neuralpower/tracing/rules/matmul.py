"""Products of two activations: matmul, bmm, einsum and their kin."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from pytest_neuralpower.layers import TensorSpec
from pytest_neuralpower.tracing.fallbacks import NoRule
from pytest_neuralpower.tracing.recorder import REMEMBERED, Plan, dtype_name, spec_of
from pytest_neuralpower.tracing.rules.table import rule
from pytest_neuralpower.tracing.strides import broadcast_shapes, contiguous_strides

if TYPE_CHECKING:
    from torch import Tensor

    from pytest_neuralpower.tracing.recorder import Recorder

__all__ = [
    "embedding",
    "linear",
    "list_matmul",
    "matmul",
]


# ruff: noqa: A002, ARG001, PLR0917
# A rule has the signature of its torch function, names, order and unused arguments included.


def list_matmul(
    recorder: Recorder, op: str, left: Tensor, right: Tensor, out: Any, reduced: int, *more: Tensor
) -> Tensor:
    """List one product; ``more`` are addends, such as ``baddbmm``'s."""
    if not recorder.same_dtype(left.dtype, right.dtype):
        raise NoRule
    recorder.note_seen(left, right, *more)
    # A parameter stays an operand here: the formulas read both operands as inputs.
    inputs = tuple([recorder.spec(tensor) for tensor in (left, right, *more)])
    return recorder.follow(_plan(op, inputs, tuple(out), reduced, recorder.autocast(left.dtype)))


@lru_cache(REMEMBERED)
def _plan(
    op: str, inputs: tuple[TensorSpec, ...], out: tuple[int, ...], reduced: int, dtype: torch.dtype
) -> Plan:
    left = inputs[0].shape
    output = spec_of(out, dtype)
    return Plan(
        "matmul",
        op,
        inputs,
        (),
        (output,),
        output.dtype,
        () if left and reduced == left[-1] else (("reduced", reduced),),
        out,
        contiguous_strides(out),
        dtype,
    )


@rule("matmul", "__matmul__")
def matmul(recorder: Recorder, input: Tensor, other: Tensor) -> Tensor:
    left, right = input.shape, other.shape
    if not left or not right:
        raise NoRule
    if left[-1] != (right[-2] if len(right) > 1 else right[0]):
        raise NoRule
    batch = broadcast_shapes(left[:-2], right[:-2]) if len(left) > 2 or len(right) > 2 else ()
    rows = left[-2:-1] if len(left) > 1 else ()
    columns = right[-1:] if len(right) > 1 else ()
    return list_matmul(recorder, "matmul", input, other, (*batch, *rows, *columns), left[-1])


@rule("__rmatmul__")
def rmatmul(recorder: Recorder, input: Tensor, other: Tensor) -> Tensor:
    return matmul(recorder, other, input)  # type: ignore[no-any-return]


@rule("bmm")
def bmm(recorder: Recorder, input: Tensor, mat2: Tensor) -> Tensor:
    left, right = input.shape, mat2.shape
    if len(left) != 3 or len(right) != 3 or left[0] != right[0] or left[2] != right[1]:
        raise NoRule
    return list_matmul(recorder, "bmm", input, mat2, (*left[:2], right[2]), left[2])


@rule("mm")
def mm(recorder: Recorder, input: Tensor, mat2: Tensor) -> Tensor:
    left, right = input.shape, mat2.shape
    if len(left) != 2 or len(right) != 2 or left[1] != right[0]:
        raise NoRule
    return list_matmul(recorder, "mm", input, mat2, (left[0], right[1]), left[1])


@rule("mv")
def mv(recorder: Recorder, input: Tensor, vec: Tensor) -> Tensor:
    left, right = input.shape, vec.shape
    if len(left) != 2 or len(right) != 1 or left[1] != right[0]:
        raise NoRule
    return list_matmul(recorder, "mv", input, vec, left[:1], left[1])


@rule("dot", "inner", "vdot")
def dot(recorder: Recorder, input: Tensor, tensor: Tensor) -> Tensor:
    if input.ndim != 1 or input.shape != tensor.shape:
        raise NoRule
    return list_matmul(recorder, "dot", input, tensor, (), input.shape[0])


@rule("outer", "ger")
def outer(recorder: Recorder, input: Tensor, vec2: Tensor) -> Tensor:
    if input.ndim != 1 or vec2.ndim != 1:
        raise NoRule
    return _outer(recorder, "outer", input, vec2, (input.shape[0], vec2.shape[0]))


def _outer(
    recorder: Recorder, op: str, left: Tensor, right: Tensor, out: tuple[int, ...]
) -> Tensor:
    """A product that sums over nothing: torch multiplies elementwise, and so it is counted."""
    output = recorder.new(out, torch.promote_types(left.dtype, right.dtype))
    recorder.record("elementwise", op, (left, right), (output,))
    return output


@rule("addmm")
def addmm(
    recorder: Recorder, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: Any = 1, alpha: Any = 1
) -> Tensor:
    left, right = mat1.shape, mat2.shape
    if len(left) != 2 or len(right) != 2 or left[1] != right[0]:
        raise NoRule
    out = (left[0], right[1])
    if broadcast_shapes(tuple(input.shape), out) != out:
        raise NoRule
    return list_matmul(recorder, "addmm", mat1, mat2, out, left[1], input)


@rule("baddbmm")
def baddbmm(
    recorder: Recorder,
    input: Tensor,
    batch1: Tensor,
    batch2: Tensor,
    *,
    beta: Any = 1,
    alpha: Any = 1,
) -> Tensor:
    left, right = batch1.shape, batch2.shape
    if len(left) != 3 or len(right) != 3 or left[0] != right[0] or left[2] != right[1]:
        raise NoRule
    out = (*left[:2], right[2])
    if broadcast_shapes(tuple(input.shape), out) != out:
        raise NoRule
    addends = () if beta == 0 else (input,)  # torch does not read the input then
    return list_matmul(recorder, "baddbmm", batch1, batch2, out, left[2], *addends)


@rule("einsum")
def einsum(recorder: Recorder, equation: Any, *operands: Any) -> Tensor:
    """One contraction of one or two operands; the reduced size is every summed index's product.

    More operands have no unique cost (it depends on the order of contraction), so they are left
    to a fallback.
    """
    if not isinstance(equation, str):
        raise NoRule  # the sublist format
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    left_side, arrow, right_side = equation.replace(" ", "").partition("->")
    terms = left_side.split(",")
    if not arrow or len(operands) != 2 or len(terms) != 2:
        raise NoRule
    rank = max(
        tensor.ndim - len(term.replace("...", ""))
        for term, tensor in zip(terms, operands, strict=True)
    )
    sizes: dict[str, int] = {}
    for term, tensor in zip(terms, operands, strict=True):
        own = tensor.ndim - len(term.replace("...", ""))
        # Digits stand for the dimensions of an ellipsis, aligned at the right.
        spelled = term.replace("...", "".join(map(str, range(rank - own, rank))))
        if len(spelled) != tensor.ndim:
            raise NoRule
        for letter, size in zip(spelled, tensor.shape, strict=True):
            known = sizes.setdefault(letter, size)
            if known != size:
                if 1 not in (known, size):
                    raise NoRule
                sizes[letter] = max(known, size)
    kept = right_side.replace("...", "".join(map(str, range(rank))))
    out = tuple(sizes[letter] for letter in kept)
    # An index of one operand alone is summed away before the product, as torch does.
    shared = set(terms[0]) & set(terms[1]) - set(kept)
    if not shared:
        return _outer(recorder, "einsum", *operands, out)
    reduced = math.prod(size for letter, size in sizes.items() if letter in shared)
    return list_matmul(recorder, "einsum", *operands, out, reduced)


@rule("tensordot")
def tensordot(recorder: Recorder, a: Tensor, b: Tensor, dims: Any = 2, out: Any = None) -> Tensor:
    if out is not None:
        raise NoRule
    if isinstance(dims, int):
        left = list(range(a.ndim - dims, a.ndim))
        right = list(range(dims))
    elif isinstance(dims, (list, tuple)) and len(dims) == 2:
        left, right = (
            [axis % tensor.ndim for axis in ([dim] if isinstance(dim, int) else dim)]
            for dim, tensor in zip(dims, (a, b), strict=True)
        )
    else:
        raise NoRule
    if [a.shape[axis] for axis in left] != [b.shape[axis] for axis in right]:
        raise NoRule
    shape = tuple(size for axis, size in enumerate(a.shape) if axis not in left)
    shape += tuple(size for axis, size in enumerate(b.shape) if axis not in right)
    reduced = math.prod(a.shape[axis] for axis in left)
    return list_matmul(recorder, "tensordot", a, b, shape, reduced)


@rule("grouped_mm", "_grouped_mm", op="grouped_mm")
def grouped_mm(
    recorder: Recorder,
    mat_a: Tensor,
    mat_b: Tensor,
    *,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: Any = None,
) -> Tensor:
    """Rows split among experts: every row meets one expert's matrix, wherever the splits lie."""
    rows, matrix = mat_a.shape, mat_b.shape
    if len(rows) != 2 or len(matrix) != 3 or rows[1] != matrix[1] or out_dtype is not None:
        raise NoRule
    return list_matmul(recorder, "grouped_mm", mat_a, mat_b, (rows[0], matrix[2]), rows[1])


# -- Fully connected layers.

# ruff: noqa: A002, PLR0917
# A rule has the signature of its torch function, names, order and unused arguments included.


Ints = tuple[int, ...]


@rule("linear")
def linear(recorder: Recorder, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    dtype = input.dtype
    if not recorder.same_dtype(dtype, weight.dtype):
        raise NoRule
    plan = _linear_plan(
        input.shape,
        dtype,
        recorder.autocast(dtype),
        weight.shape,
        weight.dtype,
        None if bias is None else bias.shape,
    )
    recorder.seen.add(id(weight))
    recorder.seen.add(id(bias))
    return recorder.follow(plan)


@lru_cache(REMEMBERED)
def _linear_plan(
    shape: Ints,
    dtype: torch.dtype,
    result: torch.dtype,
    weight: Ints,
    weight_dtype: torch.dtype,
    bias: Ints | None,
) -> Plan:
    if not shape or shape[-1] != weight[-1] or (bias is not None and bias != weight[:-1]):
        raise NoRule
    # A 1-d weight makes a dot product, without a feature axis.
    out = (*shape[:-1], *weight[:-1])
    wide = weight if len(weight) == 2 else (1, *weight)
    return Plan(
        "linear",
        "linear",
        (spec_of(shape, dtype),),
        tuple(spec_of(one, weight_dtype) for one in (wide, bias) if one is not None),
        (spec_of(out, result),),
        dtype_name(result),
        (),
        out,
        contiguous_strides(out),
        result,
    )


@rule("bilinear")
def bilinear(
    recorder: Recorder,
    input1: Tensor,
    input2: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """``x1 W x2`` as torch's ``_trilinear`` computes it: (N x I1) by (I1 x I2) for each output."""
    if input1.shape[:-1] != input2.shape[:-1] or weight.shape[1:] != (
        input1.shape[-1],
        input2.shape[-1],
    ):
        raise NoRule
    out = (*input1.shape[:-1], weight.shape[0])
    name = dtype_name(input1.dtype)
    recorder.add(
        "matmul",
        "bilinear",
        (recorder.spec(input1), recorder.spec(input2)),
        recorder.weight_specs(weight, bias),
        (TensorSpec(out, name),),
        # Every output element sums over both feature axes.
        (("reduced", input1.shape[-1] * input2.shape[-1]),),
        name,
    )
    return recorder.new(out, input1.dtype)


# -- Table look-ups: embeddings and bags of them.

# ruff: noqa: A002, ARG001, PLR0917
# A rule has the signature of its torch function, names, order and unused arguments included.


@rule("embedding")
def embedding(
    recorder: Recorder,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Indices are not looked at: one out of range is the device's error, not the shape's."""
    if weight.ndim != 2 or input.dtype.is_floating_point:
        raise NoRule
    out = (*input.shape, weight.shape[1])
    recorder.add(
        "embedding",
        "embedding",
        (recorder.spec(input),),
        recorder.weight_specs(weight),
        (TensorSpec(out, dtype_name(weight.dtype)),),
    )
    return recorder.new(out, weight.dtype)


@rule("embedding_bag")
def embedding_bag(
    recorder: Recorder,
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    if input.dtype.is_floating_point or (offsets is None) != (input.ndim == 2):
        raise NoRule
    if offsets is None:
        bags = input.shape[0]
    else:
        bags = offsets.shape[0] - (1 if include_last_offset else 0)
    out = (bags, weight.shape[1])
    inputs = [input, *(tensor for tensor in (offsets, per_sample_weights) if tensor is not None)]
    recorder.add(
        "embedding",
        "embedding_bag",
        [recorder.spec(tensor) for tensor in inputs],
        recorder.weight_specs(weight),
        (TensorSpec(out, dtype_name(weight.dtype)),),
        (("mode", mode), ("rows", input.numel())),
    )
    return recorder.new(out, weight.dtype)
