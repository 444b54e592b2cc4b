"""Lazy modules: they make their parameters on the first call, so a copy must make that call."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

__all__ = ["has_lazy_modules", "initialised_later"]


def has_lazy_modules(modules: Sequence[nn.Module]) -> bool:
    """Whether a module still has to learn its parameters' shapes."""
    if not any(issubclass(kind, LazyModuleMixin) for kind in set(map(type, modules))):
        return False
    return any(
        isinstance(module, LazyModuleMixin) and module.has_uninitialized_params()
        for module in modules
    )


def initialised_later(model: nn.Module) -> nn.Module:
    """A copy that shares every parameter which has values already."""
    memo: dict[int, Any] = {
        id(tensor): tensor
        for tensor in (*model.parameters(), *model.buffers())
        if not is_lazy(tensor)
    }
    return copy.deepcopy(model, memo)
