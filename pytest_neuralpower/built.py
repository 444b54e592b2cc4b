"""How a model was built, for as long as it lives: what a command must be told to build it again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

__all__ = ["Origin", "origin_of", "remember"]


class Origin(NamedTuple):
    """``factory(*args, **kwargs)`` returned the model."""

    factory: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


_ORIGINS: WeakKeyDictionary[Any, Origin] = WeakKeyDictionary()


def remember(model: Any, origin: Origin) -> None:
    """Keep a model's origin; of what cannot be referred to weakly, nothing is kept."""
    try:
        _ORIGINS[model] = origin
    except TypeError:
        return


def origin_of(model: Any) -> Origin | None:
    """What built the model, where this package did."""
    try:
        return _ORIGINS.get(model)
    except TypeError:
        return None
