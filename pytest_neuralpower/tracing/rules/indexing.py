"""Indexing, gathering and scattering."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from pytest_neuralpower.tracing.fallbacks import NeedsForward, NoRule
from pytest_neuralpower.tracing.strides import Ints, broadcast_shapes

if TYPE_CHECKING:
    from pytest_neuralpower.tracing.recorder import Recorder
    from pytest_neuralpower.tracing.rules.table import Rule


def _is_advanced(item: Any) -> bool:
    if isinstance(item, Tensor):
        return item.ndim > 0 or item.is_meta or item.dtype is torch.bool
    return isinstance(item, (list, range)) or type(item).__module__ == "numpy"


def _count_true(mask: Tensor) -> int:
    if mask.is_meta:
        raise NeedsForward("it indexes with a boolean mask of activations")
    return int(torch.count_nonzero(mask))


def _index_shape(input: Tensor, index: Any) -> tuple[Ints, list[Tensor]] | None:
    """Shape of ``input[index]`` and the index tensors; ``None`` where it is a plain view."""
    items = index if isinstance(index, tuple) else (index,)
    if not any(map(_is_advanced, items)):
        return None
    basic: list[Any] = []  # the same index with every tensor replaced by full slices
    places: list[tuple[int, Ints]] = []  # dimension in the basic view, shape of the index
    tensors: list[Tensor] = []
    consumed = sum(
        (item.ndim or 1 if item.dtype in (torch.bool, torch.uint8) else 1)
        if isinstance(item, Tensor)
        else 0 if item is None or item is Ellipsis or isinstance(item, bool) else 1
        for item in items
    )  # fmt: skip
    at = 0
    for item in items:
        if item is Ellipsis:
            free = input.ndim - consumed
            basic += [slice(None)] * free
            at += free
        elif item is None:
            basic.append(None)
            at += 1
        elif _is_advanced(item):
            tensor = item if isinstance(item, Tensor) else torch.as_tensor(item)
            tensors.append(tensor)
            if tensor.dtype in (torch.bool, torch.uint8):
                if tensor.ndim == 0:
                    raise NoRule
                shape: Ints = (_count_true(tensor),)
                places += [(at + axis, shape) for axis in range(tensor.ndim)]
                basic += [slice(None)] * tensor.ndim
                at += tensor.ndim
            else:
                places.append((at, tuple(tensor.shape)))
                basic.append(slice(None))
                at += 1
        else:
            basic.append(item)
            if isinstance(item, slice):
                at += 1
    view = input[tuple(basic)].shape
    picked = broadcast_shapes(*(shape for _, shape in places))
    dims = [dim for dim, _ in places]
    rest = [size for dim, size in enumerate(view) if dim not in dims]
    # Neighbouring index tensors put their result in place, separated ones in front.
    start = dims[0] if dims == list(range(dims[0], dims[0] + len(dims))) else 0
    return (*rest[:start], *picked, *rest[start:]), tensors


def _getitem(recorder: Recorder, op: str, input: Tensor, index: Any) -> Tensor:
    """A view for numbers and slices; a gather for tensors and lists."""
    found = _index_shape(input, index)
    if found is None:
        return input[index]
    shape, tensors = found
    # Torch may keep a permuted source's order of dimensions; a contiguous result is assumed.
    return recorder.result("memory", op, (input, *tensors), shape, input.dtype)


def _setitem(recorder: Recorder, op: str, input: Tensor, index: Any, value: Any) -> None:
    """Writes the value into the part that the index names, and nothing else."""
    found = _index_shape(input, index)
    shape, tensors = (tuple(input[index].shape), []) if found is None else found
    if isinstance(value, Tensor):
        own = tuple(value.shape)
        while len(own) > len(shape) and own[0] == 1:
            own = own[1:]
        if broadcast_shapes(own, shape) != shape:
            raise NoRule
    recorder.record("memory", op, (value, *tensors), recorder.new(shape, input.dtype), input)


def _index_select(recorder: Recorder, op: str, input: Tensor, dim: int, index: Tensor) -> Tensor:
    shape = list(input.shape)
    if index.ndim > 1 or not -len(shape) <= dim < len(shape):
        raise NoRule
    shape[dim] = index.numel()
    return recorder.result("memory", op, (input, index), tuple(shape), input.dtype)


def _gather(
    recorder: Recorder,
    op: str,
    input: Tensor,
    dim: int,
    index: Tensor,
    *,
    sparse_grad: bool = False,
) -> Tensor:
    if input.ndim != index.ndim:
        raise NoRule
    return recorder.result("memory", op, (input, index), tuple(index.shape), input.dtype)


def _take_along_dim(
    recorder: Recorder, op: str, input: Tensor, indices: Tensor, dim: int | None = None
) -> Tensor:
    if dim is None or input.ndim != indices.ndim:
        raise NoRule
    dim %= input.ndim
    shape = [
        indices.shape[axis] if axis == dim else max(size, indices.shape[axis])
        for axis, size in enumerate(input.shape)
    ]
    return recorder.result("memory", op, (input, indices), tuple(shape), input.dtype)


def scatter(
    recorder: Recorder, op: str, input: Tensor, *args: Any, inplace: bool = False, **named: Any
) -> Tensor:
    """Copies the target, then writes the source over it; in place, only writes."""
    given = [*args, *named.values()]
    tensors = [item for item in given if isinstance(item, Tensor)]
    if not tensors or not isinstance(given[0], int) or input.ndim == 0:
        raise NoRule
    if inplace:
        recorder.record("memory", op, tensors, tensors[-1], input)
        return input
    return recorder.record("memory", op, (input, *tensors), recorder.like(input))


def _ranked(recorder: Recorder, op: str, input: Tensor, dim: int, size: int | None) -> Any:
    """Sorting has no formula here: its cost depends on the algorithm the device picks."""
    shape = list(input.shape)
    rank = max(len(shape), 1)
    if not -rank <= dim < rank:
        raise NoRule
    if size is not None and shape:
        if size > shape[dim]:
            raise NoRule
        shape[dim] = size
    if size is None:
        values, indices = recorder.like(input), recorder.like(input, torch.int64)
    else:
        values = recorder.new(tuple(shape), input.dtype)
        indices = recorder.new(tuple(shape), torch.int64)
    recorder.record("uncovered", op, (input,), (values, indices))
    return values, indices


def _topk(
    recorder: Recorder,
    op: str,
    input: Tensor,
    k: int,
    dim: int = -1,
    largest: bool = True,
    sorted: bool = True,
) -> Any:
    ranked = _ranked(recorder, op, input, dim, int(k))
    if input.ndim:
        recorder.chosen[input.shape[dim]] = int(k)
    return torch.return_types.topk(ranked)


def _sort(
    recorder: Recorder,
    op: str,
    input: Tensor,
    dim: int = -1,
    descending: bool = False,
    *,
    stable: bool | None = None,
) -> Any:
    return torch.return_types.sort(_ranked(recorder, op, input, dim, None))


def _argsort(
    recorder: Recorder,
    op: str,
    input: Tensor,
    dim: int = -1,
    descending: bool = False,
    *,
    stable: bool | None = None,
) -> Tensor:
    output: Tensor = _ranked(recorder, op, input, dim, None)[1]
    return output


RULES: Final[dict[Any, Rule]] = {
    "__getitem__": _getitem,
    "__setitem__": _setitem,
    "index_select": _index_select,
    "gather": _gather,
    "take_along_dim": _take_along_dim,
    **dict.fromkeys(("scatter", "scatter_add", "index_add", "index_copy", "index_fill"), scatter),
    "topk": _topk,
    "sort": _sort,
    "argsort": _argsort,
}
