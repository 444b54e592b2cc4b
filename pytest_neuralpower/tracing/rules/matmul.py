"""Products: of two activations (matmul, einsum and their kin), linear layers, and look-ups."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import torch

from pytest_neuralpower.layers import expected_experts
from pytest_neuralpower.tracing.fallbacks import NoRule
from pytest_neuralpower.tracing.recorder import (
    REMEMBERED,
    OperationPlan,
    is_weight,
    planned,
    spec_of,
)
from pytest_neuralpower.tracing.strides import Ints, broadcast_shapes
from pytest_neuralpower.tracing.torch_private import base_of, nonzeros

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from pytest_neuralpower.layers import Params, TensorSpec
    from pytest_neuralpower.tracing.recorder import Recorder
    from pytest_neuralpower.tracing.rules.table import Rule


def _list_matmul(
    recorder: Recorder, op: str, left: Tensor, right: Tensor, out: Ints, reduced: int, *more: Tensor
) -> Tensor:
    """List one product; ``more`` are addends, such as ``baddbmm``'s."""
    if left.layout is not torch.strided or right.layout is not torch.strided:
        return _list_sparse(recorder, left, right, out, *more)
    if not recorder.same_dtype(left.dtype, right.dtype):
        raise NoRule
    dtype = recorder.autocast(left.dtype)
    left, right = (recorder.matrices(recorder.cast(operand, dtype), 2) for operand in (left, right))
    more = tuple(recorder.cast(addend, dtype) for addend in more)
    recorder.note_seen(left, right, *more)
    # A parameter stays an operand here: the formulas read both operands as inputs.
    inputs = tuple([recorder.spec(tensor) for tensor in (left, right, *more)])
    plan = _plan(op, inputs, tuple(out), reduced, dtype)
    return recorder.follow(plan, (left, right, *more))


def _list_sparse(
    recorder: Recorder, left: Tensor, right: Tensor, out: Ints, *more: Tensor
) -> Tensor:
    """A product with a sparse operand: each of its values meets a row of the other."""
    first = left.layout is not torch.strided
    sparse, dense = (left, right) if first else (right, left)
    if sparse.ndim != 2:
        raise NoRule
    if dense.layout is not torch.strided:
        return _list_two_sparse(recorder, left, right, *more)
    lines = math.prod(out) // max(sparse.shape[0 if first else 1], 1)
    output = recorder.new(out, dense.dtype)
    recorder.note_seen(sparse, dense, *more)
    values = _values(sparse)
    recorder.add(
        "matmul", "sparse_mm",
        (values, *map(recorder.spec, (dense, *_indices(sparse), *more))), (),
        (recorder.spec(output),), _sparse_params(values.numel * lines, math.prod(out)),
        reads=(sparse, dense, *more), makes=(output,),
    )  # fmt: skip
    return output


def _list_two_sparse(recorder: Recorder, left: Tensor, right: Tensor, *more: Tensor) -> Tensor:
    """Each value of a column meets the values in the other's row of that number.

    How many are left in the result, multiplying tells: it has values, as both operands do.
    """
    if more or left.is_meta or right.is_meta or left.shape[1] != right.shape[0]:
        raise NoRule
    rows, columns = (each.to_sparse(layout=torch.sparse_coo) for each in (left, right))
    met = torch.bincount(columns._indices()[0], minlength=right.shape[0])
    output: Tensor = torch.sparse.mm(rows, columns).coalesce()
    count = nonzeros(output)
    if left.layout is not torch.sparse_coo:
        output = output.to_sparse(layout=left.layout)
    recorder.note_seen(left, right)
    recorder.add(
        "matmul", "sparse_mm",
        (_values(left), _values(right), *map(recorder.spec, (*_indices(left), *_indices(right)))),
        (), (spec_of((count,), left.dtype), *map(recorder.spec, _indices(output))),
        _sparse_params(int(met[rows._indices()[1]].sum()), count),
        reads=(left, right), makes=(output,),
    )  # fmt: skip
    return output


