"""The table from torch's functions to what the tracer does with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import torch

from pytest_neuralpower.tracing.torch_private import NATIVE_CLASS, NATIVE_MODULE

__all__ = ["TABLE", "Entry", "Rule", "enter", "functions_named", "rule"]

#: A rule takes the recorder, then the arguments of its function; it lists what the operation
#: costs and returns tensors without data. It raises :class:`NoRule` (or fails) where it does not
#: know, and must not list anything before it does.
Rule = Callable[..., Any]


class Entry(NamedTuple):
    """How to treat one function.

    Attributes
    ----------
    treatment
        ``rule`` (shapes by ``rule``), ``view`` (free: torch's own view of a tensor without data),
        ``plain`` (attribute reads, answered as they are), ``read`` (needs values), ``factory``
        (makes a tensor from nothing), ``device`` (says where a tensor lives).
    op
        The name a layer gets.
    rule
        Only for ``rule``, and for a ``view`` that does not always stay one.
    """

    treatment: str
    op: str
    rule: Rule | None = None


TABLE: Final[dict[Any, Entry]] = {}

#: Where torch's functions live. Of its modules the dictionaries, for most names are in some of
#: them only, and torch takes long to say that it has none of a name.
_MODULES: Final = tuple(map(vars, (torch, torch.nn.functional, NATIVE_MODULE)))
_CLASSES: Final = (torch.Tensor, NATIVE_CLASS)


def functions_named(name: str) -> Iterator[Any]:
    """Every public callable of torch with this name: function, method, functional."""
    found = [module.get(name) for module in _MODULES]
    found += [getattr(each, name, None) for each in _CLASSES]
    for function in found:
        if callable(function) and not isinstance(function, type):
            yield function


def enter(entry: Entry, *names: str) -> None:
    """Put an entry under every function with one of these names."""
    for name in names:
        for function in functions_named(name):
            TABLE.setdefault(function, entry)


def rule(*names: str, op: str | None = None) -> Callable[[Rule], Rule]:
    """Make the decorated function the rule of every torch function with one of these names."""

    def register(function: Rule) -> Rule:
        for name in names:
            enter(Entry("rule", op or name.strip("_"), function), name)
        return function

    return register


def method(name: str, entry: Entry) -> None:
    """Put an entry under one method or property of ``Tensor``."""
    attribute = getattr(torch.Tensor, name, None)
    if attribute is not None:
        TABLE[attribute if callable(attribute) else attribute.__get__] = entry
