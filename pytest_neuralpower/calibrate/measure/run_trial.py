"""Run one trial on a bench: time every layer of a network in place, or read power under a meter."""

from __future__ import annotations

import gc
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache, partial
from itertools import cycle, islice, pairwise
from statistics import fmean, geometric_mean
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pytest_neuralpower.calibrate.fit.rows import MeasuredRow
from pytest_neuralpower.calibrate.measure import timers
from pytest_neuralpower.calibrate.measure.networks import build
from pytest_neuralpower.calibrate.measure.timers import SpeedProbe, Timer, time_call
from pytest_neuralpower.calibrate.measure.trial import Trial, TrialSkipped
from pytest_neuralpower.tracing import trace
from pytest_neuralpower.tracing.fallbacks import is_plain
from pytest_neuralpower.tracing.function_mode import FunctionTracer
from pytest_neuralpower.tracing.recorder import Recorder
from pytest_neuralpower.tracing.rules import entry_of
from pytest_neuralpower.tracing.state import WriteJournal
from pytest_neuralpower.tracing.torch_private import tree_leaves, tree_map
from pytest_neuralpower.tracing.tracer import home_device

if TYPE_CHECKING:
    from torch import nn

    from pytest_neuralpower.calibrate.measure.meters.base import Meter
    from pytest_neuralpower.calibrate.measure.trial import Bench
    from pytest_neuralpower.layers import Layer, Trace

# -- Timing in place: every call of a network while the network runs, each known as a layer.
#
# The network first runs under the tracer, which computes for real and lists the layers of every
# call. These are matched with what tracing without data lists, as that is what predictions are made
# from. Later runs time the same calls, known by their order.

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


# -- Trials.

#: Runs of one network in one pass, each way: as many as fit the time (ms).
_REPEATS: Final = (2, 4)
_PASS_MS: Final = 200.0
#: Seconds of load before a meter reads, and while it does.
_SETTLE_S: Final = 1.0
_METER_S: Final = 2.0
#: A step under the meter is as many calls as take this long, ms.
STEP_MS: Final = 5.0

_NO_MEMORY: Final = ("out of memory", "can't allocate memory")


def run_trial(
    trial: Trial,
    bench: Bench,
    *,
    meter: Meter | None = None,
    loaded: Callable[[float], None] = lambda _: None,
) -> list[MeasuredRow]:
    """Measure one trial.

    Parameters
    ----------
    meter
        What ``layer`` and ``whole`` trials are metered by; they need one that reads power.
    loaded
        Told when the load under the meter begins, and for how long it settles (s).

    Raises
    ------
    TrialSkipped
        This configuration cannot be measured here (out of memory, a NaN); go on with the next.
    DeviceLost, ReadingVoid
        As the meter says.
    """
    try:
        with on_bench(bench):
            model, inputs = build(
                trial.template,
                trial.seed,
                dtype=getattr(torch, bench.dtype),
                device=torch.device(bench.device),
            )
            if trial.what == "network":
                return time_network(model, inputs, bench, trial=trial)
            if meter is None:
                raise TrialSkipped(f"{trial.id}: there is no meter to read its power")
            return [_metered((model, inputs), trial, bench, meter, loaded)]
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY):
            gc.collect()
            raise TrialSkipped(f"{trial.id} ({trial.template}): out of memory") from None
        raise


@contextmanager
def on_bench(bench: Bench) -> Iterator[None]:
    """Torch as the bench says: its device, one thread, no gradients; memory kept from now on."""
    if not bench.is_cuda:
        timers.keep_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # Streams of graphs, and the wait before a run, are of the current device.
    current = torch.cuda.device(bench.device) if bench.is_cuda else nullcontext()
    try:
        with torch.inference_mode(), current:
            yield
    finally:
        torch.set_num_threads(threads)


@cache
def timer_of(bench: Bench) -> Timer:
    """Thread time on a CPU, events on CUDA."""
    if bench.is_cuda:
        return timers.CudaTimer(torch.device(bench.device), ahead=bench.mode == "graph")
    return timers.CpuTimer()


def replayed(call: Callable[[], Any], bench: Bench) -> Callable[[], Any]:
    """The call as the bench runs it: itself, or a CUDA graph of it."""
    return timers.as_graph(call, torch.device(bench.device)) if bench.mode == "graph" else call


def _refuse_not_finite(output: Any) -> None:
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor) and not bool(torch.isfinite(leaf).all()):
            raise TrialSkipped("its output holds a NaN or an infinity")


# -- Timing.


