"""Timing in place: every call of a network while the network runs, each known as a layer.

The network first runs under the tracer, which computes for real and lists the layers of every
call. These are matched with what tracing without data lists, as that is what predictions are made
from. Later runs time the same calls, known by their order.
"""

from __future__ import annotations

import math
import time
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from itertools import cycle, islice, pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pytest_neuralpower.calibrate.measure.trial import TrialSkipped
from pytest_neuralpower.tracing import trace
from pytest_neuralpower.tracing.fallbacks import is_plain
from pytest_neuralpower.tracing.function_mode import FunctionTracer
from pytest_neuralpower.tracing.recorder import Recorder
from pytest_neuralpower.tracing.rules import entry_of
from pytest_neuralpower.tracing.state import WriteJournal
from pytest_neuralpower.tracing.torch_private import tree_leaves, tree_map
from pytest_neuralpower.tracing.tracer import home_device

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from pytest_neuralpower.calibrate.measure.timers import SpeedProbe, Timer
    from pytest_neuralpower.layers import Layer, Trace

#: Share of the traced layers that a real run must list, too.
_LEAST_MATCHED: Final = 0.8

#: Seconds between two probes of the processor's speed in one run.
_PROBE_EVERY_S: Final = 0.005

#: Calls and runs that tell what the timing itself takes; and the least time of a call, ms.
_EMPTY_CALLS: Final = 100
_EMPTY_RUNS: Final = 30
_LEAST_MS: Final = 1e-4

#: Treatments of the tracer that list no layer: attribute reads, views, writes of attributes.
_FREE: Final = frozenset({"plain", "device", "assign", "read", "view"})


@dataclass(frozen=True, slots=True)
class NetworkCalls:
    """The calls of one network that may list layers, in order.

    Attributes
    ----------
    functions
        What is called.
    layers
        What each call lists, as the trace has it: one layer mostly; none, or several whose times
        cannot be told apart; None for a layer that the trace does not have.
    """

    functions: tuple[Any, ...]
    layers: tuple[tuple[Layer | None, ...], ...]


class CallTime(NamedTuple):
    """Time of one call, ms, and of the probe around it; None without one."""

    runtime_ms: float
    probe_ms: float | None


class _ListingTracer(FunctionTracer):
    """Computes for real, and keeps apart what each call lists."""

    def __init__(self, recorder: Recorder, journal: WriteJournal, device: Any) -> None:
        super().__init__(recorder, journal, device, compute=True)
        self.functions: list[Any] = []
        self.counts: list[int] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if _lists_nothing(func):
            return func(*args, **(kwargs or {}))
        before = len(self.recorder.layers)
        result = super().__torch_function__(func, types, args, kwargs)
        self.functions.append(func)
        self.counts.append(len(self.recorder.layers) - before)
        return result


class _TimingMode(TorchFunctionMode):
    """Marks the time before and after every call that may list layers, probes now and then."""

    def __init__(self, timer: Timer, probe: SpeedProbe | None) -> None:
        super().__init__()
        self.mark = timer.mark
        self.functions: list[Any] = []
        self.marks: list[tuple[Any, Any]] = []
        #: Number of calls before each probe, and what it found.
        self.probes: list[tuple[int, float]] = []
        self._probe = probe
        self._next_probe = 0.0
        self._begin: Any = None
        self.probe_now()

    def probe_now(self) -> None:
        self._end_last()
        if self._probe is not None:
            self.probes.append((len(self.marks), self._probe.measure_ms()))
            self._next_probe = time.perf_counter() + _PROBE_EVERY_S

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if kwargs is None:
            kwargs = {}
        if _lists_nothing(func):
            return func(*args, **kwargs)
        self._end_last()
        self._begin = self.mark()
        result = func(*args, **kwargs)
        self.functions.append(func)
        if self._probe is not None and time.perf_counter() > self._next_probe:
            self.probe_now()
        return result

    def _end_last(self) -> None:
        """A call takes until the next begins: freeing its inputs, and Python on the way."""
        if self._begin is not None:
            self.marks.append((self._begin, self.mark()))
            self._begin = None

    def probe_of_calls(self) -> list[float | None]:
        """Of every call, the mean of the probes before and after it."""
        if self._probe is None:
            return [None] * len(self.marks)
        probes_ms: list[float | None] = []
        for (_, before), (until, after) in pairwise(self.probes):
            probes_ms += [(before + after) / 2] * (until - len(probes_ms))
        return probes_ms


def _lists_nothing(func: Any) -> bool:
    treatment = entry_of(func).treatment
    return treatment in _FREE or (treatment == "unknown" and is_plain(func))


