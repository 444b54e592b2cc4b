"""Copies of a model to narrow: without values where that will do, and back as they were."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["copy_without_values", "kept_as_they_are"]


def copy_without_values(model: nn.Module) -> nn.Module:
    """A copy on the meta device: all of the model but its weights' values.

    Integer buffers keep their values: they are indices, which decide what the model computes.
    """
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if not tensor.is_floating_point() and not tensor.is_meta:
            continue
        empty = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
        )  # empty_like is a hundred times slower there
        if isinstance(tensor, nn.Parameter):
            # torch-pruning follows gradients, also of weights that the user has frozen.
            memo[id(tensor)] = nn.Parameter(empty, requires_grad=True)
        else:
            memo[id(tensor)] = empty
    return copy.deepcopy(model, memo)


@contextmanager
def kept_as_they_are(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Whatever happens inside to these modules' attributes and parameters is undone."""
    kept = []
    for module in modules:
        state = dict(module.__dict__)
        for name in ("_parameters", "_buffers"):
            state[name] = dict(state[name])
        kept.append((module, state))
    try:
        yield
    finally:
        for module, state in kept:
            module.__dict__.clear()
            module.__dict__.update(state)
