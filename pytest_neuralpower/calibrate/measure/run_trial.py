"""Time one network: every layer in place, and the whole beside, run in turn."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from statistics import fmean, geometric_mean
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pytest_neuralpower.calibrate.measure.in_place import (
    Calls,
    list_calls,
    repeated_call,
    rotating,
    time_calls,
)
from pytest_neuralpower.calibrate.measure.networks import build
from pytest_neuralpower.calibrate.measure.timers import (
    CpuTimer,
    Probe,
    Timer,
    WallTimer,
    keep_memory,
)
from pytest_neuralpower.calibrate.measure.trial import MeasuredRow, Trial, TrialSkipped

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.measure.meters.base import Meter
    from pytest_neuralpower.calibrate.measure.trial import Bench
    from pytest_neuralpower.layers import Trace

__all__ = [
    "on_bench",
    "refuse_not_finite",
    "replayed",
    "run_trial",
    "time_network",
    "timer_of",
]


#: Runs of one network in one pass, each way: as many as fit the time (ms).
_REPEATS: Final = (2, 4)
_PASS_MS: Final = 200.0


def timer_of(bench: Bench) -> Timer:
    """Thread time of one computing thread, the wall clock for several, events on CUDA."""
    return _timer(bench.device, bench.mode, bench.threads)


@cache
def _timer(device: str, mode: str, threads: int) -> Timer:
    if device.startswith("cuda"):
        from pytest_neuralpower.calibrate.measure.timers import CudaTimer  # noqa: PLC0415

        return CudaTimer(torch.device(device), ahead=mode == "graph")
    return CpuTimer() if threads == 1 else WallTimer()


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
    refuse_not_finite(output)
    once_ms = 1e3 * (time.perf_counter() - began)
    model(*inputs)  # by now the process holds the memory that a run needs
    repeats = min(max(int(_PASS_MS / 2 / once_ms), _REPEATS[0]), _REPEATS[1])
    whole = _whole_call(model, inputs, bench)
    probe = _probe(bench)
    runs, wholes, walls, probes = [], [], [], []
    for _ in range(repeats):
        times = time_calls(model, inputs, calls, timer, probe=probe)
        runs.append([each.runtime_ms for each in times])
        if probe is not None:
            probes.append(fmean(each.probe_ms for each in times if each.probe_ms is not None))
        found = _timed(whole, timer)
        wholes.append(found.runtime_ms)
        walls.append(found.wall_ms)
    of_runs = geometric_mean if probes else min
    probe_ms = geometric_mean(probes) if probes else None
    row = MeasuredRow(
        *(trial.id, trial.network, None, of_runs(wholes)),
        calls=len(traced), pass_=trial.pass_, wall_ms=min(walls), probe_ms=probe_ms,
    )  # fmt: skip
    times_ms = [of_runs(each) for each in zip(*runs, strict=True)]
    return [*_layer_rows(traced, calls, times_ms, trial, probe_ms), row]


class _WholeTime(NamedTuple):
    """Device time and wall time of a whole network, ms."""

    runtime_ms: float
    wall_ms: float


@cache
def _processor_probe() -> Probe:
    return Probe()


def _probe(bench: Bench) -> Probe | None:
    """The one of this process; none where other threads or another device compute."""
    return _processor_probe() if not bench.is_cuda and bench.threads == 1 else None


def _whole_call(model: Any, inputs: Sequence[Any], bench: Bench) -> Callable[[], Any]:
    def call() -> Any:
        return model(*inputs)

    if bench.mode == "graph" and bench.is_cuda:
        from pytest_neuralpower.calibrate.measure.timers import as_graph  # noqa: PLC0415

        return as_graph(call, torch.device(bench.device))
    return call


def _timed(call: Callable[[], Any], timer: Timer) -> _WholeTime:
    timer.start()
    wall = time.perf_counter()
    begin = timer.mark()
    call()
    (runtime_ms,) = timer.elapsed_ms([(begin, timer.mark())])
    return _WholeTime(runtime_ms, 1e3 * (time.perf_counter() - wall))


def refuse_not_finite(output: Any) -> None:
    """Raise TrialSkipped where an output holds a NaN or an infinity."""
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor) and not bool(torch.isfinite(leaf).all()):
            raise TrialSkipped("its output holds a NaN or an infinity")


def _layer_rows(
    traced: Trace,
    calls: Calls,
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


# -- Run one trial on a bench.

#: Seconds of load before a meter reads, and while it does.
_SETTLE_S: Final = 1.0
_METER_S: Final = 2.0

#: A step under the meter is as many calls as take this long, ms.
_STEP_MS: Final = 5.0

_NO_MEMORY: Final = ("out of memory", "can't allocate memory")


def run_trial(
    trial: Trial,
    bench: Bench,
    *,
    meter: Meter | None = None,
    loaded: Callable[[float], None] = lambda _: None,
) -> Iterator[MeasuredRow]:
    """Measure one trial; its rows come when all of it is measured, so that none is half there.

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
            yield from _measured(trial, bench, meter, loaded)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY):
            gc.collect()
            raise TrialSkipped(f"{trial.id} ({trial.template}): out of memory") from None
        raise


