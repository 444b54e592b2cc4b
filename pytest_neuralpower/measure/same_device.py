"""Which device of this machine a platform was measured on: elsewhere nothing can be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_neuralpower.errors import OptionError
from pytest_neuralpower.measure.device_facts import device_facts
from pytest_neuralpower.measure.preflight import resolve_device
from pytest_neuralpower.platform import Platform

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_neuralpower.platform import AnyPlatform

__all__ = ["calibration_record", "device_of", "measured_here", "mode_of"]


def measured_here(platform: AnyPlatform) -> Platform:
    """The platform, if ``neuralpower calibrate`` made it; raises OptionError if not."""
    if not isinstance(platform, Platform) or not platform.provenance.get("calibration"):
        raise OptionError(
            f"{platform.name} comes from tables, not from a device measured here: nothing of it "
            "can be measured again; calibrate your device: neuralpower calibrate NAME"
        )
    return platform


def device_of(platform: Platform) -> str:
    """The torch device of this machine that the platform predicts.

    A platform measured on another specimen of the same model counts: they differ by some per cent,
    which a comparison may well show.

    Raises
    ------
    OptionError
        The platform was not measured by ``neuralpower calibrate``, or on another device.
    """
    records = _records(platform)
    wanted = sorted({record["facts"]["device"] for record in records})
    there = []
    for device in dict.fromkeys(record["facts"]["torch_device"] for record in records):
        try:
            found = resolve_device(device.partition(":")[0])
        except OptionError:
            continue
        there.append(device_facts(found)["device"])
        if there[-1] in wanted:
            return found
    raise OptionError(
        f"{platform.name} was measured on {', '.join(wanted)}; this machine has "
        f"{', '.join(there) or 'no such device'}: run it on the device itself, or calibrate this "
        "one: neuralpower calibrate NAME"
    )


def calibration_record(platform: Platform, uuid: str) -> Mapping[str, Any]:
    """What the platform keeps of the device with this UUID, else of the first of its kind."""
    records = _records(platform)
    same = [record for record in records if record["facts"].get("device_uuid") == uuid]
    return (same or records)[0]


def mode_of(platform: Platform) -> str:
    """How the platform's networks ran: ``eager`` or ``graph``."""
    return str(_records(platform)[0]["facts"].get("mode", "eager"))


def _records(platform: Platform) -> list[Mapping[str, Any]]:
    return list(measured_here(platform).provenance["calibration"])
