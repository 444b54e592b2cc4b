"""Which meter a device gets, and what is said of those it does not."""

import importlib.util
import math
import time
from pathlib import Path

import pytest

from pytest_neuralpower.calibrate.measure.device import choose_meter
from pytest_neuralpower.calibrate.measure.meters.base import METERS, Meter
from pytest_neuralpower.calibrate.measure.meters.probe import Probe
from pytest_neuralpower.errors import MeterRefused, MissingExtraError, NeuralPowerError, OptionError

SHORT = Probe(load_s=0.05, settle_s=0.0, idle_s=0.1, patience_s=0.0)
NO_ZEUS = importlib.util.find_spec("zeus") is None


def step() -> None:
    time.sleep(0.002)


def chosen(name: str, device: str, sysfs: Path, watts: float | None = None) -> Meter:
    return choose_meter(name, device, load=step, watts=watts, probe=SHORT, sysfs=sysfs)


def jetson(sysfs: Path) -> None:
    monitor = sysfs / "class" / "hwmon" / "hwmon0"
    monitor.mkdir(parents=True)
    (monitor / "name").write_text("ina238\n")
    (monitor / "power1_input").write_text("30000000\n")


class TestNone:
    def test_gives_runtime_and_no_energy_not_even_zero(self, tmp_path: Path) -> None:
        meter = chosen("none", "cpu", tmp_path)
        reading = meter.measure(step, seconds=0.05, settle_s=0.01)
        assert meter.source is None
        assert reading.power_w is None
        assert reading.energy_mj is None
        assert reading.steps > 1
        assert 0.05 <= reading.seconds < 0.5
        assert meter.idle_w(0.1) is None

    def test_watts_of_the_user_are_an_estimate(self, tmp_path: Path) -> None:
        meter = chosen("none", "cpu", tmp_path, watts=65.0)
        reading = meter.measure(step, seconds=0.05, settle_s=0.0)
        assert meter.source == "estimated"
        assert meter.method == "65 W given by the user"
        assert reading.energy_mj == pytest.approx(65e3 * reading.seconds)

    @pytest.mark.parametrize("watts", [0.0, -5.0, math.nan, math.inf])
    def test_watts_must_be_a_positive_number(self, tmp_path: Path, watts: float) -> None:
        with pytest.raises(OptionError, match=r"--watts .*: power must be a positive number"):
            chosen("none", "cpu", tmp_path, watts=watts)


class TestAuto:
    def test_falls_to_none_and_keeps_each_refusal(self, tmp_path: Path) -> None:
        meter = chosen("auto", "cpu", tmp_path)
        assert meter.name == "none"
        assert [note.partition(":")[0] for note in meter.notes] == ["rapl", "ina3221", "zeus"]
        assert not any("\n" in note for note in meter.notes)

    def test_takes_the_users_watts_when_nothing_measures(self, tmp_path: Path) -> None:
        assert chosen("auto", "cpu", tmp_path, watts=30.0).source == "estimated"

    def test_takes_what_measures_and_says_what_did_not(self, tmp_path: Path) -> None:
        jetson(tmp_path)
        meter = chosen("auto", "cpu", tmp_path)
        assert (meter.name, meter.source) == ("ina3221", "measured")
        assert [note.partition(":")[0] for note in meter.notes] == ["rapl"]

    def test_a_device_that_no_meter_fits_has_none(self, tmp_path: Path) -> None:
        meter = chosen("auto", "xpu", tmp_path)
        assert (meter.name, meter.notes) == ("none", ())


class TestByName:
    def test_an_unknown_name_lists_the_known(self, tmp_path: Path) -> None:
        with pytest.raises(OptionError, match=f"--meter wattmeter: .* {', '.join(METERS)}"):
            chosen("wattmeter", "cpu", tmp_path)

    def test_watts_do_not_go_with_a_meter(self, tmp_path: Path) -> None:
        with pytest.raises(OptionError, match="--watts 65: it stands in for a meter"):
            chosen("rapl", "cpu", tmp_path, watts=65.0)

    def test_a_meter_of_another_device_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(MeterRefused, match=r"nvml: it does not measure 'cpu'; .*rapl"):
            chosen("nvml", "cpu", tmp_path)

    @pytest.mark.parametrize(
        ("name", "device"), [("rapl", "cpu"), ("ina3221", "cpu"), ("nvml", "cuda:77")]
    )
    def test_a_meter_that_is_not_there_is_refused_in_one_line(
        self, tmp_path: Path, name: str, device: str
    ) -> None:
        with pytest.raises(NeuralPowerError) as refusal:
            chosen(name, device, tmp_path)
        assert str(refusal.value).startswith(f"{name}: ")
        assert "\n" not in str(refusal.value)

    @pytest.mark.skipif(not NO_ZEUS, reason="zeus is installed here")
    def test_zeus_names_its_extra(self, tmp_path: Path) -> None:
        with pytest.raises(MissingExtraError, match=r"pip install 'pytest-neuralpower\[zeus\]'"):
            chosen("zeus", "cpu", tmp_path)

    @pytest.mark.skipif(NO_ZEUS, reason="needs the extra `zeus`")
    def test_zeus_on_a_device_it_does_not_know_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(MeterRefused, match="zeus: it finds no device for 'cuda:77'"):
            chosen("zeus", "cuda:77", tmp_path)