def _measured(
    trial: Trial, bench: Bench, meter: Meter | None, loaded: Callable[[float], None]
) -> list[MeasuredRow]:
    device = torch.device(bench.device)
    model, inputs = build(
        trial.template, trial.seed, dtype=getattr(torch, bench.dtype), device=device
    )
    if trial.what == "network":
        return time_network(model, inputs, bench, trial=trial)
    if meter is None:
        raise TrialSkipped(f"{trial.id}: there is no meter to read its power")
    traced, calls, _ = list_calls(model, inputs)
    cache = 1e6 * max(bench.hardware.get("l3_mb", 0.0), bench.hardware.get("l2_mb", 0.0))
    layer = None
    if trial.what == "layer":
        layer = traced[trial.index]
        call = repeated_call(model, inputs, calls, layer, cache_bytes=cache)
    else:
        call = rotating(model, inputs, {}, cache_bytes=0.0)
    runtime_ms, power_w = _metered(call, bench, meter, loaded)
    return [
        MeasuredRow(
            *(trial.id, trial.network, layer, runtime_ms),
            index=trial.index, calls=1 if layer is not None else len(traced), pass_=trial.pass_,
            power_w=power_w,
        )
    ]  # fmt: skip


def _metered(
    call: Callable[[], Any], bench: Bench, meter: Meter, loaded: Callable[[float], None]
) -> tuple[float, float | None]:
    """Time of one call (ms), and the power that the device draws while it is repeated (W)."""
    timer = timer_of(bench)
    refuse_not_finite(call())
    count = max(round(_STEP_MS / _elapsed_ms(call, timer)), 1)

    def calls() -> None:
        for _ in range(count):
            call()

    repeated = replayed(calls, bench)
    runtime_ms = min(_elapsed_ms(repeated, timer) for _ in range(3)) / count

    def step() -> None:
        repeated()
        if bench.is_cuda:
            torch.cuda.synchronize(bench.device)

    loaded(_SETTLE_S)
    reading = meter.measure(step, seconds=_METER_S, settle_s=_SETTLE_S)
    return runtime_ms, reading.power_w


def _elapsed_ms(call: Callable[[], Any], timer: Timer) -> float:
    timer.start()
    begin = timer.mark()
    call()
    return timer.elapsed_ms([(begin, timer.mark())])[0]


def replayed(call: Callable[[], Any], bench: Bench) -> Callable[[], Any]:
    """The call as the bench runs it: itself, or a CUDA graph of it."""
    if bench.mode != "graph":
        return call
    from pytest_neuralpower.calibrate.measure.timers import as_graph  # noqa: PLC0415

    return as_graph(call, torch.device(bench.device))


@contextmanager
def on_bench(bench: Bench) -> Iterator[None]:
    """Torch as the bench says: its device, its threads, no gradients; memory kept from now on."""
    if not bench.is_cuda:
        keep_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(bench.threads)
    # Streams of graphs, and the wait before a run, are of the current device.
    current = torch.cuda.device(bench.device) if bench.is_cuda else nullcontext()
    try:
        with torch.inference_mode(), current:
            yield
    finally:
        torch.set_num_threads(threads)
