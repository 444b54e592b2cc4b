"""Strides of results, as torch lays them out; pure functions on shapes, remembered."""

from __future__ import annotations

from functools import lru_cache

Ints = tuple[int, ...]

#: Layouts remembered; more than the distinct shapes of any one model.
_REMEMBERED = 8192


@lru_cache(_REMEMBERED)
def contiguous_strides(shape: Ints) -> Ints:
    """Row-major strides; a dimension of 0 counts as 1, as torch does."""
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= size if size > 1 else 1
    return tuple(reversed(strides))


@lru_cache(_REMEMBERED)
def channels_last_strides(shape: Ints) -> Ints:
    """Strides of ``channels_last`` (4-d) or ``channels_last_3d`` (5-d)."""
    order = (1, *range(len(shape) - 1, 1, -1), 0)
    strides = [0] * len(shape)
    step = 1
    for axis in order:
        strides[axis] = step
        step *= shape[axis] if shape[axis] > 1 else 1
    return tuple(strides)


@lru_cache(_REMEMBERED)
def are_one(shape: Ints, strides: Ints, step: int | None = None) -> bool:
    """Whether dimensions can be viewed as one, whose stride is ``step`` (default: any); those of
    one may have any stride."""
    if 0 in shape:
        return True
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1:
            if step is not None and stride != step:
                return False
            step = stride * size
    return True


def is_contiguous(shape: Ints, strides: Ints) -> bool:
    """Whether elements lie row-major without gaps."""
    return are_one(shape, strides, 1)


@lru_cache(_REMEMBERED)
def is_channels_last(shape: Ints, strides: Ints) -> bool:
    """Torch's own guess of the memory format (``is_channels_last_strides``), 4-d and 5-d."""
    if len(shape) not in (4, 5) or strides[1] == 0:
        return False
    least = 0
    for axis in (1, *range(len(shape) - 1, 1, -1), 0):
        if shape[axis] == 0 or strides[axis] < least:
            return False
        # A tensor of one pixel and one channel is ambiguous and counts as contiguous.
        if axis == 0 and least == strides[1]:
            return False
        least = strides[axis] * max(shape[axis], 1)
    return True


@lru_cache(_REMEMBERED)
def formatted_like(shape: Ints, strides: Ints, wanted: Ints) -> Ints:
    """Strides of a tensor of another shape: channels_last where one of its rank is, else
    contiguous."""
    if len(wanted) == len(shape) and is_channels_last(shape, strides):
        return channels_last_strides(wanted)
    return contiguous_strides(wanted)


@lru_cache(_REMEMBERED)
def dense_like(shape: Ints, strides: Ints) -> Ints:
    """Strides of ``empty_like(..., memory_format=preserve_format)``."""
    if is_contiguous(shape, strides):
        return contiguous_strides(shape)
    if _is_dense(shape, strides):
        return strides
    return _in_order(shape, _physical_order(shape, (strides,)))


@lru_cache(_REMEMBERED)
def broadcast_shapes(*shapes: Ints) -> Ints:
    """Numpy broadcasting.

    Raises
    ------
    ValueError
        The shapes do not broadcast.
    """
    ndim = max(map(len, shapes))
    result = [1] * ndim
    for shape in shapes:
        for axis, size in enumerate(shape, ndim - len(shape)):
            if size != 1 and size != result[axis]:
                if result[axis] != 1:
                    raise ValueError(f"shapes {', '.join(map(str, shapes))} do not broadcast")
                result[axis] = size
    return tuple(result)


@lru_cache(_REMEMBERED)
def elementwise_layout(operands: tuple[tuple[Ints, Ints], ...]) -> tuple[Ints, Ints]:
    """Shape and strides of a pointwise result of tensors given as ``(shape, strides)``.

    Follows ``TensorIterator``: equal dense layouts are kept, otherwise the dimensions are sorted
    by the operands' strides (``reorder_dimensions``).
    """
    shape = broadcast_shapes(*(operand[0] for operand in operands))
    same_shape = all(operand[0] == shape for operand in operands)
    if same_shape:
        if all(is_contiguous(*operand) for operand in operands):
            return shape, contiguous_strides(shape)
        if len(shape) in (4, 5):
            last = channels_last_strides(shape)
            if all(_same_strides(shape, operand[1], last) for operand in operands):
                return shape, last
        first = operands[0][1]
        if all(operand[1] == first for operand in operands) and _is_dense(shape, first):
            return shape, first
    expanded = tuple(_expand(operand, shape) for operand in operands)
    return shape, _in_order(shape, _physical_order(shape, expanded))


def _same_strides(shape: Ints, strides: Ints, wanted: Ints) -> bool:
    return all(
        size == 1 or have == want for size, have, want in zip(shape, strides, wanted, strict=True)
    )


def _expand(operand: tuple[Ints, Ints], shape: Ints) -> Ints:
    """Strides of an operand broadcast to ``shape``."""
    own_shape, own = operand
    missing = len(shape) - len(own_shape)
    return (0,) * missing + tuple(
        0 if size == 1 and whole != 1 else stride
        for size, stride, whole in zip(own_shape, own, shape[missing:], strict=True)
    )


def _is_dense(shape: Ints, strides: Ints) -> bool:
    """Whether the elements fill their memory without gap or overlap, in any order."""
    if 0 in shape:
        return True
    step = 1
    for stride, size in sorted(
        (stride, size) for size, stride in zip(shape, strides, strict=True) if size > 1
    ):
        if stride != step:
            return False
        step *= size
    return True


def _physical_order(shape: Ints, operands: tuple[Ints, ...]) -> list[int]:
    """Dimensions from the fastest-moving to the slowest, by an insertion sort on strides."""

    def compare(a: int, b: int) -> int:
        for strides in operands:
            if strides[a] == 0 or strides[b] == 0:
                continue  # a broadcast dimension says nothing of the order
            if strides[a] != strides[b]:
                return -1 if strides[a] < strides[b] else 1
            if shape[a] > shape[b]:
                return 1
        return 0

    order = list(reversed(range(len(shape))))
    for start in range(1, len(order)):
        at = start
        for before in reversed(range(start)):
            verdict = compare(order[before], order[at])
            if verdict > 0:
                order[before], order[at] = order[at], order[before]
                at = before
            elif verdict < 0:
                break
    return order


def _in_order(shape: Ints, order: list[int]) -> Ints:
    strides = [0] * len(shape)
    step = 1
    for axis in order:
        strides[axis] = step
        step *= max(shape[axis], 1)
    return tuple(strides)
