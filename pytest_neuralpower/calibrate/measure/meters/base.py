"""What a meter is: it runs a load and says what energy the device took meanwhile.

A meter is chosen by ``choose_meter``, which probes it under load first. A zero is never a reading:
a meter that cannot read is refused with a sentence, a window whose counter froze or ran backwards
raises :class:`ReadingVoid`.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final, Literal, Self, TypeAlias, get_args

from pytest_neuralpower.errors import DeviceLost, ReadingVoid

#: What to do where no meter can be used; of the commands that open one, calibrate takes watts.
NO_METER: Final = (
    "use --meter none; if you know the power, neuralpower calibrate takes it as --watts W"
)

MeterName: TypeAlias = Literal["nvml", "rapl", "ina3221", "zeus", "none"]
#: What ``--meter`` accepts.
METERS: Final = ("auto", *get_args(MeterName))
#: Whether energy was read from the device or is a wattage of the user's times a runtime.
Source: TypeAlias = Literal["measured", "estimated"]
#: A few milliseconds of work that has ended (is synchronised) when it returns.
Step: TypeAlias = Callable[[], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """One window of load.

    Attributes
    ----------
    seconds
        Length of the window, from one counter edge to another where the meter has a counter.
    steps
        Steps that ended within the window.
    power_w
        Mean gross power over the window (idle included); ``None`` when the meter is ``none``
        and no wattage was given. Energy of one step is best had as ``power_w`` times the
        runtime that a timer found, which is finer than ``steps``.
    """

    seconds: float
    steps: int
    power_w: float | None

    @property
    def energy_mj(self) -> float | None:
        """Energy of the whole window in millijoules; ``None`` where there is no power."""
        return None if self.power_w is None else self.power_w * self.seconds * 1e3


class Meter(ABC):
    """Reads a device's energy while a load runs.

    Attributes
    ----------
    name
        What ``--meter`` calls it.
    source
        ``measured``, ``estimated`` (the user's watts), or ``None`` when it gives no energy.
    method
        How it reads, in a few words for the profile's header and the card.
    notes
        One sentence each for the printout: what was refused before it, what is less than best.
    """

    name: MeterName
    source: Source | None
    method: str
    notes: tuple[str, ...]

    @abstractmethod
    def measure(self, step: Step, *, seconds: float, settle_s: float) -> Reading:
        """Run ``step`` over and over and read the energy meanwhile.

        Settles for ``settle_s`` under the same load, waits for an edge of the counter, runs for
        ``seconds`` or more, and reads at the next edge while the load still runs. A meter that
        needs a longer window than ``seconds`` takes it; :attr:`Reading.seconds` says so.

        Raises
        ------
        DeviceLost
            The device or its driver went away: save what is measured and stop.
        ReadingVoid
            The counter froze or ran backwards: measure this configuration again, or skip it.
        """

    @abstractmethod
    def idle_w(self, seconds: float) -> float | None:
        """Mean power in watts over ``seconds`` without load; ``None`` where there is no energy.

        Raises the errors of :meth:`measure`.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the driver; the meter cannot be used afterwards."""


def file_text(path: Path) -> str:
    """What a file of the kernel holds; empty when it is not there or may not be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


# -- Polling in a thread, while the load runs in the caller's.

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

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
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


# -- Meters that are polled.

# No device draws this much: a counter that says so was reset.
_MOST_W: Final = 100e3
_IDLE_STEP_S: Final = 0.005

#: Parts of a window that are compared, each so long at least (s): NVIDIA's counter moves every
#: 100 ms.
_PARTS: Final = 4
_PART_S: Final = 0.2

#: One load's power moves by a few percent with temperature and clocks.
_MOST_UNSTEADY: Final = 0.15


@dataclass(kw_only=True, eq=False)
class SampledMeter(Meter):
    """A meter that is read every ``poll_s`` seconds.

    Attributes
    ----------
    name, method, notes
        See :class:`Meter`.
    window
        :class:`CounterWindow` where ``read`` gives the millijoules of a counter,
        :class:`PowerWindow` where it gives watts.
    read
        Raises :class:`DeviceLost` or :class:`ReadingVoid`.
    poll_s
        Seconds from one reading to the next; an edge of a counter is known to within this.
    still_s
        A counter that did not move for so long is frozen.
    least_s
        Windows are at least this long, whatever is asked for.
    lag_s
        The load settles at least this long: the sensor shows a mean over so much of the past.
    alone
        Whether nothing else may run on the device: then a window that is not steady is void.
    release
        Called by :meth:`close`.
    """

    name: MeterName
    method: str
    window: type[CounterWindow | PowerWindow]
    read: Callable[[], float]
    poll_s: float
    still_s: float = 1.0
    least_s: float = 0.0
    lag_s: float = 0.0
    alone: bool = False
    notes: tuple[str, ...] = ()
    release: Callable[[], None] = lambda: None
    source: Source | None = "measured"

    def measure(self, step: Step, *, seconds: float, settle_s: float) -> Reading:
        return self._read(step, seconds, max(settle_s, self.lag_s))

    def idle_w(self, seconds: float) -> float:
        reading = self._read(lambda: time.sleep(_IDLE_STEP_S), seconds, 0.0)
        assert reading.power_w is not None
        return reading.power_w

    def close(self) -> None:
        self.release()

    def _check_steady(self, powers_w: Sequence[float]) -> None:
        """Void a window, or note it, whose parts differ by more than one load's do: another load
        began or ended meanwhile."""
        if len(powers_w) < 2:
            return
        least, most = min(powers_w), max(powers_w)
        if most - least <= _MOST_UNSTEADY * sum(powers_w) / len(powers_w):
            return
        says = f"{self.name}: power moved between {least:.4g} and {most:.4g} W under one load"
        if self.alone:
            raise ReadingVoid(f"{says}: something else began to use the device, or it throttled")
        if not any("under one load" in note for note in self.notes):
            self.notes = (*self.notes, f"{says}: something else runs on the device")

    def _read(self, step: Step, seconds: float, settle_s: float) -> Reading:
        ends: list[float] = []
        settled = time.perf_counter() + settle_s
        with Sampler(self.read, every_s=self.poll_s) as sampler:
            window = self.window(self, sampler.samples, settled, max(seconds, self.least_s))
            while not window.is_full():
                step()
                ends.append(time.perf_counter())
                sampler.check()
        begin, end, power_w = window.mean_power()
        self._check_steady(window.powers_w())
        steps = bisect_right(ends, end) - bisect_right(ends, begin)
        return Reading(seconds=end - begin, steps=steps, power_w=power_w)


@dataclass(eq=False)
class CounterWindow:
    """From a counter's first change after ``settled`` to the first ``seconds`` or more later.

    NVIDIA's counter advances about every 100 ms: a window that does not begin and end at an edge
    is off by up to 10% over 1 s and 2% over 5 s.
    """

    meter: SampledMeter
    samples: Sequence[Sample]
    settled: float
    seconds: float
    _seen: int = 1
    _moved_at_s: float | None = None
    _edges: list[Sample] = field(default_factory=list)

    def is_full(self) -> bool:
        """Whether the samples so far, which are taken in, reach over the window."""
        for index in range(self._seen, len(self.samples)):
            self._take(self.samples[index - 1], self.samples[index])
            self._seen = index + 1
        edges = self._edges
        return bool(edges) and edges[-1].at_s - edges[0].at_s >= self.seconds

    def mean_power(self) -> tuple[float, float, float]:
        """Begin and end of the full window (s), and the mean power within (W)."""
        first = self._edges[0]
        place = bisect_left(self._edges, first.at_s + self.seconds, key=lambda edge: edge.at_s)
        # The difference of two floats may fall short of `seconds` by their rounding.
        last = self._edges[min(place, len(self._edges) - 1)]
        power_w = (last.value - first.value) / 1e3 / (last.at_s - first.at_s)
        return first.at_s, last.at_s, power_w

    def powers_w(self) -> list[float]:
        """Mean power of each part of the full window; empty of one too short to tell."""
        begin, end, _ = self.mean_power()
        edges = [edge for edge in self._edges if edge.at_s <= end]
        ends = [
            edges[bisect_left(edges, at, key=lambda edge: edge.at_s)] for at in _ends(begin, end)
        ]
        return [
            (after.value - before.value) / 1e3 / (after.at_s - before.at_s)
            for before, after in pairwise(ends)
        ]

    def _take(self, before: Sample, after: Sample) -> None:
        gained_mj, moved_at_s = after.value - before.value, self._moved_at_s
        if gained_mj < 0:
            raise self._void(f"ran backwards by {-gained_mj:.0f} mJ")
        if gained_mj == 0:
            still_s = after.at_s - (self.samples[0].at_s if moved_at_s is None else moved_at_s)
            if still_s > self.meter.still_s:
                raise self._void(f"did not move for {still_s:.1f} s")
            return
        # What it gained before its first change was seen is unknown.
        if moved_at_s is not None and gained_mj / 1e3 / (after.at_s - moved_at_s) > _MOST_W:
            raise self._void(f"jumped by {gained_mj / 1e3:.0f} J at once (it was reset)")
        self._moved_at_s = after.at_s
        if after.at_s >= self.settled:
            self._edges.append(after)

    def _void(self, reason: str) -> ReadingVoid:
        return ReadingVoid(f"{self.meter.name}: the energy counter {reason}")


@dataclass(eq=False)
class PowerWindow:
    """A power sensor's samples after ``settled``, over ``seconds`` or more."""

    meter: SampledMeter
    samples: Sequence[Sample]
    settled: float
    seconds: float

    def is_full(self) -> bool:
        """Whether the samples reach over it; two more are waited for: it ends under load."""
        if time.perf_counter() < self.settled + self.seconds + 2 * self.meter.poll_s:
            return False
        place = bisect_right(self.samples, self.settled, key=lambda sample: sample.at_s)
        since = self.samples[place:]
        return bool(since) and since[-1].at_s - since[0].at_s >= self.seconds

    def mean_power(self) -> tuple[float, float, float]:
        window = [sample for sample in self.samples if sample.at_s >= self.settled]
        begin, end = window[0].at_s, window[-1].at_s
        energy_j = sum((a.value + b.value) / 2 * (b.at_s - a.at_s) for a, b in pairwise(window))
        power_w = energy_j / (end - begin)
        if not power_w > 0:
            raise ReadingVoid(f"{self.meter.name}: the power sensor read {power_w:.3g} W")
        return begin, end, power_w

    def powers_w(self) -> list[float]:
        """Mean power of each part of the full window; empty of one too short to tell."""
        window = [sample for sample in self.samples if sample.at_s >= self.settled]
        found = []
        for begin, end in pairwise(_ends(window[0].at_s, window[-1].at_s)):
            part = [sample.value for sample in window if begin <= sample.at_s <= end]
            found += [sum(part) / len(part)] if part else []
        return found


def _ends(begin: float, end: float) -> list[float]:
    """Where the parts of a window begin and end; empty of one too short to be parted."""
    if end - begin < _PARTS * _PART_S:
        return []
    return [begin + (end - begin) * part / _PARTS for part in range(_PARTS)] + [end]
