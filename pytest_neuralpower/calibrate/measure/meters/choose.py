"""Which meter measures a device: the one asked for, or the first that proves itself."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_neuralpower.calibrate.measure.meters.base import METERS, Meter, MeterName, Reading, Step
from pytest_neuralpower.calibrate.measure.meters.ina3221 import open_ina3221
from pytest_neuralpower.calibrate.measure.meters.nvml import cuda_uuid, open_nvml
from pytest_neuralpower.calibrate.measure.meters.probe import USUAL_PROBE, Probe
from pytest_neuralpower.calibrate.measure.meters.rapl import open_rapl
from pytest_neuralpower.calibrate.measure.meters.zeus import open_zeus
from pytest_neuralpower.errors import MeterRefused, MissingExtraError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class NoMeter(Meter):
    """Runs the load and reads no energy: runtime alone, or the user's watts times a runtime.

    Parameters
    ----------
    watts
        Power of the device under load as the user knows it. Energy is then *estimated*;
        without it there is none, and no zero in its place.

    Raises
    ------
    OptionError
        ``watts`` is not a positive number.
    """

    name: MeterName = "none"

    def __init__(self, *, watts: float | None = None) -> None:
        if watts is not None and not (math.isfinite(watts) and watts > 0):
            raise OptionError(
                f"--watts {watts:g}: power must be a positive number of watts, such as 65"
            )
        self.notes = ()
        self.source = None if watts is None else "estimated"
        self.method = "runtime only" if watts is None else f"{watts:g} W given by the user"
        self._watts = watts

    def measure(self, step: Step, *, seconds: float, settle_s: float) -> Reading:
        settled = time.perf_counter() + settle_s
        while time.perf_counter() < settled:
            step()
        steps, start = 0, time.perf_counter()
        while (taken := time.perf_counter() - start) < seconds:
            step()
            steps += 1
        return Reading(seconds=taken, steps=steps, power_w=self._watts)

    def idle_w(self, seconds: float) -> None:
        """Nothing is known of idle power."""

    def close(self) -> None:
        """Nothing is held."""


# Kind of torch device -> the meters that read its energy, the finest first. The monitors of a
# Jetson read the whole board, whichever part works.
_FITTING: Final[Mapping[str, tuple[MeterName, ...]]] = {
    "cuda": ("nvml", "ina3221", "zeus"),
    "cpu": ("rapl", "ina3221", "zeus"),
    "mps": ("zeus",),
}


def choose_meter(
    name: str,
    device: str,
    *,
    load: Step,
    watts: float | None = None,
    probe: Probe = USUAL_PROBE,
    sysfs: Path = Path("/sys"),
) -> Meter:
    """Open the meter that measures ``device``, probed under ``load`` before it is returned.

    Parameters
    ----------
    name
        One of :data:`METERS`. ``auto`` tries what fits the device, then takes ``none``; the
        sentence of each refusal is in :attr:`Meter.notes`.
    device
        A torch device, such as ``cuda:0`` or ``cpu``.
    load
        A few milliseconds of work on the device that has ended when it returns.
    watts
        Power under load as the user knows it, for ``none``; energy is then *estimated*.
    probe
        How long to probe.
    sysfs
        Where the kernel's files are.

    Raises
    ------
    MeterRefused
        The meter asked for does not work here; the message says why and what to do.
    MissingExtraError
        ``zeus`` was asked for and is not installed.
    OptionError
        ``name`` is unknown, or ``watts`` is not positive or goes with a real meter.
    DeviceLost
        The device went away while it was probed.
    """
    if name not in METERS:
        raise OptionError(f"--meter {name}: it is one of {', '.join(METERS)}")
    none = NoMeter(watts=watts)
    if name == "none":
        return none
    if name != "auto" and watts is not None:
        raise OptionError(
            f"--watts {watts:g}: it stands in for a meter; leave it out, or use --meter none"
        )
    openers: Mapping[str, Callable[[], Meter]] = {
        "nvml": lambda: open_nvml(cuda_uuid(device), load=load, probe=probe),
        "rapl": lambda: open_rapl(load=load, probe=probe, sysfs=sysfs),
        "ina3221": lambda: open_ina3221(load=load, probe=probe, sysfs=sysfs),
        "zeus": lambda: open_zeus(device, load=load, probe=probe),
    }
    fitting = _FITTING.get(device.partition(":")[0], ())
    if name != "auto":
        if name not in fitting:
            raise MeterRefused(
                f"{name}: it does not measure {device!r}; meters of it: "
                f"{', '.join(fitting) or 'none'}"
            )
        return openers[name]()
    refusals: list[str] = []
    for candidate in fitting:
        try:
            meter = openers[candidate]()
        except (MeterRefused, MissingExtraError) as refusal:
            refusals.append(str(refusal))
            continue
        meter.notes = (*refusals, *meter.notes)
        return meter
    none.notes = tuple(refusals)
    return none
