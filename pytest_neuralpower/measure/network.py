"""Measure one call of a user's model on the device, to set beside its prediction."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from pytest_neuralpower.errors import TraceError
from pytest_neuralpower.measure.run_trial import on_bench, replayed
from pytest_neuralpower.measure.time_network import timer_of

if TYPE_CHECKING:
    from pytest_neuralpower.measure.preflight import Place

__all__ = ["MeasuredCall", "measure_call"]

#: Timed calls: as many as fit the time, within these.
_CALLS: Final = (5, 200)
#: Under the meter: before it reads, and while it does, s.
_SETTLE_S: Final = 1.0
_METER_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class MeasuredCall:
    """One measured call, as rows of a calibration are measured.

    Attributes
    ----------
    runtime_ms, median_ms
        The least and the median of the timed calls: thread time on a CPU, between events on a GPU.
    calls
        How many were timed, the first discarded.
    power_w
        Mean gross power under repeated calls; None without a meter that measures.
    """

    runtime_ms: float
    median_ms: float
    calls: int
    power_w: float | None = None

    @property
    def energy_mj(self) -> float | None:
        return None if self.power_w is None else self.power_w * self.runtime_ms


def measure_call(
    model: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    place: Place,
    *,
    seconds: float = 2.0,
) -> MeasuredCall:
    """Time ``model(*args, **kwargs)`` on the place's device, and read its power if that can.

    The model is copied; the caller's own stays as and where it is. What is on the meta device gets
    values: normal inputs and weights, as a calibration uses.

    Raises
    ------
    TraceError
        The model cannot be copied or run there; one line says why.
    DeviceLost, ReadingVoid
        As the meter says.
    """
    import torch  # noqa: PLC0415 - heavy

    device = torch.device(place.bench.device)
    with on_bench(place.bench):
        try:
            own, given, named = _brought(model, args, kwargs, device)

            def call() -> Any:
                return own(*given, **named)

            call()
            run = replayed(call, place.bench)
            times = _times_ms(run, place, seconds)
        except (RuntimeError, TypeError, MemoryError) as error:
            reason = " ".join(str(error).split())[:200]
            raise TraceError(
                f"{type(model).__name__} cannot be run on {device} to measure it: {reason}"
            ) from error
        power_w = _power_w(run, place, min(times)) if place.meter.source == "measured" else None
    return MeasuredCall(min(times), median(times), len(times), power_w)


def _brought(
    model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], device: Any
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """A copy of the model and its inputs on the device, with values where there were none."""
    import torch  # noqa: PLC0415 - heavy
    from torch.utils._pytree import tree_map  # noqa: PLC0415

    from pytest_neuralpower.measure.networks.values import materialise  # noqa: PLC0415

    generator = torch.Generator().manual_seed(0)

    def bring(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if value.is_meta and value.is_floating_point():
            value = torch.randn(value.shape, generator=generator).to(value.dtype)
        elif value.is_meta:
            value = torch.zeros(value.shape, dtype=value.dtype)
        return value.to(device)

    own = copy.deepcopy(model)
    tensors = [*own.parameters(), *own.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        own, _ = materialise(own, (), seed=0, device=device)
    else:
        own = own.to(device)
    given, named = tree_map(bring, (tuple(args), dict(kwargs)))
    return own, given, named


def _times_ms(call: Any, place: Place, seconds: float) -> list[float]:
    timer = timer_of(place.bench)
    least, most = _CALLS
    times: list[float] = []
    end = time.monotonic() + seconds
    while len(times) < least or (len(times) < most and time.monotonic() < end):
        timer.start()
        begin = timer.mark()
        call()
        times += timer.elapsed_ms([(begin, timer.mark())])
    return times


def _power_w(call: Any, place: Place, runtime_ms: float) -> float | None:
    import torch  # noqa: PLC0415 - heavy

    repeats = max(1, round(5.0 / runtime_ms))

    def step() -> None:
        for _ in range(repeats):
            call()
        if place.bench.is_cuda:
            torch.cuda.synchronize(place.bench.device)

    return place.meter.measure(step, seconds=_METER_S, settle_s=_SETTLE_S).power_w
