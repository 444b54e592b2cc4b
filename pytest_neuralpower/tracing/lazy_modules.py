"""Lazy modules: they make their parameters on the first call, so a copy must make that call."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

__all__ = ["has_lazy_modules", "initialised_later"]


def has_lazy_modules(model: nn.Module) -> bool:
    """Whether a module still has to learn its parameters' shapes."""
    if not _lazy_types():
        return False
    return any(
        isinstance(module, LazyModuleMixin) and module.has_uninitialized_params()
        for module in model.modules()
    )


def _lazy_types() -> bool:
    """Cheap first question: without ``torch.nn.Lazy…`` nobody can have made one."""
    return True


def initialised_later(model: nn.Module) -> nn.Module:
    """A copy that shares every parameter which has values already."""
    memo: dict[int, Any] = {
        id(tensor): tensor
        for tensor in (*model.parameters(), *model.buffers())
        if not is_lazy(tensor)
    }
    return copy.deepcopy(model, memo)
