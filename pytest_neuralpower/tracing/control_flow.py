"""Operations that take functions (``torch.cond`` and its kin, also in exported graphs).

Each does here what it means in Python, so that the operations of the functions are listed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch

from pytest_neuralpower.tracing.torch_private import OPERATOR_COMPILE, OPERATOR_MODULE, tree_map


def _cond(predicate: Any, if_true: Any, if_false: Any, operands: Any = ()) -> Any:
    return (if_true if predicate else if_false)(*operands)


def _while_loop(condition: Any, body: Any, carried: Any, more: Any = (), /, **_: Any) -> Any:
    while condition(*carried, *more):
        carried = body(*carried, *more)
    return carried


def _map(function: Any, mapped: Sequence[Any], more: Any = ()) -> Any:
    results = [function(*parts, *more) for parts in zip(*mapped, strict=True)]
    return tree_map(lambda *each: torch.stack(each), *results)


def _scan(combine: Any, carried: Sequence[Any], scanned: Sequence[Any], more: Any = ()) -> Any:
    outputs = []
    count = len(carried)
    for parts in zip(*scanned, strict=True):
        made = combine(*carried, *parts, *more)
        carried = made[:count]
        outputs.append(made[count:])
    return (*carried, *(torch.stack(each) for each in zip(*outputs, strict=True)))


def _with_grad_mode(_enabled: bool, function: Any, *args: Any, **kwargs: Any) -> Any:
    # The trace has its own mode, and what is computed is the same.
    return function(*args, **kwargs)


def _with_autocast(
    device: str, dtype: Any, enabled: bool, cache: Any, function: Any, *args: Any, **kwargs: Any
) -> Any:
    with torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=cache):
        return function(*args, **kwargs)


def _call(function: Any, *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def _call_subgraph(graph: Any, _name: Any, *operands: Any) -> Any:
    return graph(*operands)


#: By the operation's name.
OPERATIONS: Final[dict[str, Callable[..., Any]]] = {
    "cond": _cond,
    "while_loop": _while_loop,
    "map_impl": _map,
    "scan": _scan,
    "wrap_with_set_grad_enabled": _with_grad_mode,
    "wrap_with_autocast": _with_autocast,
    **dict.fromkeys(("wrap", "tag_activation_checkpoint"), _call),
    "invoke_subgraph": _call_subgraph,
}


@contextmanager
def uncompiled_operators() -> Iterator[None]:
    """Let the functions that call these operations call them as they are, where torch would
    compile them first."""
    module: Any = sys.modules.get(OPERATOR_MODULE)
    original = getattr(module, OPERATOR_COMPILE, None)
    if original is None:
        yield
        return

    def call(function: Any, args: Any, kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))

    setattr(module, OPERATOR_COMPILE, call)
    try:
        yield
    finally:
        setattr(module, OPERATOR_COMPILE, original)
