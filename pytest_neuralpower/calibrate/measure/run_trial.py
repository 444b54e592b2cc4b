"""Run one trial on a bench: time every layer of a network in place, or read power under a meter."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from statistics import fmean, geometric_mean
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from pytest_neuralpower.calibrate.fit.rows import MeasuredRow
from pytest_neuralpower.calibrate.measure import timers
from pytest_neuralpower.calibrate.measure.in_place import (
    NetworkCalls,
    list_calls,
    repeated_call,
    time_calls,
)
from pytest_neuralpower.calibrate.measure.networks import build
from pytest_neuralpower.calibrate.measure.timers import SpeedProbe, Timer, time_call
from pytest_neuralpower.calibrate.measure.trial import Trial, TrialSkipped
from pytest_neuralpower.tracing.torch_private import tree_leaves

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.measure.meters.base import Meter
    from pytest_neuralpower.calibrate.measure.trial import Bench
    from pytest_neuralpower.layers import Trace

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
