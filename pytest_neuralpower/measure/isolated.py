"""One layer alone: its call taken out of a running network, to be repeated under a meter."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from pytest_neuralpower.measure.trial import TrialSkipped

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_neuralpower.layers import Layer
    from pytest_neuralpower.measure.in_place import Calls

__all__ = ["repeated_call", "rotating"]

#: Operands in rotation are this many times larger than the last cache together, so that none is
#: still there when its turn comes again; but no more than so many copies.
_TIMES_CACHE: Final = 3
_MOST_COPIES: Final = 64


class _Taking(TorchFunctionMode):
    """Keeps the arguments of one call, as they are before it."""

    def __init__(self, calls: Calls, place: int) -> None:
        super().__init__()
        self._calls, self._place = calls, place
        self._next = 0
        self.taken: tuple[Any, Any, Any] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        functions = self._calls.functions
        if self._next < len(functions) and func is functions[self._next]:
            if self._next == self._place:
                self.taken = (func, *_copied((args, kwargs)))
            self._next += 1
        return func(*args, **kwargs)


def repeated_call(
    model: Any, inputs: Sequence[Any], calls: Calls, layer: Layer, *, cache_bytes: float
) -> Callable[[], Any]:
    """What repeats the call that lists a layer of the network's trace, its operands rotating.

    Raises
    ------
    TrialSkipped
        No call lists that layer alone.
    """
    place = calls.place_of(layer)
    with _Taking(calls, place) as mode:
        model(*inputs)
    if mode.taken is None:
        raise TrialSkipped(f"{type(model).__name__}: {layer.op} {layer.path} was not called again")
    func, args, kwargs = mode.taken
    return rotating(func, args, kwargs, cache_bytes=cache_bytes)


def rotating(
    func: Callable[..., Any], args: Any, kwargs: Any, *, cache_bytes: float
) -> Callable[[], Any]:
    """Calls ``func`` with copies of its operands, one after the other, as caches would be cold."""
    leaves, _ = tree_flatten((args, kwargs))
    size = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor)) or 1
    copies = min(max(math.ceil(_TIMES_CACHE * cache_bytes / size), 1), _MOST_COPIES)
    operands = [(args, kwargs), *(_copied((args, kwargs)) for _ in range(copies - 1))]
    turn = 0

    def call() -> Any:
        nonlocal turn
        given, named = operands[turn % copies]
        turn += 1
        return func(*given, **named)

    return call


def _copied(value: Any) -> Any:
    leaves, spec = tree_flatten(value)
    return tree_unflatten(
        [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], spec
    )