def time_network(
    model: Any, inputs: Sequence[Any], bench: Bench, *, trial: Trial
) -> list[MeasuredRow]:
    """Rows of every layer in place, equal ones as one, and of the whole network.

    The first runs, which prepare the kernels and get the memory, are not counted. Of the others the
    least time counts, for whatever else the machine does only adds to it; where the processor's
    speed was probed, the geometric mean of times and probes, as their ratio is what is wanted.

    Raises
    ------
    TrialSkipped
        Its calls cannot be matched with its trace, or its output is not finite.
    """
    timer = timer_of(bench)
    began = time.perf_counter()
    traced, calls, output = list_calls(model, inputs)
    _refuse_not_finite(output)
    once_ms = 1e3 * (time.perf_counter() - began)
    model(*inputs)  # by now the process holds the memory that a run needs
    repeats = min(max(int(_PASS_MS / 2 / once_ms), _REPEATS[0]), _REPEATS[1])
    whole = replayed(lambda: model(*inputs), bench)
    probe = None if bench.is_cuda else _processor_probe()
    runs, wholes, probes = [], [], []
    for _ in range(repeats):
        times = time_calls(model, inputs, calls, timer, probe=probe)
        runs.append([each.runtime_ms for each in times])
        if probe is not None:
            probes.append(fmean(each.probe_ms for each in times if each.probe_ms is not None))
        wholes.append(time_call(whole, timer))
    typical = geometric_mean if probes else min
    probe_ms = geometric_mean(probes) if probes else None
    whole_ms, walls_ms = zip(*wholes, strict=True)
    row = MeasuredRow(
        *(trial.id, trial.network, None, typical(whole_ms)),
        calls=len(traced), pass_=trial.pass_, wall_ms=min(walls_ms), probe_ms=probe_ms,
    )  # fmt: skip
    times_ms = [typical(times) for times in zip(*runs, strict=True)]
    return [*_layer_rows(traced, calls, times_ms, trial, probe_ms), row]


@cache
def _processor_probe() -> SpeedProbe:
    return SpeedProbe()


def _layer_rows(
    traced: Trace,
    calls: NetworkCalls,
    times_ms: Sequence[float],
    trial: Trial,
    probe_ms: float | None,
) -> Iterator[MeasuredRow]:
    """One row for all equal layers: the mean of their times."""
    times: dict[int, float] = {}
    for layers, runtime_ms in zip(calls.layers, times_ms, strict=True):
        if len(layers) == 1 and layers[0] is not None:
            times[id(layers[0])] = runtime_ms
    equal: dict[Any, list[int]] = {}
    for index, layer in enumerate(traced):
        if id(layer) in times:
            equal.setdefault(layer.configuration, []).append(index)
    for places in equal.values():
        yield MeasuredRow(
            *(trial.id, trial.network, traced[places[0]]),
            fmean(times[id(traced[place])] for place in places),
            index=places[0], calls=len(places), pass_=trial.pass_, probe_ms=probe_ms,
        )  # fmt: skip


# -- Power under a meter.


def _metered(
    network: tuple[Any, Sequence[Any]],
    trial: Trial,
    bench: Bench,
    meter: Meter,
    loaded: Callable[[float], None],
) -> MeasuredRow:
    model, inputs = network
    timer = timer_of(bench)
    traced, calls, _ = list_calls(model, inputs)
    if trial.what == "layer":
        layer = traced[trial.index]
        cache_bytes = 1e6 * max(bench.hardware.l3_mb or 0.0, bench.hardware.l2_mb or 0.0)
        call = repeated_call(model, inputs, calls, layer, cache_bytes=cache_bytes)
    else:
        layer = None
        call = partial(model, *inputs)
    _refuse_not_finite(call())
    count = max(round(STEP_MS / time_call(call, timer)[0]), 1)

    def several() -> None:
        for _ in range(count):
            call()

    load = replayed(several, bench)
    runtime_ms = min(time_call(load, timer)[0] for _ in range(3)) / count
    loaded(_SETTLE_S)
    return MeasuredRow(
        *(trial.id, trial.network, layer, runtime_ms),
        index=trial.index, calls=1 if layer is not None else len(traced), pass_=trial.pass_,
        power_w=power_under(load, bench, meter, seconds=_METER_S),
    )  # fmt: skip


def power_under(
    load: Callable[[], Any], bench: Bench, meter: Meter, *, seconds: float
) -> float | None:
    """Mean power that the device draws while ``load``, a few milliseconds, is repeated (W)."""

    def step() -> None:
        load()
        if bench.is_cuda:
            torch.cuda.synchronize(bench.device)

    return meter.measure(step, seconds=seconds, settle_s=_SETTLE_S).power_w
