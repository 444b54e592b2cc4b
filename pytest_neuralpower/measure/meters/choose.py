"""Which meter measures a device: the one asked for, or the first that proves itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_neuralpower.errors import MissingExtraError, OptionError
from pytest_neuralpower.measure.meters.base import Meter, MeterName, MeterRefused, Step
from pytest_neuralpower.measure.meters.none import NoMeter

if TYPE_CHECKING:
    from pytest_neuralpower.measure.meters.probe import Probe

__all__ = ["METERS", "choose_meter"]

#: What ``--meter`` accepts.
METERS: Final = ("auto", "nvml", "rapl", "ina3221", "zeus", "none")

# Kind of torch device -> the meters that read its energy, the finest first. The monitors of a
# Jetson read the whole board, whichever part works.
_FITTING: Final[dict[str, tuple[MeterName, ...]]] = {
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
    probe: Probe | None = None,
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
    openers = _openers(device, load, probe, sysfs)
    if name != "auto":
        if name not in openers:
            raise MeterRefused(
                f"{name}: it does not measure {device!r}; meters of it: "
                f"{', '.join(openers) or 'none'}"
            )
        return openers[name]()
    refusals: list[str] = []
    for opener in openers.values():
        try:
            meter = opener()
        except (MeterRefused, MissingExtraError) as refusal:
            refusals.append(str(refusal))
            continue
        meter.notes = (*refusals, *meter.notes)
        return meter
    none.notes = tuple(refusals)
    return none


def _openers(
    device: str, load: Step, probe: Probe | None, sysfs: Path
) -> dict[str, Callable[[], Meter]]:
    """The meters that fit the device, by name; each is loaded when it is opened."""

    def nvml() -> Meter:
        from pytest_neuralpower.measure.meters.nvml import open_nvml  # noqa: PLC0415
        from pytest_neuralpower.measure.nvml_device import cuda_uuid  # noqa: PLC0415

        return open_nvml(cuda_uuid(device), load=load, probe=probe)

    def rapl() -> Meter:
        from pytest_neuralpower.measure.meters.rapl import open_rapl  # noqa: PLC0415

        return open_rapl(load=load, probe=probe, sysfs=sysfs)

    def ina3221() -> Meter:
        from pytest_neuralpower.measure.meters.ina3221 import open_ina3221  # noqa: PLC0415

        return open_ina3221(load=load, probe=probe, sysfs=sysfs)

    def zeus() -> Meter:
        from pytest_neuralpower.measure.meters.zeus import open_zeus  # noqa: PLC0415

        return open_zeus(device, load=load, probe=probe)

    every = {"nvml": nvml, "rapl": rapl, "ina3221": ina3221, "zeus": zeus}
    return {name: every[name] for name in _FITTING.get(device.partition(":")[0], ())}
