"""Jetson boards: the power monitors on the board, through sysfs.

Reads the rail that feeds the whole module: ``VDD_IN`` or ``POM_5V_IN`` of an INA3221 (mV x mA,
or mW with the kernels of JetPack 4), the input of Thor's INA238 (µW). AGX Orin and AGX Xavier have
none: the rails that their modules take in are summed. The monitors average over tens of
milliseconds and are read over a bus: windows are 10 s or longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from pytest_neuralpower.calibrate.measure.meters.base import (
    NO_METER,
    PowerWindow,
    SampledMeter,
    Step,
    file_text,
)
from pytest_neuralpower.calibrate.measure.meters.probe import USUAL_PROBE, Probe
from pytest_neuralpower.errors import DeviceLost, MeterRefused

_POLL_S: Final = 0.05
_LEAST_S: Final = 10.0
_TOTAL_RAILS: Final = ("VDD_IN", "POM_5V_IN")
#: What modules without such a rail take in. Orin's VDDQ_VDD2_1V8AO is fed by VIN_SYS_5V0.
_PARTS: Final = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
)
_STILL: Final = f"the monitor shows no power; {NO_METER}"


class _Rail(NamedTuple):
    """A rail's name and how its power in watts is read."""

    name: str
    read_w: Callable[[], float]


def open_ina3221(
    *,
    load: Step,
    probe: Probe = USUAL_PROBE,
    least_s: float = _LEAST_S,
    sysfs: Path = Path("/sys"),
) -> SampledMeter:
    """A meter over the board's total input, proven under ``load``.

    Raises
    ------
    MeterRefused
        No monitor, none on the total rail, or one that cannot be read or shows no power.
    """
    rails = list(_rails(sysfs))
    total = _total(rails)
    if total is None:
        raise MeterRefused(_no_total(sysfs, [rail.name for rail in rails]))

    def read_w() -> float:
        try:
            return total.read_w()
        except (OSError, ValueError) as error:
            raise DeviceLost(f"ina3221: the monitor can no longer be read ({error})") from None

    try:
        total.read_w()
    except (OSError, ValueError) as error:
        raise MeterRefused(
            f"ina3221: {total.name} cannot be read ({error}); run as a user who may"
        ) from None

    meter = SampledMeter(
        name="ina3221",
        method=f"board monitor, {total.name}, every {_POLL_S * 1e3:.0f} ms",
        window=PowerWindow,
        read=read_w,
        poll_s=_POLL_S,
    )
    probe.check_under_load(meter, load, advice=_STILL)  # a short look: does it read at all?
    meter.least_s = least_s
    return meter


def _total(rails: Sequence[_Rail]) -> _Rail | None:
    """The rail that feeds the board, or the sum of those that do together."""
    by_name = {rail.name: rail for rail in rails}
    for name in _TOTAL_RAILS:
        if name in by_name:
            return _Rail(f"rail {name}", by_name[name].read_w)
    for names in _PARTS:
        if by_name.keys() >= set(names):
            parts = [by_name[name].read_w for name in names]
            return _Rail(f"sum of rails {', '.join(names)}", _sum(parts))
    return None


def _sum(parts: Sequence[Callable[[], float]]) -> Callable[[], float]:
    return lambda: sum(read_w() for read_w in parts)


def _no_total(sysfs: Path, rails: list[str]) -> str:
    if not rails:
        return (
            f"ina3221: no INA3221 or INA238 power monitor under {sysfs} (not a Jetson?); {NO_METER}"
        )
    return (
        f"ina3221: this board has the rails {', '.join(rails)} and none of "
        f"{', '.join(_TOTAL_RAILS)}, nor all that feed an AGX Orin or Xavier, so its total is not "
        f"measured; {NO_METER}"
    )


def _rails(sysfs: Path) -> Iterator[_Rail]:
    for chip in sorted(sysfs.glob("class/hwmon/hwmon*")):
        driver = file_text(chip / "name")
        if driver.startswith("ina3221"):
            yield from _hwmon_rails(chip)
        elif driver == "ina238":
            # It has one channel, the input of the whole board, and no labels.
            yield _Rail("VDD_IN", _scaled(chip / "power1_input", 1e-6))
    # JetPack 4: the industrial I/O driver `ina3221x`.
    for label in sorted(sysfs.glob("bus/i2c/drivers/ina3221*/*/iio:device*/rail_name_*")):
        channel = label.name.removeprefix("rail_name_")
        yield _Rail(file_text(label), _scaled(label.with_name(f"in_power{channel}_input"), 1e-3))


def _hwmon_rails(chip: Path) -> Iterator[_Rail]:
    for label in sorted(chip.glob("in[1-3]_label")):
        channel = label.name[2]
        power = chip / f"power{channel}_input"
        volts, amperes = chip / f"in{channel}_input", chip / f"curr{channel}_input"
        read_w = _scaled(power, 1e-6) if power.exists() else _product(volts, amperes)
        yield _Rail(file_text(label), read_w)


def _scaled(path: Path, watts: float) -> Callable[[], float]:
    return lambda: int(path.read_text(encoding="ascii")) * watts


def _product(millivolts: Path, milliamperes: Path) -> Callable[[], float]:
    return lambda: _scaled(millivolts, 1e-3)() * _scaled(milliamperes, 1e-3)()