def list_calls(model: nn.Module, inputs: Sequence[Any]) -> tuple[Trace, NetworkCalls, Any]:
    """The network's trace, what each of its calls lists, and what one run of it returned.

    Raises
    ------
    TrialSkipped
        Tracing without data lists other layers than a real run: no row would be of the layer
        that a prediction is made of.
    """
    traced = trace(model, *inputs)
    device = home_device(model, inputs, {})
    recorder = Recorder(device.type)
    with _ListingTracer(recorder, WriteJournal(), device) as tracer:
        output = model(*inputs)
    known = _matched(traced.layers, recorder.layers)
    if sum(layer is not None for layer in known) < _LEAST_MATCHED * len(traced):
        raise TrialSkipped(
            f"{traced.model}: a real run lists {len(recorder.layers)} layers, tracing lists "
            f"{len(traced)}, and too few are the same: its calls cannot be matched"
        )
    rest = iter(known)
    layers = tuple(tuple(islice(rest, count)) for count in tracer.counts)
    return traced, NetworkCalls(tuple(tracer.functions), layers), output


def _matched(traced: Sequence[Layer], listed: Sequence[Layer]) -> list[Layer | None]:
    """For each layer of the real run, the traced one: not all are there, as a kernel may return
    a tensor laid out in another way than the rule says, which makes a copy or saves one."""
    # All but the operation's name: `relu6` runs as `hardtanh`.
    first, second = (
        [(each.kind, each.inputs, each.weights, each.outputs, each.params) for each in layers]
        for layers in (traced, listed)
    )
    known: list[Layer | None] = [None] * len(listed)
    matcher = SequenceMatcher(None, first, second, autojunk=False)
    for here, there, size in matcher.get_matching_blocks():
        known[there : there + size] = traced[here : here + size]
    return known


def time_calls(
    model: nn.Module,
    inputs: Sequence[Any],
    calls: NetworkCalls,
    timer: Timer,
    *,
    probe: SpeedProbe | None = None,
) -> list[CallTime]:
    """Time of every call, in one run of the network.

    Raises
    ------
    TrialSkipped
        The network made other calls this time.
    """
    timer.start()
    with _TimingMode(timer, probe) as mode:
        model(*inputs)
    mode.probe_now()
    if tuple(mode.functions) != calls.functions:
        raise TrialSkipped(f"{type(model).__name__}: two runs made different calls")
    times_ms, waited = timer.elapsed_ms(mode.marks), timer.waited(mode.marks)
    own_ms = mode_ms(timer) if any(waited) else 0.0
    return [
        CallTime(max(runtime_ms - own_ms * waits, _LEAST_MS), probe_ms)
        for runtime_ms, waits, probe_ms in zip(times_ms, waited, mode.probe_of_calls(), strict=True)
    ]


@cache
def mode_ms(timer: Timer) -> float:
    """What the timing itself adds to every call, ms: the least of many runs of next to nothing."""
    value = torch.zeros(1)

    def run() -> None:
        for _ in range(_EMPTY_CALLS):
            torch.neg(value)

    def least(mode: AbstractContextManager[Any]) -> float:
        marks = []
        for _ in range(_EMPTY_RUNS):
            with mode:
                begin = timer.mark()
                run()
                marks.append((begin, timer.mark()))
        return min(timer.elapsed_ms(marks)) / _EMPTY_CALLS

    return max(least(_TimingMode(timer, None)) - least(nullcontext()), 0.0)


# -- One call taken out of a running network, to be repeated under a meter.

#: Operands in rotation are this many times larger than the last cache together, so that none is
#: still there when its turn comes again; but no more than so many copies.
_TIMES_CACHE: Final = 3
_MOST_COPIES: Final = 64


class _Taking(TorchFunctionMode):
    """Keeps the arguments of the last of the calls, as they are before it."""

    def __init__(self, functions: Sequence[Any]) -> None:
        super().__init__()
        self._awaited = deque(functions)
        self.taken: tuple[Any, Any, Any] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._awaited and func is self._awaited[0]:
            self._awaited.popleft()
            if not self._awaited:
                self.taken = (func, *_copied((args, kwargs)))
        return func(*args, **kwargs)


def repeated_call(
    model: Any, inputs: Sequence[Any], calls: NetworkCalls, layer: Layer, *, cache_bytes: float
) -> Callable[[], Any]:
    """What repeats the call that lists a layer of the network's trace.

    Copies of its operands take turns, as caches would be cold.

    Raises
    ------
    TrialSkipped
        No call lists that layer alone.
    """
    alone = [len(listed) == 1 and listed[0] is layer for listed in calls.layers]
    if not any(alone):
        raise TrialSkipped(f"no call lists {layer.op} {layer.path} alone")
    with _Taking(calls.functions[: alone.index(True) + 1]) as mode:
        model(*inputs)
    if mode.taken is None:
        raise TrialSkipped(f"{type(model).__name__}: {layer.op} {layer.path} was not called again")
    func, *operands = mode.taken
    size = sum(leaf.nbytes for leaf in tree_leaves(operands) if isinstance(leaf, Tensor)) or 1
    copies = min(max(math.ceil(_TIMES_CACHE * cache_bytes / size), 1), _MOST_COPIES)
    turns = cycle([operands, *(_copied(operands) for _ in range(copies - 1))])

    def call() -> Any:
        args, kwargs = next(turns)
        return func(*args, **kwargs)

    return call


def _copied(operands: Any) -> Any:
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, operands)
