"""What a meter must show before it is used: that it moves under load, and by the right amount."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from time import perf_counter
from typing import Final

from pytest_neuralpower.calibrate.measure.meters.base import NO_METER, Meter, Sampler, Step
from pytest_neuralpower.errors import MeterRefused, ReadingVoid

_IDLE_WINDOWS: Final = 3
_MOST_IDLE_UTILIZATION: Final = 0.02
_MOST_IDLE_SPREAD: Final = 0.05
_MOST_DISAGREEMENT: Final = 0.20
_TOLD_DISAGREEMENT: Final = 0.10
_LEAST_RISE: Final = 1.05
_POWER_POLL_S: Final = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What a meter must show before it is used, and how long it is looked at.

    Attributes
    ----------
    load_s, settle_s
        Seconds read under load, and before that.
    idle_s
        Seconds over which idle power must hold within 5%.
    patience_s
        How long to wait for that: a device cools down after what ran before.
    still_s
        A counter that does not move for so long is frozen, also in later readings.
    """

    load_s: float = 1.0
    settle_s: float = 1.0
    idle_s: float = 3.0
    patience_s: float = 20.0
    still_s: float = 1.0

    def check_idle(self, meter: Meter, utilization: Callable[[], float | None]) -> float:
        """Idle power in watts; refuses a device that somebody else uses.

        Process ids tell nothing inside a container, so it is seen by what the device does.

        ``utilization`` gives the share of time the device was busy, or None where it cannot say.
        """
        windows: deque[tuple[float, float]] = deque(maxlen=_IDLE_WINDOWS)
        give_up = perf_counter() + self.patience_s
        while True:
            power_w = meter.idle_w(self.idle_s / _IDLE_WINDOWS)
            assert power_w is not None
            windows.append((power_w, utilization() or 0.0))
            if len(windows) < _IDLE_WINDOWS:
                continue
            powers = [power for power, _ in windows]
            spread = (max(powers) - min(powers)) / fmean(powers)
            busy = max(share for _, share in windows)
            if spread <= _MOST_IDLE_SPREAD and busy <= _MOST_IDLE_UTILIZATION:
                return fmean(powers)
            if perf_counter() > give_up:
                break
        if busy > _MOST_IDLE_UTILIZATION:
            raise MeterRefused(
                f"{meter.name}: the idle device is {busy:.0%} busy, at most "
                f"{_MOST_IDLE_UTILIZATION:.0%} is allowed; stop what else runs on it"
            )
        raise MeterRefused(
            f"{meter.name}: idle power moves by {spread:.0%} within {self.idle_s:g} s "
            f"({min(powers):.1f} to {max(powers):.1f} W), at most {_MOST_IDLE_SPREAD:.0%} is "
            "allowed; stop what else runs on the device, or wait until it has cooled"
        )

    def check_under_load(self, meter: Meter, load: Step, *, advice: str) -> float:
        """Power in watts under load; refuses a meter that stands still, ending with ``advice``."""
        try:
            reading = meter.measure(load, seconds=self.load_s, settle_s=self.settle_s)
        except ReadingVoid as void:
            raise MeterRefused(f"{void}; {advice}") from None
        assert reading.power_w is not None
        return reading.power_w

    def check_against_power(self, meter: Meter, load: Step, read_w: Callable[[], float]) -> float:
        """Power in watts under load; refuses a counter that the power sensor contradicts, and notes
        one that it does not confirm."""
        with Sampler(read_w, every_s=_POWER_POLL_S) as sensor:
            reading = meter.measure(load, seconds=self.load_s, settle_s=self.settle_s)
        start = sensor.samples[-1].at_s - reading.seconds
        shown_w = fmean(sample.value for sample in sensor.samples if sample.at_s >= start)
        assert reading.power_w is not None
        if abs(reading.power_w - shown_w) > _MOST_DISAGREEMENT * shown_w:
            raise MeterRefused(
                f"{meter.name}: the energy counter says {reading.power_w:.1f} W under load and the "
                f"power sensor {shown_w:.1f} W, more than {_MOST_DISAGREEMENT:.0%} apart; "
                f"{NO_METER}"
            )
        if abs(reading.power_w - shown_w) > _TOLD_DISAGREEMENT * shown_w:
            meter.notes += (
                f"{meter.name}: the energy counter says {reading.power_w:.1f} W under load and the "
                f"power sensor {shown_w:.1f} W: one of them is off by more than "
                f"{_TOLD_DISAGREEMENT:.0%}",
            )
        return reading.power_w

    @staticmethod
    def check_rises(meter: Meter, *, idle_w: float, load_w: float) -> None:
        """Refuse a sensor that is stuck: it shows the same whatever the device does."""
        if load_w < _LEAST_RISE * idle_w:
            raise MeterRefused(
                f"{meter.name}: power is {load_w:.1f} W under load and {idle_w:.1f} W idle, so the "
                f"meter does not see the load; {NO_METER}"
            )


#: As long as a meter is worth waiting for.
USUAL_PROBE: Final = Probe()
