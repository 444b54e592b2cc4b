"""Example inputs for the function route: floats lose their data, integers keep theirs."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pytest_neuralpower.tracing.rules.table import REAL_ELEMENTS

__all__ = ["abstract_inputs", "batch_size", "input_tensors", "map_inputs", "not_a_tensor"]


def without_data(tensor: Tensor) -> Tensor:
    """The same shape, strides and dtype on the meta device; small integers stay as they are."""
    if tensor.is_meta:
        # A fresh one, so that writing in place does not reach the caller's.
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    floating = tensor.dtype.is_floating_point or tensor.dtype.is_complex
    if not floating and tensor.numel() <= REAL_ELEMENTS:
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def abstract_inputs(value: Any) -> Any:
    """Arguments with every tensor replaced, in containers and in objects such as a cache."""
    return map_inputs(value, without_data)


def map_inputs(value: Any, change: Any) -> Any:
    """Arguments with every tensor changed; containers and objects are copied, never altered."""
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
    if callable(value):  # a module among them
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
    """Tensors among arguments, in order, in containers and objects."""
    found: list[Tensor] = []

    def visit(item: Any, depth: int) -> None:
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, dict):
            for inner in item.values():
                visit(inner, depth + 1)
        elif isinstance(item, (list, tuple)):
            for inner in item:
                visit(inner, depth + 1)

    visit(value, 0)
    return found


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


def batch_size(tensors: list[Tensor]) -> int:
    """First dimension of the first tensor; 1 without one."""
    for tensor in tensors:
        return int(tensor.shape[0]) if tensor.ndim else 1
    return 1
