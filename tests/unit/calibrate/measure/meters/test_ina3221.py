"""Jetson's meter over trees of sysfs files as three generations of boards show them."""

import time
from pathlib import Path

import pytest

from pytest_neuralpower.calibrate.measure.meters.ina3221 import open_ina3221
from pytest_neuralpower.calibrate.measure.meters.probe import Probe
from pytest_neuralpower.errors import DeviceLost, MeterRefused, ReadingVoid

SHORT = Probe(load_s=0.05, settle_s=0.0)


def step() -> None:
    time.sleep(0.004)


def write(folder: Path, **values: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name).write_text(f"{value}\n")
    return folder


def orin(sysfs: Path, label: str = "VDD_IN") -> Path:
    """JetPack 5 and later: mainline driver, millivolts and milliamperes."""
    return write(
        sysfs / "class" / "hwmon" / "hwmon1",
        name="ina3221",
        in1_label=label,
        in1_input=5000,
        curr1_input=2400,
        in2_label="VDD_CPU_GPU_CV",
        in2_input=5000,
        curr2_input=900,
        in7_label="sum of shunt voltages",
    )


def nano(sysfs: Path) -> None:
    """JetPack 4: the industrial I/O driver, milliwatts."""
    device = sysfs / "bus" / "i2c" / "drivers" / "ina3221x" / "6-0040" / "iio:device0"
    write(device, rail_name_0="POM_5V_IN", in_power0_input=4321)
    write(device, rail_name_1="POM_5V_GPU", in_power1_input=1000)


def thor(sysfs: Path) -> None:
    """Thor: rails on an INA3221, the input on an INA238 in microwatts."""
    orin(sysfs, label="VDD_GPU")
    write(sysfs / "class" / "hwmon" / "hwmon2", name="ina238", power1_input=61_500_000)


def agx_orin(sysfs: Path) -> None:
    """No rail feeds the whole module; the memory's is fed by the third."""
    first, second = (sysfs / "class" / "hwmon" / name for name in ("hwmon3", "hwmon4"))
    rails = {"VDD_GPU_SOC": 600, "VDD_CPU_CV": 300, "VIN_SYS_5V0": 1000}
    for number, (label, amperes) in enumerate(rails.items(), 1):
        volts = 5000 if label == "VIN_SYS_5V0" else 20000
        write(first, **{f"in{number}_label": label, f"in{number}_input": volts})
        write(first, name="ina3221", **{f"curr{number}_input": amperes})
    write(second, name="ina3221", in2_label="VDDQ_VDD2_1V8AO", in2_input=5000, curr2_input=200)


def agx_xavier(sysfs: Path) -> None:
    """JetPack 4: six rails on two monitors."""
    rails = ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V")
    for number, name in enumerate(rails):
        place = f"1-004{number // 3}/iio:device{number // 3}"
        device = sysfs / "bus" / "i2c" / "drivers" / "ina3221x" / place
        channel = number % 3
        write(device, **{f"rail_name_{channel}": name, f"in_power{channel}_input": 1000 + number})


@pytest.mark.parametrize(
    ("board", "watts", "rail"),
    [
        (orin, 12.0, "rail VDD_IN"),
        (nano, 4.321, "rail POM_5V_IN"),
        (thor, 61.5, "rail VDD_IN"),
        (agx_orin, 23.0, "sum of rails VDD_GPU_SOC, VDD_CPU_CV, VIN_SYS_5V0"),
        (agx_xavier, 6.015, "sum of rails GPU, CPU, SOC, CV, VDDRQ, SYS5V"),
    ],
    ids=["Orin", "Nano", "Thor", "AGX Orin", "AGX Xavier"],
)
def test_reads_the_rail_that_feeds_the_board(
    tmp_path: Path, board: object, watts: float, rail: str
) -> None:
    assert callable(board)
    board(tmp_path)
    meter = open_ina3221(load=step, probe=SHORT, least_s=0.05, sysfs=tmp_path)
    reading = meter.measure(step, seconds=0.05, settle_s=0.0)
    assert reading.power_w == pytest.approx(watts)
    assert reading.energy_mj == pytest.approx(watts * reading.seconds * 1e3)
    assert rail in meter.method


def test_idle_power_is_read_without_load(tmp_path: Path) -> None:
    orin(tmp_path)
    meter = open_ina3221(load=step, probe=SHORT, least_s=0.05, sysfs=tmp_path)
    assert meter.idle_w(0.05) == pytest.approx(12.0)


def test_power_is_the_mean_over_the_window(tmp_path: Path) -> None:
    board = orin(tmp_path)
    meter = open_ina3221(load=step, probe=SHORT, least_s=0.3, sysfs=tmp_path)
    begun = time.perf_counter()

    def rising() -> None:
        step()
        amperes = 2400 if time.perf_counter() - begun < 0.15 else 4800
        write(board, **{"curr1_input.part": amperes})
        (board / "curr1_input.part").replace(board / "curr1_input")

    reading = meter.measure(rising, seconds=0.05, settle_s=0.0)
    assert reading.seconds >= 0.3  # whatever was asked for
    assert reading.power_w == pytest.approx(18.0, abs=3.0)


def test_windows_are_ten_seconds_unless_told(tmp_path: Path) -> None:
    orin(tmp_path)
    meter = open_ina3221(load=step, probe=SHORT, sysfs=tmp_path)
    begun = time.perf_counter()

    def until_late() -> None:
        step()
        if time.perf_counter() - begun > 0.25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        meter.measure(until_late, seconds=0.05, settle_s=0.0)


def test_a_machine_without_monitors_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "class" / "hwmon" / "hwmon0", name="coretemp", temp1_input=41000)
    with pytest.raises(MeterRefused, match=r"no INA3221 or INA238 power monitor.*--meter none"):
        open_ina3221(load=step, probe=SHORT, sysfs=tmp_path)


def test_a_board_without_a_total_rail_names_those_it_has(tmp_path: Path) -> None:
    orin(tmp_path, label="VDD_GPU_SOC")
    with pytest.raises(MeterRefused, match=r"rails VDD_GPU_SOC, VDD_CPU_GPU_CV and none of VDD_IN"):
        open_ina3221(load=step, probe=SHORT, sysfs=tmp_path)


def test_a_monitor_that_shows_no_power_is_refused(tmp_path: Path) -> None:
    write(orin(tmp_path), curr1_input=0)
    with pytest.raises(MeterRefused, match=r"read 0 W; the monitor shows no power"):
        open_ina3221(load=step, probe=SHORT, least_s=0.05, sysfs=tmp_path)


def test_a_rail_without_a_number_is_refused(tmp_path: Path) -> None:
    (orin(tmp_path) / "curr1_input").unlink()
    with pytest.raises(MeterRefused, match=r"rail VDD_IN cannot be read .*curr1_input"):
        open_ina3221(load=step, probe=SHORT, sysfs=tmp_path)


def test_a_monitor_that_fails_midway(tmp_path: Path) -> None:
    board = orin(tmp_path)
    meter = open_ina3221(load=step, probe=SHORT, least_s=0.05, sysfs=tmp_path)
    write(board, curr1_input=0)
    with pytest.raises(ReadingVoid, match="read 0 W"):
        meter.measure(step, seconds=0.05, settle_s=0.0)
    (board / "curr1_input").unlink()
    with pytest.raises(DeviceLost, match="can no longer be read"):
        meter.measure(step, seconds=0.05, settle_s=0.0)
