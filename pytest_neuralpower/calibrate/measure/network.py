"""Measure one call of a user's model on the device, to set beside its prediction."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Final, cast

from tabulate import tabulate

from pytest_neuralpower.calibrate.measure.preflight import Place, open_place
from pytest_neuralpower.calibrate.measure.run_trial import on_bench, replayed, timer_of
from pytest_neuralpower.calibrate.measure.verify import device_of, measured_here, mode_of
from pytest_neuralpower.errors import DeviceLost, OptionError, ReadingVoid, TraceError
from pytest_neuralpower.units import Quantity, show

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.measure.verify import Verification
    from pytest_neuralpower.platform.intervals import Interval
    from pytest_neuralpower.platform.prediction import Prediction
    from pytest_neuralpower.platform.protocol import Platform

__all__ = [
    "Live",
    "MeasuredCall",
    "comparison_record",
    "comparison_text",
    "measure_call",
    "measured_lines",
    "verification_record",
    "verification_text",
]


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

    from pytest_neuralpower.calibrate.measure.networks import materialise  # noqa: PLC0415

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


# -- Measured beside predicted or calibrated, as text and as JSON.

#: Quantity, its attribute, and its interval's.
_QUANTITIES = (
    ("runtime", "runtime_ms", "runtime_interval_ms"),
    ("power", "power_w", "power_interval_w"),
    ("energy", "energy_mj", "energy_interval_mj"),
)


def comparison_record(
    measured: MeasuredCall, prediction: Prediction, device: str
) -> dict[str, Any]:
    """Every quantity that was measured, with its prediction, in JSON types."""
    record: dict[str, Any] = {
        "model": prediction.model,
        "platform": prediction.platform,
        "device": device,
        "calls": measured.calls,
        "median_ms": measured.median_ms,
    }
    for quantity, key, interval_key in _QUANTITIES:
        value = getattr(measured, key)
        if value is None:
            continue
        interval: Interval | None = getattr(prediction, interval_key)
        predicted = getattr(prediction, key)
        record[quantity] = {
            "measured": value,
            "predicted": predicted,
            "error_percent": None if not predicted else 100 * (predicted / value - 1),
            "inside_interval": None
            if interval is None
            else bool(interval.low <= value <= interval.high),
        }
    return record


def measured_lines(record: Mapping[str, Any]) -> list[str]:
    """One line a quantity: ``runtime: measured 12.3 ms, predicted 12.9 ms (+4.9%), ...``."""
    lines = []
    for quantity, *_ in _QUANTITIES:
        found = record.get(quantity)
        if found is None:
            continue
        name = cast("Quantity", quantity)
        text = f"{quantity}: measured {show(name, found['measured'])}"
        if found["predicted"] is not None:
            text += f", predicted {show(name, found['predicted'])} ({found['error_percent']:+.1f}%)"
        if found["inside_interval"] is not None:
            place = "inside" if found["inside_interval"] else "outside"
            text += f", {place} its interval"
        lines.append(text)
    return lines


def comparison_text(record: Mapping[str, Any]) -> str:
    """What ``neuralpower measure`` prints."""
    return "\n".join(
        [
            f"{record['model']} on {record['device']}, platform {record['platform']}",
            *measured_lines(record),
            f"least of {record['calls']} calls, their median {show('runtime', record['median_ms'])}"
            + ("" if "energy" in record else "; energy was not measured: no meter"),
        ]
    )


def verification_record(found: Verification) -> dict[str, Any]:
    """The drifts in JSON types."""
    return {
        "platform": found.platform,
        "device": found.device,
        "holds": found.holds,
        "passes": found.passes,
        "drifts": [
            {
                "kind": drift.kind,
                "calibrated_ms": drift.calibrated_ms,
                "measured_ms": drift.measured_ms,
                "change_percent": 100 * drift.change,
                "limit_percent": None if drift.limit is None else 100 * drift.limit,
                "holds": drift.holds,
            }
            for drift in found.drifts
        ],
    }


def verification_text(found: Verification) -> str:
    """A table of drifts and what follows from it."""
    rows: Sequence[tuple[str, ...]] = [
        (
            drift.kind,
            show("runtime", drift.calibrated_ms),
            show("runtime", drift.measured_ms),
            f"{100 * drift.change:+.1f}%",
            "-" if drift.limit is None else f"{100 * drift.limit:.0f}%",
            "" if drift.holds else "too far",
        )
        for drift in found.drifts
    ]
    headers = ("kind", "calibrated", "now", "drift", "limit", "")
    align = ("left", "right", "right", "right", "right", "left")
    table = tabulate(rows, headers, tablefmt="plain", colalign=align, disable_numparse=True)
    specimen = "" if found.same_specimen else " (another specimen than the one calibrated)"
    verdict = (
        f"{found.platform} holds on this {found.device}{specimen}"
        if found.holds
        else f"{found.platform} no longer holds on this {found.device}{specimen}: calibrate anew "
        "with neuralpower calibrate, or see what changed (versions, clocks, load)"
    )
    passes = "pass" if found.passes == 1 else "passes"
    return f"{table}\n\n{verdict} ({found.passes} {passes})"


# -- ``--np-measure``: every model that a test predicts is measured on the device, too.


class Live:
    """The devices of one session, each opened on first use."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, str, str], Place] = {}

    def place(self, platform: Platform) -> Place:
        """Where the platform's models are measured.

        Raises
        ------
        OptionError
            The platform was not measured on this machine's device.
        """
        try:
            chosen = measured_here(platform)
            device = device_of(chosen)
        except OptionError as error:
            raise OptionError(f"--np-measure: {error}") from None
        key = (device, chosen.dtype, mode_of(chosen))
        if key not in self._places:
            self._places[key] = open_place(device, chosen.dtype, mode=key[2], meter="auto")
        return self._places[key]

    def measure(
        self,
        model: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        platform: Platform,
        prediction: Prediction,
    ) -> dict[str, Any]:
        """Measured beside predicted, in JSON types.

        Raises
        ------
        OptionError
            As :meth:`place`.
        TraceError
            The model cannot be run there.
        """
        place = self.place(platform)
        try:
            measured = measure_call(model, args, kwargs, place)
        except (DeviceLost, ReadingVoid) as error:
            raise OptionError(f"--np-measure: {error}") from None
        return comparison_record(measured, prediction, place.facts["device"])
