"""What a device was like while it was measured, and whether that voids the trial.

A trial is void when the clock moved by more than 2% under its load or when the device was
slowed down (heat, power brake). Clocks are watched, never set.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final, Protocol

from pytest_neuralpower.calibrate.measure.meters.counter import Sampler
from pytest_neuralpower.calibrate.measure.meters.nvml import NvmlDevice, cuda_uuid
from pytest_neuralpower.calibrate.measure.meters.rapl import text
from pytest_neuralpower.errors import MeterRefused

__all__ = ["Conditions", "CpuWatch", "NvmlWatch", "Watch", "Watched", "watch_device"]

_MOST_CLOCK_MOVE: Final = 0.02
_POLL_S: Final = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """A device over one trial; None and empty where it does not say.

    Attributes
    ----------
    clock_mhz
        Median clock.
    clock_moved
        (highest - lowest) / median of the clocks; None for a processor, whose cores never hold
        theirs still.
    throttles
        What slowed the device down, in words.
    power_capped
        Whether the power limit held the clock down at any moment. This is how a heavy load runs
        and voids nothing as long as the clock holds.
    temperature_c
        The highest.
    utilisation
        Mean share of time the device was busy, 0 to 1; of a processor, all its cores.
    """

    clock_mhz: float | None = None
    clock_moved: float | None = None
    throttles: tuple[str, ...] = ()
    power_capped: bool = False
    temperature_c: float | None = None
    utilisation: float | None = None

    @property
    def void(self) -> str | None:
        """Why the trial must not be used; None when it may."""
        if self.throttles:
            return f"the device was throttled ({', '.join(self.throttles)})"
        if self.clock_moved is not None and self.clock_moved > _MOST_CLOCK_MOVE:
            return f"the clock moved by {self.clock_moved:.1%} (at most {_MOST_CLOCK_MOVE:.0%})"
        return None


@dataclass(slots=True)
class Watched:
    """``conditions`` are filled when the watched block has ended."""

    conditions: Conditions = field(default_factory=Conditions)
    counts_from_s: float = 0.0

    def loaded(self, settle_s: float) -> None:
        """The load begins now: what was seen before, and while it settles, does not count.

        An idle device lowers its clock, and one that a load heats up may lower it, too.
        """
        self.counts_from_s = time.perf_counter() + settle_s


class Watch(Protocol):
    """Watches one device, trial by trial."""

    @contextmanager
    def during(self) -> Iterator[Watched]:
        """Watch while the block runs; ``conditions`` of what it yields are there afterwards.

        Raises
        ------
        DeviceLost
            The device went away, also when the block itself failed of it.
        """
        ...

    def temperature_c(self) -> float | None:
        """The device's temperature now."""
        ...

    def close(self) -> None:
        """Release the driver."""
        ...


def watch_device(device: str) -> Watch:
    """A watch over a torch device; over one that has nothing to show, conditions are empty."""
    if device.startswith("cuda"):
        try:
            return NvmlWatch(NvmlDevice(cuda_uuid(device)))
        except MeterRefused:
            return _Blind()
    return CpuWatch() if device.startswith("cpu") else _Blind()


class NvmlWatch:
    """Clock, throttling, temperature and utilisation of an NVIDIA device, every 50 ms."""

    def __init__(self, device: NvmlDevice) -> None:
        self._device = device
        self.temperature_c = device.temperature_c
        self.close = device.close

    @contextmanager
    def during(self) -> Iterator[Watched]:
        """See :meth:`Watch.during`."""
        watched, device = Watched(), self._device
        clocks: list[float] = []
        temperatures: list[float] = []
        busy: list[float] = []
        throttles: dict[str, None] = {}  # keeps the order
        capped = False

        def look() -> float:
            nonlocal capped
            if time.perf_counter() < watched.counts_from_s:
                for seen in (clocks, temperatures, busy, throttles):
                    seen.clear()
                capped = False
                return 0.0
            _keep(clocks, device.sm_clock_mhz)
            _keep(temperatures, device.temperature_c)
            _keep(busy, device.utilisation)
            throttles.update(dict.fromkeys(device.throttles()))
            capped = device.power_capped() or capped
            return 0.0

        with Sampler(look, every_s=_POLL_S):
            yield watched
        watched.conditions = Conditions(
            clock_mhz=median(clocks) if clocks else None,
            clock_moved=(max(clocks) - min(clocks)) / median(clocks) if clocks else None,
            throttles=tuple(throttles),
            power_capped=capped,
            temperature_c=max(temperatures, default=None),
            utilisation=sum(busy) / len(busy) if busy else None,
        )


def _keep(values: list[float], read: Callable[[], float | None]) -> None:
    value = read()
    if value is not None:
        values.append(value)


class CpuWatch:
    """A Linux processor: throttling by count, clock, temperature and busy time.

    Elsewhere, and in virtual machines that hide them, the conditions are empty.
    """

    def __init__(self, *, sysfs: Path = Path("/sys"), proc: Path = Path("/proc")) -> None:
        self._cpus = sysfs / "devices" / "system" / "cpu"
        self._zones = sysfs / "class" / "thermal"
        self._stat = proc / "stat"

    @contextmanager
    def during(self) -> Iterator[Watched]:
        """See :meth:`Watch.during`; these are counters, so all of the block counts."""
        watched = Watched()
        throttled, busy = self._throttled(), self._busy()
        yield watched
        clocks = self._numbers(self._cpus, "cpu[0-9]*/cpufreq/scaling_cur_freq")
        watched.conditions = Conditions(
            clock_mhz=median(clocks) / 1e3 if clocks else None,
            throttles=("heat",) if self._throttled() > throttled else (),
            temperature_c=self.temperature_c(),
            utilisation=_share(busy, self._busy()),
        )

    def temperature_c(self) -> float | None:
        """The hottest of the machine's thermal zones."""
        zones = self._numbers(self._zones, "thermal_zone*/temp")
        return max(zones) / 1e3 if zones else None

    def close(self) -> None:
        """Nothing is held."""

    def _throttled(self) -> float:
        return sum(self._numbers(self._cpus, "cpu[0-9]*/thermal_throttle/core_throttle_count"))

    def _busy(self) -> tuple[int, int]:
        """Ticks of all cores that were idle, and all, since the start of the machine."""
        line = text(self._stat).partition("\n")[0]
        # user nice system idle iowait irq softirq steal; guests are within user already.
        ticks = [int(word) for word in line.split()[1:9]]
        return (ticks[3] + ticks[4], sum(ticks)) if len(ticks) > 4 else (0, 0)

    @staticmethod
    def _numbers(folder: Path, pattern: str) -> list[float]:
        found = (text(path) for path in folder.glob(pattern))
        return [float(number) for number in found if number.lstrip("-").isdigit()]


def _share(before: tuple[int, int], after: tuple[int, int]) -> float | None:
    idle, total = after[0] - before[0], after[1] - before[1]
    return 1 - idle / total if total > 0 else None


class _Blind:
    """A device that shows nothing of itself."""

    @contextmanager
    def during(self) -> Iterator[Watched]:
        yield Watched()

    def temperature_c(self) -> None:
        """Nothing is known."""

    def close(self) -> None:
        """Nothing is held."""
