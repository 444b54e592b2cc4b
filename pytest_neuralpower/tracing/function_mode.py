"""The function route: every call of torch's public functions, answered without computing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

from pytest_neuralpower.tracing import fallbacks, unruled
from pytest_neuralpower.tracing.cuda import CONVERTING, FLOAT32
from pytest_neuralpower.tracing.fallbacks import NeedsAten, NeedsForward, tensors_in
from pytest_neuralpower.tracing.rules import entry_of
from pytest_neuralpower.tracing.rules.memory import cast
from pytest_neuralpower.tracing.rules.table import (
    DYNAMIC,
    FREE,
    LEAVES_TORCH,
    REAL_ELEMENTS,
    REAL_FLOATS,
    WRAPPERS,
    is_large,
)
from pytest_neuralpower.tracing.state import written_by
from pytest_neuralpower.tracing.torch_private import (
    any_autocast,
    base_of,
    functorch_level,
    is_dual,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_neuralpower.tracing.recorder import Recorder
    from pytest_neuralpower.tracing.state import WriteJournal

#: Arguments of a factory that make sense for real tensors only.
_OF_VALUES = ("device", "pin_memory", "generator")

#: Torch takes numpy's spelling of some arguments.
_NUMPY_NAMES = {"axis": "dim", "keepdims": "keepdim", "x": "input", "x1": "input", "x2": "other"}


def _too_many(tensor: Tensor) -> bool:
    """Too large to compute with for the sake of its values."""
    count = tensor.numel()
    if count > REAL_FLOATS and tensor.layout is not torch.strided:
        return False  # it holds few of them
    return count > REAL_FLOATS and (count > REAL_ELEMENTS or tensor.is_floating_point())


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
        self._threads: int | None = None

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        if self._threads is not None:
            torch.set_num_threads(self._threads)

    def _use_one_thread(self) -> None:
        """What is computed here is small: waking other threads for it takes longer than it does,
        and on a busy machine a hundred times longer."""
        if self._threads is None and not self.compute:
            self._threads = torch.get_num_threads()
            torch.set_num_threads(1)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        treatment, op, rule = entry_of(func)
        if kwargs is None:
            kwargs = {}
        if treatment == "plain":
            return func(*args, **kwargs)
        if treatment == "rule":
            return self._rule(func, op, rule, args, kwargs)
        if treatment == "view":
            return self._view(func, op, args, kwargs)
        return _TREATMENTS[treatment](self, func, op, args, kwargs)

    def _rule(self, func: Any, op: str, rule: Any, args: Any, kwargs: Any) -> Any:
        if self.compute or not (self.is_abstract(args) or self.is_abstract(kwargs.values())):
            return self._run(func, op, rule, args, kwargs)
        if functorch_level() is not None:
            raise NeedsAten("it uses vmap or torch.func inside forward")
        journal = self.journal
        if journal.stale and (journal.touches(args) or journal.touches(kwargs.values())):
            args, kwargs = journal.current(args), journal.current(kwargs)
        if kwargs and not _NUMPY_NAMES.keys().isdisjoint(kwargs):
            kwargs = {_NUMPY_NAMES.get(name, name): value for name, value in kwargs.items()}
        recorder = self.recorder
        before = len(recorder.layers)
        given, named = args, kwargs
        try:
            if op in FLOAT32 and any_autocast():
                given, named = self._in_float32(op, args), self._in_float32(op, kwargs)
            result = rule(recorder, op, *given, **named)
        except Exception:
            recorder.truncate(before)
            return self._fall_back(func, op, args, kwargs)
        if args and (result is None or result is args[0]):
            # A real tensor that is written to now holds an unknown activation.
            for tensor in written_by(func, args, kwargs):
                if not tensor.is_meta:
                    recorder.made_as(journal.mark_stale(tensor), tensor)
        return result

    def _in_float32(self, op: str, values: Any) -> Any:
        """Operands as CUDA's autocast casts them."""
        recorder = self.recorder

        def cast_up(tensor: Tensor) -> Tensor:
            dtype = recorder.autocast_up(tensor.dtype)
            if op not in CONVERTING or dtype is tensor.dtype:
                return recorder.cast(tensor, dtype)
            raised = recorder.like(tensor, dtype)
            recorder.made_as(raised, tensor)
            return raised

        return fallbacks.map_tensors(cast_up, values)

    def is_abstract(self, values: Iterable[Any]) -> bool:
        """Whether any tensor among (nested) values has unknown values."""
        for value in values:
            kind = type(value)
            if kind is Tensor:
                if value.is_meta or self._stands_for_unknown(value):
                    return True
            elif kind is Parameter:
                self.recorder.seen.add(id(value))
                # One number (a temperature, a scale) is cheap to compute with, and may be read.
                if value.is_meta or value.numel() > 1:
                    return True
            elif kind is tuple or kind is list:
                if self.is_abstract(value):
                    return True
            elif isinstance(value, Tensor) and (value.is_meta or _too_many(value)):
                return True
        return False

    def _stands_for_unknown(self, tensor: Tensor) -> bool:
        """A real tensor whose values are not worth having, or not right any more."""
        base = base_of(tensor)
        if type(base) is Parameter:  # a view of a weight is a weight
            self.recorder.seen.add(id(base))
            return True
        stale = self.journal.stale
        return _too_many(tensor) or (bool(stale) and self.journal.is_stale(tensor))

    def _run(self, func: Any, op: str, rule: Any, args: Any, kwargs: Any) -> Any:
        """Compute for real, and list what was computed."""
        recorder = self.recorder
        self._use_one_thread()
        args, kwargs = self._at_home(op, args, kwargs)
        before = len(recorder.layers)
        covered, planned = False, None
        # The rule comes first: an operation in place would change what it describes. It sees one
        # lane of a vmap, and nothing of a derivative: the dispatcher sees all.
        if rule is not None and functorch_level() is None and not is_dual():
            try:
                planned = rule(recorder, op, *args, **kwargs)
                covered = True
            except Exception:
                recorder.truncate(before)
            else:
                # Small operands may broadcast to a result not worth computing.
                abstract = type(planned) is Tensor and planned.is_meta and _too_many(planned)
                if abstract and not self.compute:
                    return planned
        self.journal.before(func, args, kwargs)
        if func is Tensor.cuda:
            return args[0]
        with fallbacks.named_errors(op, args, kwargs):
            if covered:
                result = func(*args, **kwargs)
                if len(recorder.layers) > before:
                    for one, told in zip(tensors_in(result), tensors_in(planned), strict=False):
                        recorder.made_as(one, told)
                return result
            return unruled.run_listed(recorder, func, op, args, kwargs)

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
            if "same device" in str(error):  # a mesh of real tensors and activations
                return self._fall_back(func, op, args, kwargs)
            raise fallbacks.mismatch(op, args, kwargs, error) from error

    def _assign(self, func: Any, op: str, args: Any, kwargs: Any) -> Any:
        if op == "requires_grad" and torch.is_grad_enabled() and not self.compute:
            # Grad mode is off on this route, unless the model itself has turned it on.
            raise NeedsAten("it differentiates inside forward")
        self.journal.before_assignment(args[0], op)
        return func(*args, **kwargs)

    def _read(self, func: Any, op: str, args: Any, kwargs: Any) -> Any:
        if not self.compute:
            for value in (*args, *kwargs.values()):
                if isinstance(value, Tensor) and (value.is_meta or self.journal.is_stale(value)):
                    raise NeedsForward(f"it reads the value of an activation ({op})")
        self._mark_seen(args)
        if op in DYNAMIC:
            return self._run(func, op, None, args, kwargs)
        # An integer sizes or decides something, as a rule.
        if op in LEAVES_TORCH and (args[0].ndim or args[0].is_floating_point()):
            self._leaves_torch(op, args)
        return func(*args, **kwargs)

    def _leaves_torch(self, op: str, tensors: Iterable[Any]) -> None:
        if self.recorder.makers(tensors):
            self.recorder.notes[
                f"Values of activations left torch ({op}): no edge leads to what was made of them."
            ] = None

    def _factory(self, func: Any, op: str, args: Any, kwargs: Any) -> Any:
        """A new tensor: with values while small, without beyond."""
        self._use_one_thread()
        if op in WRAPPERS and not self.compute:
            result = self._wrap(func, op, args, kwargs)
        elif self.compute or not is_large(op, args, kwargs):
            args, kwargs = self._at_home(op, args, kwargs)
            if not self.compute:
                kwargs = {**kwargs, "device": "cpu"}
            result = func(*args, **kwargs)
        else:
            given = {name: kwargs[name] for name in kwargs if name not in _OF_VALUES}
            result = func(*args, **{**given, "device": "meta"})
        if op not in FREE:
            self.recorder.record("memory", op, (), result)
        elif op in WRAPPERS and args:
            if isinstance(args[-1], Tensor):
                self.recorder.made_as(result, args[-1])
            else:
                self._leaves_torch(op, tensors_in(args[-1]))
        return result

    def _wrap(self, func: Any, op: str, args: Any, kwargs: Any) -> Any:
        """A tensor around given data: numbers, arrays, or another tensor."""
        if "device" in kwargs:
            kwargs = {**kwargs, "device": None}
        source = args[-1] if args else None
        if isinstance(source, Tensor) and source.is_meta:
            dtype = kwargs.get("dtype") or source.dtype
            return cast(self.recorder, source, dtype)
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

    def _ignore(self, func: Any, _op: str, args: Any, kwargs: Any) -> Any:
        """It orders the device's work, and does none."""
        if self.compute and args[0].is_cuda:
            return func(*args, **kwargs)
        return None

    def _autograd(self, func: Any, op: str, args: Any, kwargs: Any) -> Any:
        if self.compute:
            return unruled.run_listed(self.recorder, func, op, args, kwargs)
        raise NeedsAten("it differentiates inside forward")

    def _control(self, func: Any, _op: str, args: Any, kwargs: Any) -> Any:
        # While it answers, a mode is off: here, it must see what the given functions call.
        super().__enter__()  # type: ignore[no-untyped-call]
        try:
            return entry_of(func).rule(*args, **kwargs)  # type: ignore[misc]
        finally:
            super().__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def _unknown(self, func: Any, _op: str, args: Any, kwargs: Any) -> Any:
        op = fallbacks.name_of(func)
        if fallbacks.is_plain(func):
            return func(*args, **kwargs)
        if self.compute or (not self.is_abstract(args) and not self.is_abstract(kwargs.values())):
            return self._run(func, op, None, args, kwargs)
        if functorch_level() is not None:
            raise NeedsAten("it uses vmap or torch.func inside forward")
        return self._fall_back(func, op, args, kwargs)

    def _fall_back(self, func: Any, op: str, args: Any, kwargs: Any) -> Any:
        self._mark_seen(args)
        self._mark_seen(kwargs.values())
        result = unruled.answer(self.recorder, func, op, args, kwargs)
        out = kwargs.get("out")
        if isinstance(out, Tensor):
            if not out.is_meta:
                self.recorder.made_as(self.journal.mark_stale(out), out)
            return out
        return result

    def _mark_seen(self, values: Iterable[Any]) -> None:
        for value in values:
            if type(value) is Parameter:
                self.recorder.seen.add(id(value))
            elif isinstance(value, (list, tuple)):
                self._mark_seen(value)


#: What is done with a function, by its entry's treatment; ``plain`` and ``rule`` come first.
_TREATMENTS: Final[dict[str, Callable[..., Any]]] = {
    "view": FunctionTracer._view,
    "assign": FunctionTracer._assign,
    "read": FunctionTracer._read,
    "factory": FunctionTracer._factory,
    "device": FunctionTracer._device,
    "ignore": FunctionTracer._ignore,
    "autograd": FunctionTracer._autograd,
    "control": FunctionTracer._control,
    "unknown": FunctionTracer._unknown,
}
