"""Read a number over and over in a thread, while the caller's load runs in its own."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Final, Self

from pytest_neuralpower.calibrate.measure.meters.base import (
    MeterName,
    Reading,
    ReadingVoid,
    Source,
    Step,
)
from pytest_neuralpower.errors import DeviceLost

__all__ = [
    "CounterMeter",
    "PowerMeter",
    "Sample",
    "Sampler",
]


# A driver that hangs in a call must not hang the session too.
_JOIN_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """A value and the moment (``time.perf_counter``) at which its reading had ended."""

    at_s: float
    value: float


class Sampler:
    """Keeps the readings of ``read``, one every ``every_s`` seconds, while it is entered.

    What ``read`` raises ends the sampling and is raised again by :meth:`check` and on leaving:
    a lost device shows itself here before the load notices. A ``read`` that has not returned
    for ``silent_s`` seconds counts as one.
    """

    def __init__(
        self, read: Callable[[], float], *, every_s: float, silent_s: float = 10.0
    ) -> None:
        self.samples: list[Sample] = []
        self._read = read
        self._every_s = every_s
        self._silent_s = silent_s
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._asked_at_s = 0.0
        self._thread = threading.Thread(target=self._run, name="meter", daemon=True)

    def __enter__(self) -> Self:
        self._asked_at_s = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(_JOIN_S)
        if error is None or isinstance(error, Exception):
            self.check()

    def check(self) -> None:
        """Raise what ``read`` raised, or :class:`DeviceLost` when it does not return."""
        if self._error is not None:
            raise self._error
        if time.perf_counter() - self._asked_at_s > self._silent_s:
            raise DeviceLost(
                f"the device's meter has not answered for {self._silent_s:g} s; see that its "
                "driver works, then go on with --resume"
            )

    def _run(self) -> None:
        due = time.perf_counter()
        while not self._stop.is_set():
            self._asked_at_s = time.perf_counter()
            try:
                value = self._read()
            except Exception as error:
                self._error = error
                return
            now = time.perf_counter()
            self.samples.append(Sample(now, value))
            due = max(due + self._every_s, now)
            self._stop.wait(due - now)


# -- A meter over an energy counter, read at its edges.
#
# NVIDIA's counter advances about every 100 ms: a window that does not begin and end at an edge
# errs by up to 10% over 1 s and 2% over 5 s. The counter is therefore watched in a thread, and a
# window runs from one change of it to another.

# No device draws this much: a counter that says so was reset.
_MOST_W: Final = 100e3
_IDLE_STEP_S: Final = 0.005


class CounterMeter:
    """Energy from a counter that only grows.

    Parameters
    ----------
    name, method, notes
        See :class:`~pytest_neuralpower.calibrate.measure.meters.base.Meter`.
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
        """See :meth:`~pytest_neuralpower.calibrate.measure.meters.base.Meter.measure`."""
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
        """See :meth:`~pytest_neuralpower.calibrate.measure.meters.base.Meter.idle_w`."""
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


# -- A meter over a power sensor, polled: a lower tier than a counter.

_POWER_IDLE_STEP_S: Final = 0.005


class PowerMeter:
    """Mean power of a sensor that is read every ``poll_s`` seconds.

    Parameters
    ----------
    name, method, notes
        See :class:`~pytest_neuralpower.calibrate.measure.meters.base.Meter`.
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
        """See :meth:`~pytest_neuralpower.calibrate.measure.meters.base.Meter.measure`."""
        return self._read(step, seconds, max(settle_s, self._lag_s))

    def idle_w(self, seconds: float) -> float:
        """See :meth:`~pytest_neuralpower.calibrate.measure.meters.base.Meter.idle_w`."""
        reading = self._read(lambda: time.sleep(_POWER_IDLE_STEP_S), seconds, 0.0)
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
