"""Time one network: every layer in place, and the whole beside, run in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

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
_REPEATS: Final = (1, 4)
_PASS_MS: Final = 200.0

#: So many times as many runs at most, where other processes slow the processor down meanwhile.
_MOST_TIMES: Final = 2


def timer_of(bench: Bench) -> Timer:
    """Thread time of one computing thread, the wall clock for several, events on CUDA."""
    if bench.is_cuda:
        from pytest_neuralpower.measure.timer_cuda import CudaTimer  # noqa: PLC0415

        return CudaTimer(torch.device(bench.device), ahead=bench.mode == "graph")
    return CpuTimer() if bench.threads == 1 else WallTimer()


def time_network(
    model: Any, inputs: Sequence[Any], bench: Bench, *, trial: Trial
) -> list[MeasuredRow]:
    """Rows of every layer in place, equal ones as one, and of the whole network.

    The first run, which prepares the kernels, is not counted.

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
    repeats = min(max(int(_PASS_MS / 2 / once_ms), _REPEATS[0]), _REPEATS[1])
    whole = _whole_call(model, inputs, bench)
    runs, wholes = [], []
    probe = _probe(bench)
    speed = probe.measure_ms() if probe else 0.0
    for number in range(_MOST_TIMES * repeats):
        runs.append(_Run(time_calls(model, inputs, calls, timer), speed))
        speed = _around(probe, runs[-1], speed)
        runtime_ms, wall_ms = _timed(whole, timer)
        wholes.append(_Run([runtime_ms], speed, wall_ms))
        speed = _around(probe, wholes[-1], speed)
        if number + 1 >= repeats and (
            probe is None or not (probe.is_slow(_least(runs)) or probe.is_slow(_least(wholes)))
        ):
            break
    best = _best(wholes, probe)
    row = MeasuredRow(
        *(trial.id, trial.network, None, min(each.times_ms[0] for each in best)),
        calls=len(traced), pass_=trial.pass_, wall_ms=min(each.wall_ms for each in best),
        probe_ms=_least(best) or None,
    )  # fmt: skip
    best = _best(runs, probe)
    times = [min(each) for each in zip(*(run.times_ms for run in best), strict=True)]
    return [*_layer_rows(traced, calls, times, trial, _least(best) or None), row]


@dataclass(slots=True)
class _Run:
    """One run of a network; ``probe_ms`` is the longer of the probes before and after it."""

    times_ms: list[float]
    probe_ms: float
    wall_ms: float = 0.0


@cache
def _processor_probe() -> Probe:
    return Probe()


def _probe(bench: Bench) -> Probe | None:
    """One for the whole session, as it has to know the best; none where other threads compute."""
    return _processor_probe() if not bench.is_cuda and bench.threads == 1 else None


def _around(probe: Probe | None, run: _Run, before_ms: float) -> float:
    """Note the probe after a run beside the one before it; returns the one after."""
    if probe is None:
        return 0.0
    after_ms = probe.measure_ms()
    run.probe_ms = max(before_ms, after_ms)
    return after_ms


def _least(runs: Sequence[_Run]) -> float:
    return min(run.probe_ms for run in runs)


def _best(runs: Sequence[_Run], probe: Probe | None) -> Sequence[_Run]:
    """The runs that were not slowed down; where all were, the one that was least."""
    sound = [run for run in runs if probe is None or not probe.is_slow(run.probe_ms)]
    return sound or [min(runs, key=lambda run: run.probe_ms)]


def _whole_call(model: Any, inputs: Sequence[Any], bench: Bench) -> Callable[[], Any]:
    def call() -> Any:
        return model(*inputs)

    if bench.mode == "graph" and bench.is_cuda:
        from pytest_neuralpower.measure.timer_cuda import as_graph  # noqa: PLC0415

        return as_graph(call, torch.device(bench.device))
    return call


def _timed(call: Callable[[], Any], timer: Timer) -> tuple[float, float]:
    """Device time and wall time of one call, ms."""
    timer.start()
    wall = time.perf_counter()
    begin = timer.mark()
    call()
    (runtime_ms,) = timer.elapsed_ms([(begin, timer.mark())])
    return runtime_ms, 1e3 * (time.perf_counter() - wall)


def refuse_not_finite(output: Any) -> None:
    """Raise TrialSkipped where an output holds a NaN or an infinity."""
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor) and not bool(torch.isfinite(leaf).all()):
            raise TrialSkipped("its output holds a NaN or an infinity")


def _layer_rows(
    traced: Trace, calls: Calls, times_ms: Sequence[float], trial: Trial, probe_ms: float | None
) -> Iterator[MeasuredRow]:
    """One row for all equal layers: the mean of their times."""
    times: dict[int, float] = {}
    for layers, runtime in zip(calls.layers, times_ms, strict=True):
        if len(layers) == 1 and layers[0] is not None:
            times[id(layers[0])] = runtime
    equal: dict[Any, list[int]] = {}
    for index, layer in enumerate(traced):
        if id(layer) in times:
            equal.setdefault(layer.configuration, []).append(index)
    for places in equal.values():
        mean = sum(times[id(traced[place])] for place in places) / len(places)
        yield MeasuredRow(
            *(trial.id, trial.network, traced[places[0]], mean),
            index=places[0], calls=len(places), pass_=trial.pass_, probe_ms=probe_ms,
        )  # fmt: skip
