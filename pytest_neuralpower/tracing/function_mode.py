"""The function route: every call of torch's public functions, answered without computing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

from pytest_neuralpower.tracing import fallbacks
from pytest_neuralpower.tracing.rules import TABLE
from pytest_neuralpower.tracing.rules.factories import FREE
from pytest_neuralpower.tracing.rules.table import Entry
from pytest_neuralpower.tracing.signals import NeedsAten, NeedsForward

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pytest_neuralpower.tracing.recorder import Recorder
    from pytest_neuralpower.tracing.state import WriteJournal

__all__ = ["REAL_ELEMENTS", "FunctionTracer"]

#: Integer and boolean tensors up to this many elements keep their values.
REAL_ELEMENTS = 1_000_000
#: Floating tensors made inside forward keep theirs up to this many: enough for masks and indices.
REAL_FLOATS = 65_536

_UNKNOWN = Entry("unknown", "")


def _no_level() -> None: ...


#: Private: the innermost ``vmap`` or ``torch.func.grad``; without it those are not noticed.
_functorch_level: Callable[[], Any] = getattr(
    getattr(torch._C, "_functorch", None), "peek_interpreter_stack", _no_level
)


class FunctionTracer(TorchFunctionMode):
    """Answers torch functions by rule, and lists them.

    A tensor is *abstract* if its values are not known: activations (on the meta device), and
    parameters, whose values a rule never needs. Whatever has only real operands (integer inputs,
    masks, positions) is computed as usual.

    Parameters
    ----------
    recorder
        Receives the layers.
    journal
        Takes back what the model writes in place into its own tensors.
    device
        Where the example inputs were: what ``tensor.device`` answers.
    compute
        Run every operation for real and only list it: the forward route.
    """

    def __init__(
        self,
        recorder: Recorder,
        journal: WriteJournal,
        device: torch.device,
        *,
        compute: bool = False,
    ) -> None:
        super().__init__()
        self.recorder = recorder
        self.journal = journal
        self.device = device
        self.compute = compute

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        treatment, op, rule = TABLE.get(func, _UNKNOWN)
        if kwargs is None:
            kwargs = {}
        if treatment == "plain":
            return func(*args, **kwargs)
        if treatment == "rule":
            return self._rule(func, op, rule, args, kwargs)
        if treatment == "view":
            return self._view(func, op, args, kwargs)
        return getattr(self, f"_{treatment}")(func, op, args, kwargs)

    def _rule(self, func: Any, op: str, rule: Any, args: Any, kwargs: Any) -> Any:
        if self.compute or not (self.is_abstract(args) or self.is_abstract(kwargs.values())):
            return self._run(func, op, rule, args, kwargs)
        if _functorch_level() is not None:
            raise NeedsAten("it uses vmap or torch.func inside forward")
        journal = self.journal
        if journal.stale:
            args, kwargs = journal.current(args), journal.current(kwargs)
        try:
            result = rule(self.recorder, *args, **kwargs)
        except Exception:
            return self._fall_back(func, op, args, kwargs)
        if (result is None or (args and result is args[0])) and not args[0].is_meta:
            journal.mark_stale(args[0])  # a real tensor now holds an unknown activation
        return result

    def is_abstract(self, values: Iterable[Any]) -> bool:
        """Whether any tensor among (nested) values has unknown values."""
        for value in values:
            kind = type(value)
            if kind is Tensor:
                if value.is_meta or value.numel() > REAL_ELEMENTS:
                    return True
                if self.journal.stale and self.journal.is_stale(value):
                    return True
            elif kind is Parameter:
                self.recorder.seen.add(id(value))
                # One number (a temperature, a scale) is cheap to compute with, and may be read.
                if value.is_meta or value.numel() > 1:
                    return True
            elif kind is tuple or kind is list:
                if self.is_abstract(value):
                    return True
            elif isinstance(value, Tensor) and (value.is_meta or value.numel() > REAL_ELEMENTS):
                return True
        return False

    def _run(self, func: Any, op: str, rule: Any, args: Any, kwargs: Any) -> Any:
        """Compute for real, and list what was computed."""
        recorder = self.recorder
        args, kwargs = self._at_home(op, args, kwargs)
        before = len(recorder.layers)
        covered = False
        # The rule comes first: an operation in place would change what it describes.
        if rule is not None:
            try:
                rule(recorder, *args, **kwargs)
                covered = True
            except Exception:
                del recorder.layers[before:]
        self.journal.before(func, args, kwargs)
        if func is Tensor.cuda:
            return args[0]
        with fallbacks.named_errors(op, args, kwargs):
            result = func(*args, **kwargs)
        if not covered:
            fallbacks.list_uncovered(recorder, func, op, args=args, kwargs=kwargs, result=result)
        return result

    def _at_home(self, op: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Arguments with every device named inside forward replaced by the inputs' one."""
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": self.device}
        if op == "to" and len(args) > 1:
            args = tuple(
                self.device
                if isinstance(arg, torch.device) or (isinstance(arg, str) and place)
                else arg
                for place, arg in enumerate(args)
            )
        return args, kwargs

    def _view(self, func: Any, op: str, args: Any, kwargs: Any) -> Any:
        if args and type(args[0]) is Parameter:
            self.recorder.seen.add(id(args[0]))
        if self.journal.stale:
            args = self.journal.current(args)
        try:
            return func(*args, **kwargs)
        except (RuntimeError, IndexError, ValueError) as error:
            raise fallbacks.mismatch(op, args, kwargs, error) from error

    def _read(self, func: Any, op: str, args: Any, kwargs: Any) -> Any:
        if not self.compute:
            for value in (*args, *kwargs.values()):
                if isinstance(value, Tensor) and (value.is_meta or self.journal.is_stale(value)):
                    raise NeedsForward(f"it reads the value of an activation ({op})")
        self._mark_seen(args)
        return func(*args, **kwargs)

    def _factory(self, func: Any, op: str, args: Any, kwargs: Any) -> Any:
        """A new tensor: with values while small, without beyond."""
        if self.compute:
            args, kwargs = self._at_home(op, args, kwargs)
            result = func(*args, **kwargs)
        else:
            limited = {**kwargs, "device": "meta"}
            if op in ("tensor", "as_tensor", "from_numpy", "asarray", "new_tensor"):
                return self._wrap(func, op, args, kwargs)
            limited.pop("pin_memory", None)
            limited.pop("generator", None)
            result = func(*args, **limited)
            floating = result.dtype.is_floating_point or result.dtype.is_complex
            if result.numel() <= (REAL_FLOATS if floating else REAL_ELEMENTS):
                result = func(*args, **{**kwargs, "device": "cpu"})
        if op not in FREE:
            self.recorder.record("memory", op, (), (result,))
        return result

    def _wrap(self, func: Any, op: str, args: Any, kwargs: Any) -> Any:
        """A tensor around given data: numbers, arrays, or another tensor."""
        if "device" in kwargs:
            kwargs = {**kwargs, "device": None}
        source = args[-1] if args else None
        if isinstance(source, Tensor) and source.is_meta:
            dtype = kwargs.get("dtype") or source.dtype
            return TABLE[Tensor.to].rule(self.recorder, source, dtype)  # type: ignore[misc]
        if op == "new_tensor" and args[0].is_meta:
            return torch.tensor(args[1], dtype=kwargs.get("dtype") or args[0].dtype)
        return func(*args, **kwargs)

    def _device(self, func: Any, op: str, args: Any, kwargs: Any) -> Any:
        if self.compute:
            return func(*args, **kwargs)
        if op == "device":
            return self.device
        if op == "get_device":
            return -1 if self.device.index is None else self.device.index
        return op == f"is_{self.device.type}"

    def _autograd(self, func: Any, _op: str, args: Any, kwargs: Any) -> Any:
        if self.compute:
            return func(*args, **kwargs)
        raise NeedsAten("it differentiates inside forward")

    def _unknown(self, func: Any, _op: str, args: Any, kwargs: Any) -> Any:
        op = fallbacks.name_of(func)
        if fallbacks.is_plain(func):
            return func(*args, **kwargs)
        if self.compute or (not self.is_abstract(args) and not self.is_abstract(kwargs.values())):
            return self._run(func, op, None, args, kwargs)
        if _functorch_level() is not None:
            raise NeedsAten("it uses vmap or torch.func inside forward")
        return self._fall_back(func, op, args, kwargs)

    def _fall_back(self, func: Any, op: str, args: Any, kwargs: Any) -> Any:
        self._mark_seen(args)
        self._mark_seen(kwargs.values())
        return fallbacks.answer(self.recorder, func, op, args, kwargs)

    def _mark_seen(self, values: Iterable[Any]) -> None:
        for value in values:
            if type(value) is Parameter:
                self.recorder.seen.add(id(value))
            elif isinstance(value, (list, tuple)):
                self._mark_seen(value)
