"""Which module runs: paths as in ``named_modules``, kept while ``Module.__call__`` is watched."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch.nn import Module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["ModulePaths", "watched_calls"]

#: More names than this of one module are not followed: a structure that shares at every level
#: has exponentially many.
_MOST_NAMES = 1024

_lock = threading.RLock()


class ModulePaths:
    """Names of a model's modules.

    Attributes
    ----------
    modules
        Every module once, in ``named_modules`` order.
    names
        By a module's identity: its path, or all of them.
    """

    def __init__(self, model: Module) -> None:
        self.modules: list[Module] = []
        self.names: dict[int, str | list[str]] = {}
        self._calls: dict[tuple[int, str], int] = {}
        self._visit(model, "", ())

    def _visit(self, module: Module, name: str, above: tuple[int, ...]) -> None:
        if not self._name(module, name):
            return
        key = id(module)
        children = module._modules
        if not children or key in above:  # a module may hold itself
            return
        above = (*above, key)
        prefix = f"{name}." if name else ""
        names, modules = self.names, self.modules
        for child_name, child in children.items():
            if child is None:
                continue
            # A compiled module wraps the original, whose name is the one users know.
            path = name if child_name == "_orig_mod" else prefix + child_name
            if id(child) not in names and not child._modules:
                names[id(child)] = path  # most modules are leaves, met once
                modules.append(child)
            else:
                self._visit(child, path, above)

    def _name(self, module: Module, name: str) -> bool:
        """Take down one more name of a module; ``False`` if it has too many."""
        known = self.names.get(id(module))
        if known is None:
            self.names[id(module)] = name
            self.modules.append(module)
        elif isinstance(known, str):
            self.names[id(module)] = [known, name]
        elif len(known) < _MOST_NAMES:
            known.append(name)
        else:
            return False
        return True

    def of(self, module: Module, caller: str) -> str:
        """Path of a module called from the module at path ``caller``.

        A module with several names answers to those nearest to its caller, one after the other
        on successive calls.
        """
        name = self.names.get(id(module))
        if type(name) is str:
            return name
        if name is None:
            return self._made_inside(module, caller)
        near = list(name)
        scope = caller
        while True:
            inside = [one for one in near if not scope or one.startswith(f"{scope}.")]
            if inside:
                near = inside
                break
            scope = scope.rpartition(".")[0]
        call = self._calls.get((id(module), scope), 0)
        self._calls[id(module), scope] = call + 1
        return near[call % len(near)]

    @staticmethod
    def _made_inside(module: Module, caller: str) -> str:
        """A module that is not part of the model: made or held elsewhere."""
        name = type(module).__name__
        return f"{caller}.{name}" if caller else name


@contextmanager
def watched_calls(
    replacement: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> Iterator[None]:
    """Let ``replacement(original)`` answer module calls, of one trace at a time.

    ``Module.__call__`` is one class attribute for all; patching the method it calls instead of
    itself spares the interpreter the update of every subclass's slots (0.1 ms for 500 classes).
    """
    name = "_call_impl" if hasattr(Module, "_call_impl") else "__call__"
    with _lock:
        original = getattr(Module, name)
        setattr(Module, name, replacement(original))
        try:
            yield
        finally:
            setattr(Module, name, original)
