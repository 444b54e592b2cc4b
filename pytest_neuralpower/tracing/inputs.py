"""Example inputs for the function route: floats lose their data, integers keep theirs."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pytest_neuralpower.tracing.fallbacks import meta_like
from pytest_neuralpower.tracing.rules.table import REAL_ELEMENTS


def without_data(tensor: Tensor) -> Tensor:
    """Without data, a fresh one if it had none, so that writing in place does not reach the
    caller's; small integers stay as they are."""
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
    """Tensors among arguments, in order, in nested containers."""
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    if not isinstance(value, (dict, list, tuple)):
        return []
    return [tensor for item in items for tensor in input_tensors(item)]


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
    return int(tensors[0].shape[0]) if tensors and tensors[0].ndim else 1
