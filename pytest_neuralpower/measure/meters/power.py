"""A meter over a power sensor, polled: a lower tier than a counter."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final

from pytest_neuralpower.measure.meters.base import MeterName, Reading, ReadingVoid, Source, Step
from pytest_neuralpower.measure.meters.sampler import Sample, Sampler

__all__ = ["PowerMeter"]

_IDLE_STEP_S: Final = 0.005


class PowerMeter:
    """Mean power of a sensor that is read every ``poll_s`` seconds.

    Parameters
    ----------
    name, method, notes
        See :class:`~pytest_neuralpower.measure.meters.base.Meter`.
    read_w
        Power in watts; raises :class:`DeviceLost` or :class:`ReadingVoid`.
    poll_s
        Seconds from one reading to the next.
    least_s
        Windows are at least this long, whatever is asked for.
    lag_s
        The load settles at least this long: the sensor shows a mean over so much of the past.
    release
        Called by :meth:`close`.
    """

    source: Source | None = "measured"

    def __init__(
        self,
        *,
        name: MeterName,
        method: str,
        read_w: Callable[[], float],
        poll_s: float,
        least_s: float = 0.0,
        lag_s: float = 0.0,
        notes: tuple[str, ...] = (),
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.method = method
        self.notes = notes
        self.close = release
        self._read_w = read_w
        self._poll_s = poll_s
        self._least_s = least_s
        self._lag_s = lag_s

    def measure(self, step: Step, *, seconds: float, settle_s: float) -> Reading:
        """See :meth:`~pytest_neuralpower.measure.meters.base.Meter.measure`."""
        return self._read(step, seconds, max(settle_s, self._lag_s))

    def idle_w(self, seconds: float) -> float:
        """See :meth:`~pytest_neuralpower.measure.meters.base.Meter.idle_w`."""
        reading = self._read(lambda: time.sleep(_IDLE_STEP_S), seconds, 0.0)
        assert reading.power_w is not None
        return reading.power_w

    def _read(self, step: Step, seconds: float, settle_s: float) -> Reading:
        seconds = max(seconds, self._least_s)
        ends: list[float] = []
        with Sampler(self._read_w, every_s=self._poll_s) as sampler:
            settled = time.perf_counter() + settle_s
            # Beyond the window by two readings, so that it ends under load.
            until = settled + seconds + 2 * self._poll_s
            while time.perf_counter() < until or not _spans(sampler.samples, settled, seconds):
                step()
                ends.append(time.perf_counter())
                sampler.check()
        window = [sample for sample in sampler.samples if sample.at_s >= settled]
        first, last = window[0].at_s, window[-1].at_s
        return Reading(
            seconds=last - first,
            steps=bisect_right(ends, last) - bisect_right(ends, first),
            power_w=self._mean_w(window),
        )

    def _mean_w(self, window: Sequence[Sample]) -> float:
        energy_j = sum((a.value + b.value) / 2 * (b.at_s - a.at_s) for a, b in pairwise(window))
        power_w = energy_j / (window[-1].at_s - window[0].at_s)
        if not power_w > 0:
            raise ReadingVoid(f"{self.name}: the power sensor read {power_w:.3g} W")
        return power_w


def _spans(samples: Sequence[Sample], settled: float, seconds: float) -> bool:
    """Whether readings since ``settled`` reach over ``seconds``."""
    place = bisect_right(samples, settled, key=lambda sample: sample.at_s)
    return place < len(samples) and samples[-1].at_s - samples[place].at_s >= seconds
