"""What voids a trial: a clock that moves, a device that is slowed down."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stub_gpu import FIRST, FUNCTION_NOT_FOUND, NOT_SUPPORTED, behave, kernel

from pytest_neuralpower.calibrate.measure.conditions import (
    Conditions,
    CpuWatch,
    NvmlWatch,
    watch_device,
)
from pytest_neuralpower.calibrate.measure.meters.nvml import NvmlDevice
from pytest_neuralpower.errors import DeviceLost

Call = Callable[..., Any]


def watched(before: dict[str, float], after: dict[str, float], settle_s: float = 0.0) -> Conditions:
    """A trial that begins as ``before`` and goes on as ``after``, beside the stub."""
    watch = NvmlWatch(NvmlDevice(FIRST))
    behave(**before)
    try:
        with watch.during() as trial:
            trial.loaded(settle_s)
            kernel(seconds=0.08)
            behave(**after)
            kernel(seconds=0.12)
        return trial.conditions
    finally:
        watch.close()


class TestNvidia:
    def test_a_steady_trial_counts(self, beside_gpu: Call) -> None:
        found = beside_gpu(watched, {"utilization": 90}, {"celsius": 55, "utilization": 90})
        assert found.void is None
        assert (found.clock_mhz, found.clock_moved) == (1980.0, 0.0)
        assert found.temperature_c == 55.0

    @pytest.mark.parametrize(("mhz", "void"), [(1950, False), (1935, True)])
    def test_a_clock_that_moves_by_more_than_two_percent_voids_it(
        self, beside_gpu: Call, mhz: float, void: bool
    ) -> None:
        found = beside_gpu(watched, {"clock_mhz": 1980}, {"clock_mhz": mhz})
        assert (found.void is not None) == void
        assert found.clock_moved == pytest.approx((1980 - mhz) / 1965, rel=0.02)

    def test_what_moves_while_it_settles_does_not(self, beside_gpu: Call) -> None:
        found = beside_gpu(watched, {"clock_mhz": 345}, {}, settle_s=0.1)
        assert found.void is None

    @pytest.mark.parametrize(
        ("reasons", "named"),
        [(0x20, "software thermal slowdown"), (0x48, "hardware slowdown, hardware thermal")],
    )
    def test_a_throttled_device_voids_it(
        self, beside_gpu: Call, reasons: float, named: str
    ) -> None:
        found = beside_gpu(watched, {}, {"reasons": reasons})
        assert found.void.startswith(f"the device was throttled ({named}")

    def test_the_power_limit_and_idleness_alone_do_not(self, beside_gpu: Call) -> None:
        found = beside_gpu(watched, {"reasons": 0x1}, {"reasons": 0x4})
        assert found.void is None

    def test_an_older_driver_is_asked_the_older_way(self, beside_gpu: Call) -> None:
        old = {"temperature": FUNCTION_NOT_FOUND, "reasons_query": FUNCTION_NOT_FOUND}
        found = beside_gpu(watched, old, {**old, "reasons": 0x80, "celsius": 60})
        assert found.throttles == ("power brake",)
        assert found.temperature_c == 60.0

    def test_what_the_device_does_not_tell_is_none(self, beside_gpu: Call) -> None:
        silent = {"clock": NOT_SUPPORTED}
        found = beside_gpu(watched, silent, silent)
        assert (found.clock_mhz, found.clock_moved) == (None, None)
        assert found.void is None

    def test_a_lost_device_is_told(self, beside_gpu: Call) -> None:
        with pytest.raises(DeviceLost):
            beside_gpu(watched, {}, {"lost": 1})


class TestProcessor:
    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        core = tmp_path / "devices" / "system" / "cpu" / "cpu0"
        (core / "cpufreq").mkdir(parents=True)
        (core / "thermal_throttle").mkdir()
        (core / "cpufreq" / "scaling_cur_freq").write_text("3400000\n")
        (core / "thermal_throttle" / "core_throttle_count").write_text("7\n")
        zone = tmp_path / "class" / "thermal" / "thermal_zone0"
        zone.mkdir(parents=True)
        (zone / "temp").write_text("61000\n")
        return tmp_path

    def test_shows_clock_and_temperature(self, tree: Path) -> None:
        with CpuWatch(sysfs=tree).during() as trial:
            pass
        assert trial.conditions == Conditions(clock_mhz=3400.0, temperature_c=61.0)
        assert trial.conditions.void is None

    def test_heat_voids_it(self, tree: Path) -> None:
        count = tree / "devices" / "system" / "cpu" / "cpu0" / "thermal_throttle"
        with CpuWatch(sysfs=tree).during() as trial:
            (count / "core_throttle_count").write_text("8\n")
        assert trial.conditions.void == "the device was throttled (heat)"

    def test_a_machine_that_shows_nothing_voids_nothing(self, tmp_path: Path) -> None:
        with CpuWatch(sysfs=tmp_path).during() as trial:
            pass
        assert trial.conditions == Conditions()

    def test_this_machine_is_watched_without_ado(self) -> None:
        watch = watch_device("cpu")
        with watch.during() as trial:
            time.sleep(0.05)
        watch.close()
        assert trial.conditions.clock_mhz is None or trial.conditions.clock_mhz > 0

    def test_a_failing_trial_fails_as_itself(self) -> None:
        with pytest.raises(ZeroDivisionError), watch_device("cpu").during():
            raise ZeroDivisionError
