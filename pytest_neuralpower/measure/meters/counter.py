"""A meter over an energy counter, read at its edges.

NVIDIA's counter advances about every 100 ms: a window that does not begin and end at an edge
errs by up to 10% over 1 s and 2% over 5 s. The counter is therefore watched in a thread, and a
window runs from one change of it to another.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Final

from pytest_neuralpower.measure.meters.base import MeterName, Reading, ReadingVoid, Source, Step
from pytest_neuralpower.measure.meters.sampler import Sample, Sampler

__all__ = ["CounterMeter"]

# No device draws this much: a counter that says so was reset.
_MOST_W: Final = 100e3
_IDLE_STEP_S: Final = 0.005


class CounterMeter:
    """Energy from a counter that only grows.

    Parameters
    ----------
    name, method, notes
        See :class:`~pytest_neuralpower.measure.meters.base.Meter`.
    read_mj
        The counter in millijoules; raises :class:`DeviceLost` or :class:`ReadingVoid`.
    poll_s
        How often it is looked at; an edge is known to within this.
    still_s
        A counter that did not move for so long is frozen.
    release
        Called by :meth:`close`.
    """

    source: Source | None = "measured"

    def __init__(
        self,
        *,
        name: MeterName,
        method: str,
        read_mj: Callable[[], float],
        poll_s: float,
        still_s: float,
        notes: tuple[str, ...] = (),
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.method = method
        self.notes = notes
        self.close = release
        self._read_mj = read_mj
        self._poll_s = poll_s
        self._still_s = still_s

    def measure(self, step: Step, *, seconds: float, settle_s: float) -> Reading:
        """See :meth:`~pytest_neuralpower.measure.meters.base.Meter.measure`."""
        ends: list[float] = []
        with Sampler(self._read_mj, every_s=self._poll_s) as sampler:
            settled = time.perf_counter() + settle_s
            edges = _Edges(sampler.samples, self.name, settled, self._still_s)
            while edges.span_s < seconds:
                step()
                ends.append(time.perf_counter())
                sampler.check()
                edges.update()
        first, last = edges.window(seconds)
        length = last.at_s - first.at_s
        return Reading(
            seconds=length,
            steps=bisect_right(ends, last.at_s) - bisect_right(ends, first.at_s),
            power_w=(last.value - first.value) / 1e3 / length,
        )

    def idle_w(self, seconds: float) -> float:
        """See :meth:`~pytest_neuralpower.measure.meters.base.Meter.idle_w`."""
        reading = self.measure(lambda: time.sleep(_IDLE_STEP_S), seconds=seconds, settle_s=0.0)
        assert reading.power_w is not None
        return reading.power_w


class _Edges:
    """The counter's changes after ``settled``, found as samples come in."""

    def __init__(self, samples: list[Sample], meter: str, settled: float, still_s: float) -> None:
        self._samples = samples
        self._meter = meter
        self._settled = settled
        self._still_s = still_s
        self._seen = 1
        self._moved_at_s: float | None = None
        self._found: list[Sample] = []

    @property
    def span_s(self) -> float:
        """Seconds from the first edge to the newest; -1 before there is one."""
        return self._found[-1].at_s - self._found[0].at_s if self._found else -1.0

    def window(self, seconds: float) -> tuple[Sample, Sample]:
        """The first edge, and the first that is ``seconds`` or more after it."""
        first = self._found[0]
        place = bisect_left(self._found, first.at_s + seconds, key=lambda edge: edge.at_s)
        # The difference of two floats may fall short of `seconds` by their rounding.
        return first, self._found[min(place, len(self._found) - 1)]

    def update(self) -> None:
        """Take in the samples that came since the last call."""
        for index in range(self._seen, len(self._samples)):
            before, after = self._samples[index - 1], self._samples[index]
            self._seen = index + 1
            gained = after.value - before.value
            if gained > 0:
                self._check_power(gained, after.at_s)
                self._moved_at_s = after.at_s
                if after.at_s >= self._settled:
                    self._found.append(after)
            elif gained < 0:
                raise ReadingVoid(
                    f"{self._meter}: the energy counter ran backwards by {-gained:.0f} mJ"
                )
            else:
                since = self._samples[0].at_s if self._moved_at_s is None else self._moved_at_s
                self._check_still(after.at_s - since)

    def _check_power(self, gained_mj: float, at_s: float) -> None:
        if self._moved_at_s is None:  # what it gained before the first look is unknown
            return
        if gained_mj / 1e3 / (at_s - self._moved_at_s) > _MOST_W:
            raise ReadingVoid(
                f"{self._meter}: the energy counter jumped by {gained_mj / 1e3:.0f} J at once "
                "(it was reset)"
            )

    def _check_still(self, since_s: float) -> None:
        if since_s > self._still_s:
            raise ReadingVoid(f"{self._meter}: the energy counter did not move for {since_s:.1f} s")
