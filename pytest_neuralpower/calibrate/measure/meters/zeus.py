"""AMD and Apple devices through ``zeus``, the optional extra of the same name.

Uses zeus's cumulative counters, not its windows: a window on a machine with no device comes
back empty and without an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pytest_neuralpower.calibrate.measure.meters.base import CounterWindow, SampledMeter, Step
from pytest_neuralpower.calibrate.measure.meters.probe import USUAL_PROBE, Probe
from pytest_neuralpower.errors import MeterRefused, MissingExtraError, ReadingVoid

_POLL_S: Final = 0.005
_STILL: Final = "zeus counts no energy of this device; use --meter none"
# What an Apple chip is made of; each is part of no other, and each may be missing.
_APPLE_PARTS: Final = ("cpu_total_mj", "gpu_mj", "gpu_sram_mj", "dram_mj", "ane_mj")


def open_zeus(device: str, *, load: Step, probe: Probe = USUAL_PROBE) -> SampledMeter:
    """A meter over what zeus finds, proven under ``load``.

    Raises
    ------
    MissingExtraError
        zeus is not installed.
    MeterRefused
        zeus finds no device, or counts none of its energy.
    """
    try:
        from zeus.device import get_gpus, get_soc  # noqa: PLC0415 - optional and heavy
    except ImportError:
        raise MissingExtraError(
            "zeus: it is not installed; run: pip install 'pytest-neuralpower[zeus]'"
        ) from None
    try:
        read_mj = _soc(get_soc()) if device in ("cpu", "mps") else _gpu(get_gpus(), device)
        read_mj()  # so that a missing device or counter is found before it is used
    # A vendor's library that is missing in part shows as a KeyError or whatever else it likes.
    except Exception as error:
        raise MeterRefused(
            f"zeus: it finds no device for {device!r} ({type(error).__name__}: {error}); use "
            "--meter none"
        ) from None
    meter = SampledMeter(
        name="zeus",
        method="zeus energy counter, read at its edges",
        window=CounterWindow,
        read=_voiding(read_mj),
        poll_s=_POLL_S,
        still_s=probe.still_s,
    )
    probe.check_under_load(meter, load, advice=_STILL)
    return meter


def _gpu(gpus: Any, device: str) -> Callable[[], float]:
    index = int(device.partition(":")[2] or 0)
    return lambda: float(gpus.get_total_energy_consumption(index))


def _soc(soc: Any) -> Callable[[], float]:
    def total_mj() -> float:
        found = soc.get_total_energy_consumption()
        return float(sum(getattr(found, part, None) or 0 for part in _APPLE_PARTS))

    return total_mj


def _voiding(read_mj: Callable[[], float]) -> Callable[[], float]:
    def read() -> float:
        try:
            return read_mj()
        except Exception as error:
            raise ReadingVoid(f"zeus: {type(error).__name__}: {error}") from None

    return read
