"""Time one network: every layer in place, and the whole beside, run in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pytest_neuralpower.measure.in_place import Calls, list_calls, time_calls
from pytest_neuralpower.measure.timers import CpuTimer, Timer, WallTimer
from pytest_neuralpower.measure.trial import MeasuredRow, Trial, TrialSkipped

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Trace
    from pytest_neuralpower.measure.bench import Bench

__all__ = ["refuse_not_finite", "time_network", "timer_of"]

#: Runs of one network in one pass, each way: as many as fit the time (ms).
_REPEATS: Final = (1, 4)
_PASS_MS: Final = 200.0


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
    runs, wholes, walls = [], [], []
    for _ in range(repeats):
        runs.append(time_calls(model, inputs, calls, timer))
        runtime, wall = _timed(whole, timer)
        wholes.append(runtime)
        walls.append(wall)
    least = [min(each) for each in zip(*runs, strict=True)]
    row = MeasuredRow(
        *(trial.id, trial.network, None, min(wholes)),
        calls=len(traced), pass_=trial.pass_, wall_ms=min(walls),
    )  # fmt: skip
    return [*_layer_rows(traced, calls, least, trial), row]


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
    traced: Trace, calls: Calls, times_ms: Sequence[float], trial: Trial
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
            index=places[0], calls=len(places), pass_=trial.pass_,
        )  # fmt: skip
