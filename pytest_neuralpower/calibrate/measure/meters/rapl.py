"""Intel and AMD processors: RAPL's energy counters through Linux's powercap files.

Sums the packages and, where it is a zone of its own, the memory; skips ``psys``, which holds both
once more. Counters are in microjoules, move every millisecond and wrap at ``max_energy_range_uj``.
The kernel lists a zone for each die of a package (``package-0-die-1``): Intel's have a counter
each, AMD's show the package's one, which counts once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pytest_neuralpower.calibrate.measure.meters.base import (
    NO_METER,
    CounterWindow,
    SampledMeter,
    Step,
    file_text,
)
from pytest_neuralpower.calibrate.measure.meters.probe import USUAL_PROBE, Probe
from pytest_neuralpower.errors import DeviceLost, MeterRefused

_POLL_S: Final = 0.02
_STILL: Final = f"RAPL counts nothing inside most virtual machines; {NO_METER}"


def open_rapl(
    *, load: Step, probe: Probe = USUAL_PROBE, sysfs: Path = Path("/sys")
) -> SampledMeter:
    """A meter over the processor's packages and memory, proven under ``load``.

    Raises
    ------
    MeterRefused
        No counters, counters that only root may read, or counters that stand still.
    """
    folder = sysfs / "class" / "powercap"
    # `intel-rapl-mmio:0` shows package 0 a second time; the prefix leaves it out.
    zones = [_Zone(path) for path in sorted(folder.glob("intel-rapl:*")) if _is_counted(path)]
    if not zones:
        raise MeterRefused(
            f"rapl: no package counter under {folder} (not Linux on Intel or AMD, or a virtual "
            f"machine or container that hides it); {NO_METER}"
        )
    try:
        for zone in zones:
            zone.read_uj()
    except PermissionError as error:
        raise MeterRefused(
            f"rapl: only root may read {error.filename}; run once: sudo chmod a+r "
            f"{folder}/intel-rapl:*/energy_uj"
        ) from None
    except (OSError, ValueError) as error:
        raise MeterRefused(f"rapl: a counter cannot be read ({error}); use --meter none") from None

    def read_mj() -> float:
        try:
            return sum(zone.read_uj() for zone in zones) / 1e3
        except (OSError, ValueError) as error:
            raise DeviceLost(f"rapl: a counter can no longer be read ({error})") from None

    meter = SampledMeter(
        name="rapl",
        method=_method(zones),
        window=CounterWindow,
        read=read_mj,
        poll_s=_POLL_S,
        still_s=probe.still_s,
    )
    probe.check_under_load(meter, load, advice=_STILL)
    mirrors = [
        zone for at, zone in enumerate(zones) if any(_mirrors(zone, each) for each in zones[:at])
    ]
    if mirrors:
        names = ", ".join(zone.name for zone in mirrors)
        zones = [zone for zone in zones if zone not in mirrors]
        meter.method = _method(zones)
        meter.notes = (f"rapl: {names} shows the counter of another die: counted once",)
    return meter


def _method(zones: Sequence[_Zone]) -> str:
    return f"RAPL counters of {', '.join(zone.name for zone in zones)}"


#: Times that two counters are looked at: their readings are a moment apart.
_LOOKS: Final = 50


def _mirrors(zone: _Zone, other: _Zone) -> bool:
    """Whether a die's counter is that of another die of its package: what it shows lies between two
    readings of the other, taken before and after."""
    package, is_die, _ = zone.name.partition("-die-")
    return bool(is_die and other.name.startswith(f"{package}-die-")) and any(
        other.shown_uj() <= zone.shown_uj() <= other.shown_uj() for _ in range(_LOOKS)
    )


def _is_counted(path: Path) -> bool:
    name = file_text(path / "name")
    return name.startswith("package") or name == "dram"


class _Zone:
    """One counter, counted on past its wraps."""

    def __init__(self, path: Path) -> None:
        self.name = file_text(path / "name")
        self._counter = path / "energy_uj"
        self._range_uj = int(file_text(path / "max_energy_range_uj") or 0)
        self._last_uj: int | None = None
        self._wrapped_uj = 0

    def shown_uj(self) -> int:
        """What its file shows."""
        return int(self._counter.read_text(encoding="ascii"))

    def read_uj(self) -> int:
        now_uj = self.shown_uj()
        if self._last_uj is not None and now_uj < self._last_uj:
            self._wrapped_uj += self._range_uj
        self._last_uj = now_uj
        return now_uj + self._wrapped_uj
