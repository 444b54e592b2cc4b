"""Run one trial on a bench."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

import torch

from pytest_neuralpower.measure.allocator import keep_memory
from pytest_neuralpower.measure.in_place import list_calls
from pytest_neuralpower.measure.isolated import repeated_call, rotating
from pytest_neuralpower.measure.networks import build
from pytest_neuralpower.measure.time_network import refuse_not_finite, time_network, timer_of
from pytest_neuralpower.measure.trial import MeasuredRow, Trial, TrialSkipped

if TYPE_CHECKING:
    from pytest_neuralpower.measure.bench import Bench
    from pytest_neuralpower.measure.meters.base import Meter
    from pytest_neuralpower.measure.timers import Timer

__all__ = ["on_bench", "replayed", "run_trial"]

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
    from pytest_neuralpower.measure.timer_cuda import as_graph  # noqa: PLC0415

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
