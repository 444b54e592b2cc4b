"""Time one network: every layer in place, and the whole beside, run in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from statistics import fmean, geometric_mean
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pytest_neuralpower.measure.in_place import Calls, list_calls, time_calls
from pytest_neuralpower.measure.probe import Probe
from pytest_neuralpower.measure.timers import CpuTimer, Timer, WallTimer
from pytest_neuralpower.measure.trial import MeasuredRow, Trial, TrialSkipped

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Trace
    from pytest_neuralpower.measure.bench import Bench

__all__ = ["refuse_not_finite", "time_network", "timer_of"]

#: Runs of one network in one pass, each way: as many as fit the time (ms).
_REPEATS: Final = (2, 4)
_PASS_MS: Final = 200.0


def timer_of(bench: Bench) -> Timer:
    """Thread time of one computing thread, the wall clock for several, events on CUDA."""
    return _timer(bench.device, bench.mode, bench.threads)


@cache
def _timer(device: str, mode: str, threads: int) -> Timer:
    if device.startswith("cuda"):
        from pytest_neuralpower.measure.timer_cuda import CudaTimer  # noqa: PLC0415

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
        from pytest_neuralpower.measure.timer_cuda import as_graph  # noqa: PLC0415

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
