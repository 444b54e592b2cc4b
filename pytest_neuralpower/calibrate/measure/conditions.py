"""What a device was like while it was measured, and whether that voids the trial.

A trial is void when the clock moved by more than 2% under its load or when the device was
slowed down (heat, power brake). Clocks are watched, never set.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

from pytest_neuralpower.calibrate.measure.meters.base import Sampler, file_text
from pytest_neuralpower.calibrate.measure.meters.nvml import NvmlDevice, cuda_uuid
from pytest_neuralpower.errors import MeterRefused

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
        (highest - lowest) / median of the clocks under one load; None without one, as the clock of
        a device that idles between small layers moves by itself, and for a processor, whose cores
        never hold theirs still.
    throttles
        What slowed the device down, in words. The power limit is none of it: under it a heavy
        load runs, and as long as the clock holds it voids nothing.
    temperature_c
        The highest.
    """

    clock_mhz: float | None = None
    clock_moved: float | None = None
    throttles: tuple[str, ...] = ()
    temperature_c: float | None = None

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
    counts_from_s: float | None = None

    def loaded(self, settle_s: float) -> None:
        """One load begins now: what was seen before, and while it settles, does not count.

        An idle device lowers its clock, and one that a load heats up may lower it, too.
        """
        self.counts_from_s = time.perf_counter() + settle_s


class Watch:
    """Watches one device, trial by trial; this one is of a device that shows nothing of itself."""

    @contextmanager
    def during(self) -> Iterator[Watched]:
        """Watch while the block runs; ``conditions`` of what it yields are there afterwards.

        Raises
        ------
        DeviceLost
            The device went away, also when the block itself failed of it.
        """
        yield Watched()

    def close(self) -> None:
        """Release the driver."""


def watch_device(device: str) -> Watch:
    """A watch over a torch device; over one that has nothing to show, conditions are empty."""
    if device.startswith("cuda"):
        try:
            return NvmlWatch(NvmlDevice(cuda_uuid(device)))
        except MeterRefused:
            return Watch()
    return CpuWatch() if device.startswith("cpu") else Watch()


class NvmlWatch(Watch):
    """Clock, throttling and temperature of an NVIDIA device, every 50 ms."""

    def __init__(self, device: NvmlDevice) -> None:
        self._device = device

    @contextmanager
    def during(self) -> Iterator[Watched]:
        watched = Watched()
        clocks: list[float] = []
        temperatures: list[float] = []
        throttles: dict[str, None] = {}  # keeps the order

        def look() -> float:
            if time.perf_counter() < (watched.counts_from_s or 0.0):
                for seen in (clocks, temperatures, throttles):
                    seen.clear()
                return 0.0
            for values, name in ((clocks, "sm_clock_mhz"), (temperatures, "temperature_c")):
                value = self._device.read(name)
                if value is not None:
                    values.append(value)
            throttles.update(dict.fromkeys(self._device.throttles()))
            return 0.0

        with Sampler(look, every_s=_POLL_S):
            yield watched
        watched.conditions = Conditions(
            clock_mhz=median(clocks) if clocks else None,
            clock_moved=(max(clocks) - min(clocks)) / median(clocks)
            if clocks and watched.counts_from_s is not None
            else None,
            throttles=tuple(throttles),
            temperature_c=max(temperatures, default=None),
        )

    def temperature_c(self) -> float | None:
        """Temperature of the chip now."""
        return self._device.read("temperature_c")

    def close(self) -> None:
        self._device.close()


class CpuWatch(Watch):
    """A Linux processor: throttling by count, clock and temperature.

    Elsewhere, and in virtual machines that hide them, the conditions are empty.
    """

    def __init__(self, *, sysfs: Path = Path("/sys")) -> None:
        self._cpus = sysfs / "devices" / "system" / "cpu"
        self._zones = sysfs / "class" / "thermal"

    @contextmanager
    def during(self) -> Iterator[Watched]:
        """See :meth:`Watch.during`; these are counters, so all of the block counts."""
        watched = Watched()
        before = self._throttled()
        yield watched
        clocks = _numbers(self._cpus, "cpu[0-9]*/cpufreq/scaling_cur_freq")
        zones = _numbers(self._zones, "thermal_zone*/temp")
        watched.conditions = Conditions(
            clock_mhz=median(clocks) / 1e3 if clocks else None,
            throttles=("heat",) if self._throttled() > before else (),
            temperature_c=max(zones) / 1e3 if zones else None,  # the hottest of the machine
        )

    def _throttled(self) -> float:
        return sum(_numbers(self._cpus, "cpu[0-9]*/thermal_throttle/core_throttle_count"))


def _numbers(folder: Path, pattern: str) -> list[float]:
    texts = (file_text(path) for path in folder.glob(pattern))
    return [float(number) for number in texts if number.lstrip("-").isdigit()]