def _sparse_params(macs: int, results: int) -> Params:
    return ("macs", macs), ("reduced", max(1, -(-macs // max(results, 1))))


def _values(sparse: Tensor) -> TensorSpec:
    """What a matrix holds, the zeros in its blocks included."""
    count = nonzeros(sparse)
    if sparse.layout in (torch.sparse_bsr, torch.sparse_bsc):
        count *= math.prod(sparse.values().shape[-2:])
    return spec_of((count,), sparse.dtype)


def _indices(sparse: Tensor) -> tuple[Tensor, ...]:
    """What says where a matrix's values, or its blocks, are."""
    if sparse.layout is torch.sparse_coo:
        # Torch has none to give before they are coalesced.
        return (torch.empty((2, nonzeros(sparse)), dtype=torch.int64, device="meta"),)
    if sparse.layout in (torch.sparse_csr, torch.sparse_bsr):
        return sparse.crow_indices(), sparse.col_indices()
    return sparse.ccol_indices(), sparse.row_indices()


def _sparse_mm(recorder: Recorder, op: str, sparse: Tensor, dense: Tensor) -> Tensor:
    return _product(recorder, "mm", sparse, dense)


def _sparse_addmm(
    recorder: Recorder,
    op: str,
    mat: Tensor,
    mat1: Tensor,
    mat2: Tensor,
    *,
    beta: Any = 1.0,
    alpha: Any = 1.0,
) -> Tensor:
    return _product(recorder, "addmm", mat1, mat2, mat)


@lru_cache(REMEMBERED)
def _plan(
    op: str, inputs: tuple[TensorSpec, ...], out: Ints, reduced: int, dtype: torch.dtype
) -> OperationPlan:
    left = inputs[0].shape
    params = () if left and reduced == left[-1] else (("reduced", reduced),)
    return planned("matmul", op, inputs, out, dtype, params=params)


def _matmul(recorder: Recorder, op: str, input: Tensor, other: Tensor) -> Tensor:
    left, right = input.shape, other.shape
    if not left or not right:
        raise NoRule
    if left[-1] != (right[-2] if len(right) > 1 else right[0]):
        raise NoRule
    batch = broadcast_shapes(left[:-2], right[:-2]) if len(left) > 2 or len(right) > 2 else ()
    rows = left[-2:-1] if len(left) > 1 else ()
    columns = right[-1:] if len(right) > 1 else ()
    return _list_matmul(recorder, "matmul", input, other, (*batch, *rows, *columns), left[-1])


def _rmatmul(recorder: Recorder, op: str, input: Tensor, other: Tensor) -> Tensor:
    return _matmul(recorder, op, other, input)


def _mm(recorder: Recorder, op: str, input: Tensor, mat2: Tensor) -> Tensor:
    if is_weight(mat2):
        if op == "mm" and input.ndim == 2:
            return _linear_by(recorder, input, mat2, None)
        if op == "bmm" and mat2.ndim == 3 and not mat2.stride(0) and len(input) == len(mat2):
            return _linear_by(recorder, input, mat2[0], None)  # one weight, expanded
    return _product(recorder, op, input, mat2)


def _mv(recorder: Recorder, op: str, input: Tensor, vec: Tensor) -> Tensor:
    return _product(recorder, op, input, vec)


def _addmm(
    recorder: Recorder,
    op: str,
    input: Tensor,
    mat1: Tensor,
    mat2: Tensor,
    *,
    beta: Any = 1,
    alpha: Any = 1,
) -> Tensor:
    if input.ndim == 1 and mat1.ndim == 2 and is_weight(mat2):
        return _linear_by(recorder, mat1, mat2, input)
    return _product(recorder, op, mat1, mat2, input)


def _baddbmm(
    recorder: Recorder,
    op: str,
    input: Tensor,
    batch1: Tensor,
    batch2: Tensor,
    *,
    beta: Any = 1,
    alpha: Any = 1,
) -> Tensor:
    return _product(recorder, op, batch1, batch2, input, added=beta != 0)


#: Dimensions of both operands.
_RANKS: Final = {"mm": (2, 2), "bmm": (3, 3), "mv": (2, 1), "addmm": (2, 2), "baddbmm": (3, 3)}


def _product(
    recorder: Recorder,
    op: str,
    left: Tensor,
    right: Tensor,
    addend: Tensor | None = None,
    added: bool = True,
) -> Tensor:
    """Of operands that do not broadcast; torch does not read the addend where ``added`` is not."""
    rows, columns = left.shape, right.shape
    if (len(rows), len(columns)) != _RANKS[op] or rows[:-2] != columns[:-2]:
        raise NoRule
    if rows[-1] != columns[max(len(columns) - 2, 0)]:
        raise NoRule
    out = (*rows[:-1], *columns[len(rows) - 1 :])
    if addend is None:
        return _list_matmul(recorder, op, left, right, out, rows[-1])
    if broadcast_shapes(tuple(addend.shape), out) != out:
        raise NoRule
    return _list_matmul(recorder, op, left, right, out, rows[-1], *((addend,) if added else ()))


def _dot(recorder: Recorder, op: str, input: Tensor, tensor: Tensor) -> Tensor:
    if input.ndim != 1 or input.shape != tensor.shape:
        raise NoRule
    return _list_matmul(recorder, "dot", input, tensor, (), input.shape[0])


def _outer(recorder: Recorder, op: str, input: Tensor, vec2: Tensor) -> Tensor:
    if input.ndim != 1 or vec2.ndim != 1:
        raise NoRule
    return _spread(recorder, "outer", input, vec2, (input.shape[0], vec2.shape[0]))


def _spread(recorder: Recorder, op: str, left: Tensor, right: Tensor, out: Ints) -> Tensor:
    """A product that sums over nothing: torch multiplies elementwise, and so it is counted."""
    dtype = torch.promote_types(left.dtype, right.dtype)
    return recorder.result("elementwise", op, (left, right), out, dtype)


def _einsum(recorder: Recorder, op: str, equation: Any, *operands: Any) -> Tensor:
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
    single: set[str] = set()
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
            if size == 1:
                single.add(letter)
    kept = right_side.replace("...", "".join(map(str, range(rank))))
    out = tuple(sizes[letter] for letter in kept)
    # An index of one operand alone, or of size 1 in one, is summed away before the product, as
    # torch does.
    shared = set(terms[0]) & set(terms[1]) - set(kept) - single
    if not shared:
        return _spread(recorder, op, *operands, out)
    reduced = math.prod(size for letter, size in sizes.items() if letter in shared)
    return _list_matmul(recorder, op, *operands, out, reduced)


def _tensordot(
    recorder: Recorder, op: str, a: Tensor, b: Tensor, dims: Any = 2, out: Any = None
) -> Tensor:
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
    return _list_matmul(recorder, op, a, b, shape, reduced)


def _grouped_mm(
    recorder: Recorder,
    op: str,
    mat_a: Tensor,
    mat_b: Tensor,
    *,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: Any = None,
) -> Tensor:
    """Rows split among experts: every row meets one expert's matrix, wherever the splits lie.

    Which experts those are depends on values, so that as many are read as tokens choose where
    all are equally likely. Without a ``topk`` over the experts, every row is a token's only one.
    """
    rows, matrix = mat_a.shape, mat_b.shape
    if len(rows) != 2 or len(matrix) != 3 or rows[1] != matrix[1] or out_dtype is not None:
        raise NoRule
    if not recorder.same_dtype(mat_a.dtype, mat_b.dtype):
        raise NoRule
    recorder.note_seen(mat_a, mat_b)
    dtype = recorder.autocast(mat_a.dtype)
    mat_a = recorder.cast(mat_a, dtype)
    out = recorder.new((rows[0], matrix[2]), dtype)
    list_grouped(recorder, mat_a, mat_b, out, (mat_a, mat_b, offs, bias))
    return out


def list_grouped(
    recorder: Recorder, rows: Tensor, matrices: Tensor, out: Tensor, reads: Iterable[Any]
) -> None:
    """List a ``grouped_mm`` of these rows by these experts' matrices, and what it assumes."""
    count, experts = rows.shape[0], matrices.shape[0]
    chosen = recorder.chosen.get(experts, 1)
    if count % chosen:
        chosen = 1
    recorder.add(
        "matmul", "grouped_mm", map(recorder.spec, (rows, matrices)), (), (recorder.spec(out),),
        (("chosen", chosen),), reads=reads, makes=(out,),
    )  # fmt: skip
    read = expected_experts(recorder.layers[-1])
    recorder.notes[
        f"Assumed that {count // chosen} tokens choose {chosen} of {experts} experts each, all "
        f"equally likely: grouped_mm reads the weights of {read:.4g}."
    ] = None


# -- Fully connected layers.


def _linear_by(recorder: Recorder, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer spelled as a product, as GPT-2 and decomposed graphs do: by the transpose of
    what ``linear`` takes."""
    if input.ndim not in (2, 3) or weight.ndim != 2:
        raise NoRule
    for given in (weight, bias):
        if given is not None:
            base = base_of(given)
            recorder.note_seen(given if base is None else base)
    return linear(recorder, "linear", input, weight.t(), bias)


def linear(
    recorder: Recorder, op: str, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    dtype, of_weight = input.dtype, weight.dtype
    if weight.layout is not torch.strided:
        out = (*input.shape[:-1], weight.shape[0])
        return _list_sparse(recorder, weight.t(), input, out, *(() if bias is None else (bias,)))
    if dtype is not of_weight and not recorder.same_dtype(dtype, of_weight):
        raise NoRule
    dtype = recorder.autocast(dtype)
    data = recorder.matrices(recorder.cast(input, dtype), 1)
    plan = _linear_plan(
        data.shape, data.dtype, dtype, weight.shape, of_weight,
        None if bias is None else bias.shape,
    )  # fmt: skip
    recorder.seen.add(id(weight))
    recorder.seen.add(id(bias))
    return recorder.follow(plan, (data, weight, bias))


@lru_cache(REMEMBERED)
def _linear_plan(
    shape: Ints,
    dtype: torch.dtype,
    result: torch.dtype,
    weight: Ints,
    weight_dtype: torch.dtype,
    bias: Ints | None,
) -> OperationPlan:
    if not shape or shape[-1] != weight[-1] or (bias is not None and bias != weight[:-1]):
        raise NoRule
    # A 1-d weight makes a dot product, without a feature axis.
    out = (*shape[:-1], *weight[:-1])
    wide = weight if len(weight) == 2 else (1, *weight)
    weights = tuple(spec_of(one, weight_dtype) for one in (wide, bias) if one is not None)
    return planned("linear", "linear", (spec_of(shape, dtype),), out, result, weights=weights)


def _bilinear(
    recorder: Recorder,
    op: str,
    input1: Tensor,
    input2: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """``x1 W x2`` as torch's ``_trilinear`` computes it: (N x I1) by (I1 x I2) for each output."""
    left, right = input1.shape, input2.shape
    if left[:-1] != right[:-1] or weight.shape[1:] != (left[-1], right[-1]):
        raise NoRule
    output = recorder.new((*left[:-1], weight.shape[0]), input1.dtype)
    recorder.add(
        "matmul",
        op,
        (recorder.spec(input1), recorder.spec(input2)),
        recorder.weight_specs(weight, bias),
        (recorder.spec(output),),
        # Every output element sums over both feature axes.
        (("reduced", left[-1] * right[-1]),),
        reads=(input1, input2, weight, bias),
        makes=(output,),
    )
    return output


# -- Table look-ups: embeddings and bags of them.


def embedding(
    recorder: Recorder,
    op: str,
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
    return _look_up(recorder, op, (input,), weight, tuple(input.shape))


def _native_embedding(
    recorder: Recorder, op: str, weight: Tensor, indices: Tensor, *more: Any
) -> Tensor:
    """Torch's own function takes the table first."""
    return embedding(recorder, op, indices, weight)


def _embedding_bag(
    recorder: Recorder,
    op: str,
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
    bags = input.shape[0] if offsets is None else offsets.shape[0] - bool(include_last_offset)
    given = (input, offsets, per_sample_weights)
    return _look_up(
        recorder, op, tuple(tensor for tensor in given if tensor is not None), weight, (bags,),
        ("mode", mode), ("rows", input.numel()),
    )  # fmt: skip


def _look_up(
    recorder: Recorder,
    op: str,
    inputs: tuple[Tensor, ...],
    weight: Tensor,
    rows: Ints,
    *params: tuple[str, Any],
) -> Tensor:
    output = recorder.new((*rows, weight.shape[1]), weight.dtype)
    recorder.add(
        "embedding", op, [recorder.spec(tensor) for tensor in inputs],
        recorder.weight_specs(weight), (recorder.spec(output),), params,
        reads=(*inputs, weight), makes=(output,),
    )  # fmt: skip
    return output


RULES: Final[dict[Any, Rule]] = {
    **dict.fromkeys(("matmul", "__matmul__"), _matmul),
    "__rmatmul__": _rmatmul,
    **dict.fromkeys(("mm", "bmm", "dsmm"), _mm),
    "mv": _mv,
    "addmm": _addmm,
    "baddbmm": _baddbmm,
    **dict.fromkeys(("dot", "inner", "vdot"), _dot),
    **dict.fromkeys(("outer", "ger"), _outer),
    "einsum": _einsum,
    "tensordot": _tensordot,
    **dict.fromkeys(("grouped_mm", "_grouped_mm"), _grouped_mm),
    torch.sparse.mm: _sparse_mm,
    torch.sparse.addmm: _sparse_addmm,
    "linear": linear,
    "bilinear": _bilinear,
    "embedding": embedding,
    torch.embedding: _native_embedding,
    "embedding_bag": _embedding_bag,
}
