"""The model and the process come back as they were, also after an error."""

from __future__ import annotations

import random
import sys
from collections import OrderedDict, defaultdict, deque
from contextlib import contextmanager
from itertools import chain, islice
from operator import is_, itemgetter
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from pytest_neuralpower.tracing.fallbacks import meta_like, tensors_in
from pytest_neuralpower.tracing.torch_private import (
    BUFFERS,
    CHILDREN,
    HOOK_OPTIONS,
    PARAMETERS,
    POST_HOOKS,
    PRE_HOOKS,
    Attributes,
    base_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


class WriteJournal:
    """Undoes writes into real tensors, and knows which real tensors hold unknown values.

    Attributes
    ----------
    stale
        Real tensors into which an activation was written, by identity, with a stand-in without
        data that answers for them from then on.
    """

    def __init__(self) -> None:
        self.stale: dict[int, tuple[Tensor, Tensor]] = {}
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._assigned: list[tuple[Tensor, str, Any]] = []

    def before(self, func: Any, args: Any, kwargs: Any) -> None:
        """Keep what a function is about to overwrite."""
        for tensor in written_by(func, args, kwargs):
            self.keep(tensor)

    def keep(self, tensor: Tensor) -> None:
        """Remember the values of a tensor (of the whole that it is a view of)."""
        whole = _whole(tensor)
        if not whole.is_meta and id(whole) not in self._before:
            self._before[id(whole)] = (whole, whole.detach().clone())

    def before_assignment(self, tensor: Tensor, attribute: str) -> None:
        """Remember ``data``, ``grad`` or ``requires_grad``, about to be replaced."""
        if not tensor.is_meta or type(tensor) is Parameter:
            self._assigned.append((tensor, attribute, getattr(tensor, attribute)))

    def undo(self) -> None:
        for tensor, attribute, value in reversed(self._assigned):
            setattr(tensor, attribute, value)
        self._assigned.clear()
        with torch.no_grad():
            for whole, values in self._before.values():
                if whole.shape == values.shape:
                    whole.detach().copy_(values)
        self._before.clear()
        self.stale.clear()

    def mark_stale(self, tensor: Tensor) -> Tensor:
        """Returns what stands in for a tensor (as a part of what stands in for its whole)."""
        whole = _whole(tensor)
        if id(whole) not in self.stale:
            self.stale[id(whole)] = (whole, meta_like(whole))
        return self._stand_in(tensor)

    def _stand_in(self, tensor: Tensor) -> Tensor:
        whole = _whole(tensor)
        stand_in = self.stale[id(whole)][1]
        if tensor is whole:
            return stand_in
        offset = tensor.storage_offset() - whole.storage_offset()
        return stand_in.as_strided(tensor.shape, tensor.stride(), offset)

    def is_stale(self, tensor: Tensor) -> bool:
        return id(_whole(tensor)) in self.stale

    def touches(self, values: Iterable[Any]) -> bool:
        """Whether a stale tensor is among (nested) values."""
        for value in values:
            if isinstance(value, Tensor):
                if not value.is_meta and self.is_stale(value):
                    return True
            elif isinstance(value, (tuple, list)) and self.touches(value):
                return True
        return False

    def current(self, value: Any) -> Any:
        """Arguments with every stale tensor replaced by its stand-in."""
        if isinstance(value, Tensor):
            return self._stand_in(value) if not value.is_meta and self.is_stale(value) else value
        if type(value) in (tuple, list):
            return type(value)([self.current(item) for item in value])
        if type(value) is dict:
            return {name: self.current(item) for name, item in value.items()}
        return value


def written_by(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Tensors that a function writes into."""
    name = getattr(func, "__name__", "")
    written = tensors_in(kwargs["out"]) if kwargs.get("out") is not None else []
    # relu_, __iadd__ and __setitem__ write into their first argument; __add__ does not.
    changes = name.endswith("_") and (not name.endswith("__") or name in _INPLACE_OPERATORS)
    if changes or kwargs.get("inplace"):
        written += tensors_in(args[:1])
    return written


_INPLACE_OPERATORS: Final = frozenset(
    ("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__idiv__", "__ipow__",
     "__imod__", "__ifloordiv__", "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__",
     "__set__")
)  # fmt: skip


def _whole(tensor: Tensor) -> Tensor:
    """What a tensor is a view of, or itself."""
    base = base_of(tensor)
    return tensor if base is None else base


@contextmanager
def global_state() -> Iterator[None]:
    """Random states, default dtype and gradient mode, as they were on entry."""
    torch_state = torch.get_rng_state()
    python_state = random.getstate()
    numpy_random = sys.modules.get("numpy.random")
    numpy_state = numpy_random.get_state() if numpy_random is not None else None
    dtype = torch.get_default_dtype()
    grad = torch.is_grad_enabled()
    initialised = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if initialised else None
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        if numpy_random is not None and numpy_state is not None:
            numpy_random.set_state(numpy_state)
        if torch.get_default_dtype() is not dtype:
            torch.set_default_dtype(dtype)
        if torch.is_grad_enabled() is not grad:
            torch.set_grad_enabled(grad)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


#: Types whose values hold nothing that could change.
_ATOMS: Final = frozenset(
    (int, float, bool, str, bytes, complex, type(None), type, torch.dtype, torch.device, torch.Size)
)
_CONTAINERS: Final = frozenset((list, dict, set, deque, OrderedDict, defaultdict))

#: Attributes that every module has; their contents are kept separately, where they matter.
_STANDARD: Final = frozenset(vars(Module()))
_contents_of: Final = itemgetter(PARAMETERS, BUFFERS, CHILDREN, PRE_HOOKS, POST_HOOKS)

#: How deep to follow containers and objects that a module holds.
_DEPTH: Final = 4


class _ModuleState:
    """What a model's modules, and the containers and plain objects they hold, looked like."""

    def __init__(self, modules: Sequence[Module]) -> None:
        # One look at every module has to be quick: it is the largest fixed cost of a trace.
        treatments = {kind: _treatment(kind) for kind in set(map(type, modules))}
        seen = [module for module in modules if treatments[type(module)] != "compiled"]
        self._own = [module.__dict__ for module in seen]
        self._own_before = [own.copy() for own in self._own]
        contents = [*chain.from_iterable(map(_contents_of, self._own))]
        self._filled = [each for each in contents if each]
        self._filled_before = [each.copy() for each in self._filled]
        self._empty = [each for each in contents if not each]
        self._objects: list[tuple[Attributes, Attributes]] = []
        self._containers: list[tuple[Any, Any]] = []
        self._seen: set[int] = set()
        for module in seen:
            if treatments[type(module)] == "custom":
                # A module sets its standard attributes first, all at once.
                own = module.__dict__
                first = len(_STANDARD) if next(iter(own)) in _STANDARD else 0
                for value in islice(own.values(), first, None):
                    if type(value) not in _ATOMS:
                        self._keep(value, 0)

    def _keep(self, value: Any, depth: int) -> None:
        """Remember what a mutable value holds, and what those values hold."""
        kind = type(value)
        if depth > _DEPTH or id(value) in self._seen or isinstance(value, (Module, Tensor)):
            return
        if kind in _CONTAINERS:
            self._seen.add(id(value))
            self._containers.append((value, value.copy()))
            inner = value.values() if isinstance(value, dict) else value
        elif kind is tuple:
            inner = value
        else:
            own = getattr(value, "__dict__", None)
            if type(own) is not dict or callable(value):
                return
            self._seen.add(id(value))
            self._objects.append((own, own.copy()))
            inner = own.values()
        for item in inner:
            if type(item) not in _ATOMS:
                self._keep(item, depth + 1)

    def restore(self) -> None:
        if not self._is_unchanged():
            for now, before in (
                *zip(self._own, self._own_before, strict=True),
                *zip(self._filled, self._filled_before, strict=True),
            ):
                if not _is_same(now, before):
                    _put_back(now, before)
            for now in self._empty:
                now.clear()
            for own in self._own:
                for name in HOOK_OPTIONS:
                    for gone in own[name].keys() - own[PRE_HOOKS].keys() - own[POST_HOOKS].keys():
                        del own[name][gone]
        for now, before in self._objects:
            if not _is_same(now, before):
                _put_back(now, before)
        for now, before in self._containers:
            _put_back(now, before)

    def _is_unchanged(self) -> bool:
        """Equal attributes, identical contents: compared at once, as most forwards leave all."""
        try:
            same = self._own == self._own_before
        except Exception:  # a replaced tensor or array has no truth value
            return False
        values = [*chain.from_iterable(map(dict.values, self._filled))]
        before = [*chain.from_iterable(map(dict.values, self._filled_before))]
        filled = len(values) == len(before) and all(map(is_, values, before))
        return same and filled and not any(self._empty)


def _is_same(now: Attributes, before: Attributes) -> bool:
    return now.keys() == before.keys() and all(map(is_, now.values(), before.values()))


def _treatment(kind: type) -> str:
    """How much of a module type's state a forward may change."""
    if issubclass(kind, torch.jit.ScriptModule):
        return "compiled"  # out of reach here; its buffers are kept by the journal
    # Torch's own modules hold no containers that a forward would fill.
    return "plain" if kind.__module__.startswith("torch.nn.modules.") else "custom"


def _put_back(now: Any, before: Any) -> None:
    """Contents of a dictionary, set, list or deque."""
    now.clear()
    if isinstance(now, (dict, set)):
        now.update(before)
    else:
        now.extend(before)


@contextmanager
def module_state(modules: Sequence[Module]) -> Iterator[None]:
    """Attributes, parameters, buffers and hooks of the modules, as they were on entry."""
    state = _ModuleState(modules)
    try:
        yield
    finally:
        state.restore()
