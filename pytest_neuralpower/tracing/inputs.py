"""Example inputs for the function route: floats lose their data, integers keep theirs."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from pytest_neuralpower.tracing.fallbacks import meta_like
from pytest_neuralpower.tracing.rules.table import REAL_ELEMENTS


def without_data(tensor: Tensor) -> Tensor:
    """Without data, a fresh one if it had none, so that writing in place does not reach the
    caller's; small integers stay as they are."""
    if tensor.layout is not torch.strided and not tensor.is_nested:
        return tensor  # a sparse one: what it costs depends on how many values it has
    dtype = tensor.dtype
    floating = dtype.is_floating_point or dtype.is_complex
    real = not (tensor.is_meta or floating) and tensor.numel() <= REAL_ELEMENTS
    return tensor if real else meta_like(tensor)


def map_inputs(value: Any, change: Any) -> Any:
    """Arguments with every tensor changed, in containers and in objects such as a cache.

    Containers and objects are copied, never altered.
    """
    if isinstance(value, Tensor):
        return change(value)
    kind = type(value)
    if value is None or kind in (int, float, bool, str, bytes, torch.dtype, torch.device):
        return value
    if isinstance(value, tuple) or kind is list:
        items = [map_inputs(item, change) for item in value]
        return kind(*items) if hasattr(kind, "_fields") else kind(items)
    if kind is dict:
        return {key: map_inputs(item, change) for key, item in value.items()}
    if callable(value) and not input_tensors(value):  # a module among them
        return value
    # A cache, a dataclass, a model's output: a deep copy whose tensors are changed on the way.
    with _DeepCopy(change):
        return copy.deepcopy(value)


class _DeepCopy(TorchFunctionMode):
    """Changes tensors where ``copy.deepcopy`` would copy them."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change = change

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") == "__deepcopy__":
            tensor, memo = args
            memo[id(tensor)] = result = self.change(tensor)
            return result
        return func(*args, **(kwargs or {}))


def input_tensors(value: Any) -> list[Tensor]:
    """Tensors among arguments, in order, in nested containers and objects."""
    return list(_tensors(value, set(), 0))


#: How deep to look for tensors in objects: a graph's are three below it.
_DEPTH: Final = 8


def _tensors(value: Any, seen: set[int], depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth < _DEPTH and id(value) not in seen:
        seen.add(id(value))
        for item in _members(value):
            if item is not None and type(item) not in (int, float, bool, str):
                yield from _tensors(item, seen, depth + 1)


def _members(value: Any) -> Iterable[Any]:
    """What a container or an object holds."""
    held: Iterable[Any]
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, (list, tuple)):
        return value
    if isinstance(value, (torch.nn.Module, type)):
        return ()
    own = getattr(value, "__dict__", None)
    if own is not None:
        held = own.values()
        return held
    slots = getattr(type(value), "__slots__", ())
    names = (slots,) if isinstance(slots, str) else slots
    return [getattr(value, name) for name in names if hasattr(value, name)]


def not_a_tensor(args: Any, kwargs: Any) -> str | None:
    """What looks like a tensor among inputs that a model refused, and what to give instead."""
    named = [(f"argument {number}", value) for number, value in enumerate(args, 1)]
    for name, value in (*named, *kwargs.items()):
        items = value.values() if isinstance(value, dict) else [value]
        if any(type(item).__module__ == "numpy" for item in items):
            return f"{name} is a numpy array: give torch.from_numpy(array)"
        if isinstance(value, (list, tuple)) and value and all(type(item) is int for item in value):
            sizes = ", ".join(map(str, value))
            return f"{name} is a shape: give a tensor of it, torch.empty({sizes})"
    return None


def batch_size(args: Any, kwargs: Any) -> int:
    """Samples in one call, as its first argument with a tensor tells.

    The first dimension of a tensor, or of the first one in a container; what an object that holds
    tensors says (``num_graphs``, ``batch_size``), or the first dimension that all of them have.
    1 without a tensor, 0 where an object's tensors disagree.
    """
    samples = _samples((args, kwargs))
    return 1 if samples is None else samples


def token_count(args: Any, kwargs: Any) -> int:
    """Tokens in one call: of whole numbers ``(batch, length)`` that are ``input_ids`` or the first
    tensor, or of embeddings ``(batch, length, width)`` named ``inputs_embeds``; 0 where there are
    none."""
    ids, embedded = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
    if ids is None and isinstance(embedded, Tensor) and embedded.ndim == 3:
        return int(embedded.shape[0] * embedded.shape[1])
    if ids is None:
        ids = next(iter(input_tensors((args, kwargs))), None)
    whole = isinstance(ids, Tensor) and ids.ndim == 2 and ids.dtype in (torch.int64, torch.int32)
    return ids.numel() if whole else 0


def _samples(value: Any) -> int | None:
    if isinstance(value, Tensor):
        return int(value.shape[0]) if value.ndim else 1
    if isinstance(value, PackedSequence):
        return int(value.batch_sizes[0])
    if isinstance(value, (Mapping, list, tuple)):
        for item in _members(value):
            samples = _samples(item)
            if samples is not None:
                return samples
        return None
    return _samples_of_object(value)


def _samples_of_object(value: Any) -> int | None:
    tensors = input_tensors(value)
    if not tensors:
        return None
    said = _said(value)
    if said is not None:
        return said
    sizes = {int(tensor.shape[0]) for tensor in tensors if tensor.ndim} or {1}
    return sizes.pop() if len(sizes) == 1 else 0


def _said(value: Any) -> int | None:
    """How many samples an object says it has."""
    for name in ("num_graphs", "batch_size"):
        try:
            said = getattr(value, name)
        except Exception:
            continue
        if isinstance(said, torch.Size) and said:
            return said[0]
        if type(said) is int:
            return said
    return None
