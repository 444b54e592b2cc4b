"""Measure one call of a user's model on the device, also under ``--np-measure``."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import torch

from pytest_neuralpower.calibrate.measure.device import Device, open_device
from pytest_neuralpower.calibrate.measure.networks import Network, materialise
from pytest_neuralpower.calibrate.measure.run_trial import (
    STEP_MS,
    on_bench,
    power_under,
    replayed,
    timer_of,
)
from pytest_neuralpower.calibrate.measure.timers import time_call
from pytest_neuralpower.calibrate.measure.verify import device_of, measured_here, mode_of
from pytest_neuralpower.errors import DeviceLost, OptionError, ReadingVoid, TraceError
from pytest_neuralpower.guard.finding import CallComparison, MeasuredQuantity
from pytest_neuralpower.tracing.torch_private import tree_map

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_neuralpower.platform.intervals import Interval
    from pytest_neuralpower.platform.prediction import Prediction
    from pytest_neuralpower.platform.protocol import Platform

#: Timed calls: as many as fit the time, within these.
_CALLS: Final = (5, 200)
#: Seconds that the meter reads.
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
    device: Device,
    *,
    seconds: float = 2.0,
) -> MeasuredCall:
    """Time ``model(*args, **kwargs)`` on the device, and read its power if that can.

    The model is copied; the caller's own stays as and where it is. What is on the meta device gets
    values: normal inputs and weights, as a calibration uses.

    Raises
    ------
    TraceError
        The model cannot be copied or run there; one line says why.
    DeviceLost, ReadingVoid
        As the meter says.
    """
    bench = device.bench
    with on_bench(bench):
        try:
            own, given, named = _brought(model, args, kwargs, torch.device(bench.device))
            own(*given, **named)
            call = replayed(lambda: own(*given, **named), bench)
            times_ms = list(_times_ms(call, device, seconds))
        except (RuntimeError, TypeError, MemoryError) as error:
            reason = " ".join(str(error).split())[:200]
            raise TraceError(
                f"{type(model).__name__} cannot be run on {bench.device} to measure it: {reason}"
            ) from error
        power_w = None
        if device.meter.source == "measured":
            repeats = max(1, round(STEP_MS / min(times_ms)))

            def several() -> None:
                for _ in range(repeats):
                    call()

            power_w = power_under(several, bench, device.meter, seconds=_METER_S)
    return MeasuredCall(min(times_ms), median(times_ms), len(times_ms), power_w)


def _brought(
    model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """A copy of the model and its inputs on the device, with values where there were none."""
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
    if any(tensor.is_meta for tensor in (*own.parameters(), *own.buffers())):
        own, _ = materialise(Network(own, ()), seed=0, device=device)
    else:
        own = own.to(device)
    given, named = tree_map(bring, (tuple(args), dict(kwargs)))
    return own, given, named


def _times_ms(call: Callable[[], Any], device: Device, seconds: float) -> Iterator[float]:
    timer = timer_of(device.bench)
    least, most = _CALLS
    end = time.monotonic() + seconds
    for number in range(most):
        if number >= least and time.monotonic() >= end:
            return
        yield time_call(call, timer)[0]


def compare(measured: MeasuredCall, prediction: Prediction, device: Device) -> CallComparison:
    """Every quantity that was measured, with its prediction."""
    quantities = {}
    for name, unit in (("runtime", "ms"), ("power", "w"), ("energy", "mj")):
        value = getattr(measured, f"{name}_{unit}")
        if value is None:
            continue
        predicted: float | None = getattr(prediction, f"{name}_{unit}")
        interval: Interval | None = getattr(prediction, f"{name}_interval_{unit}")
        quantities[name] = MeasuredQuantity(
            measured=value,
            predicted=predicted,
            error_percent=100 * (predicted / value - 1) if predicted else None,
            inside_interval=bool(interval.low <= value <= interval.high)
            if interval is not None
            else None,
        )
    return CallComparison(
        model=prediction.model,
        platform=prediction.platform,
        device=device.facts.device,
        calls=measured.calls,
        median_ms=measured.median_ms,
        **quantities,
    )


# -- ``--np-measure``.


class Live:
    """The devices of one session, each opened on first use."""

    def __init__(self) -> None:
        self._devices: dict[tuple[str, str, str], Device] = {}

    def device(self, platform: Platform) -> Device:
        """Where the platform's models are measured.

        Raises
        ------
        OptionError
            The platform was not measured on this machine's device.
        """
        try:
            chosen = measured_here(platform)
            key = (device_of(chosen), chosen.dtype, mode_of(chosen))
        except OptionError as error:
            raise OptionError(f"--np-measure: {error}") from None
        if key not in self._devices:
            name, dtype, mode = key
            self._devices[key] = open_device(name, dtype, mode=mode, meter="auto")
        return self._devices[key]

    def measure(
        self,
        model: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        platform: Platform,
        prediction: Prediction,
    ) -> CallComparison:
        """Measured against predicted.

        Raises
        ------
        OptionError
            As :meth:`device`, or its meter fails.
        TraceError
            The model cannot be run there.
        """
        device = self.device(platform)
        try:
            measured = measure_call(model, args, kwargs, device)
        except (DeviceLost, ReadingVoid) as error:
            raise OptionError(f"--np-measure: {error}") from None
        return compare(measured, prediction, device)
