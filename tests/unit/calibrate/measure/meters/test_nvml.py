"""NVIDIA's meter against a driver library that behaves as real ones do, and as they fail."""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import pytest
from stub_gpu import (
    DRIVER_NOT_LOADED,
    FIRST,
    IDLE_W,
    LOAD_W,
    NOT_SUPPORTED,
    SECOND,
    behave,
    kernel,
)

from pytest_neuralpower.calibrate.measure.meters.base import Meter
from pytest_neuralpower.calibrate.measure.meters.nvml import NvmlDevice, open_nvml
from pytest_neuralpower.calibrate.measure.meters.probe import Probe
from pytest_neuralpower.errors import DeviceLost, MeterRefused, ReadingVoid

SHORT = Probe(load_s=0.08, settle_s=0.05, idle_s=0.24, patience_s=10.0, still_s=0.6)
HASTY = replace(SHORT, patience_s=0.0)

Call = Callable[..., Any]


# --- in the process beside the stub ---


@cache
def opened() -> Meter:
    return open_nvml(FIRST, load=kernel, probe=SHORT)


def opening(probe: Probe = HASTY, uuid: str = FIRST, **settings: float) -> None:
    behave(**settings)
    open_nvml(uuid, load=kernel, probe=probe)


def offered() -> tuple[str, tuple[str, ...]]:
    return opened().method, opened().notes


def reading(seconds: float) -> dict[str, Any]:
    found = opened().measure(kernel, seconds=seconds, settle_s=0.05)
    return {**asdict(found), "energy_mj": found.energy_mj}


def idle_w() -> float | None:
    return opened().idle_w(0.2)


def powers_w() -> list[float | None]:
    devices = [NvmlDevice(uuid) for uuid in (FIRST, SECOND)]
    try:
        return [device.read("power_w") for device in devices]
    finally:
        for device in devices:
            device.close()


def polled(**settings: float) -> tuple[str, tuple[str, ...]]:
    behave(**settings)
    meter = open_nvml(FIRST, load=kernel, probe=SHORT)
    meter.close()
    meter.close()  # a second time does nothing
    return meter.method, meter.notes


def polled_w(**settings: float) -> float | None:
    behave(**settings)
    meter = open_nvml(FIRST, load=kernel, probe=SHORT)
    return meter.measure(kernel, seconds=0.15, settle_s=0.0).power_w


def measured_while(**settings: float) -> None:
    """A reading in the middle of which the device begins to misbehave."""
    meter, begun = opened(), time.perf_counter()

    def step() -> None:
        if time.perf_counter() - begun > 0.25:
            behave(**settings)
        kernel()

    meter.measure(step, seconds=3.0, settle_s=0.0)


# --- here ---

#: What is wrong -> how the stub is told, what the refusal says.
REFUSED: dict[str, tuple[dict[str, float], str]] = {
    "no driver": (
        {"init": DRIVER_NOT_LOADED},
        "no NVIDIA driver answers here (Driver Not Loaded)",
    ),
    "split": ({"mig": 1}, "is split by MIG"),
    "guest": ({"virtualization": 2}, "virtual GPU"),
    "host of guests": ({"virtualization": 3}, "virtual GPU"),
    "no meter": (
        {"energy": NOT_SUPPORTED, "instant": NOT_SUPPORTED, "average": NOT_SUPPORTED},
        "neither energy nor power",
    ),
    "frozen": ({"frozen": 1}, "the energy counter did not move for"),
    "backwards": ({"backwards": 1}, "the energy counter ran backwards"),
    "no power": ({"energy": NOT_SUPPORTED, "idle_mw": 0}, "the power sensor read 0 W"),
    "busy": ({"utilization": 5}, "5% busy, at most 2% is allowed; stop what else runs on it"),
    "restless": ({"swing_mw": 200e3}, "idle power moves by"),
}


class TestEnergyCounter:
    def test_power_is_energy_between_two_edges_over_their_time(self, beside_gpu: Call) -> None:
        found = beside_gpu(reading, 0.45)
        assert found["power_w"] == pytest.approx(LOAD_W, rel=0.06)
        # The counter moves every 100 ms: 0.45 s are 5 of its steps, no fraction of one.
        assert found["seconds"] == pytest.approx(0.5, abs=0.03)
        assert found["steps"] == pytest.approx(found["seconds"] / 0.0055, rel=0.25)
        assert found["energy_mj"] == pytest.approx(found["power_w"] * found["seconds"] * 1e3)

    def test_idle_power_is_that_without_load(self, beside_gpu: Call) -> None:
        assert beside_gpu(idle_w) == pytest.approx(IDLE_W, rel=0.06)

    def test_the_device_is_found_by_uuid_not_by_place(self, beside_gpu: Call) -> None:
        assert beside_gpu(powers_w) == [IDLE_W, 2 * IDLE_W]

    def test_is_preferred_and_has_nothing_to_excuse(self, beside_gpu: Call) -> None:
        assert beside_gpu(offered) == ("NVML energy counter, read at its edges", ())


class TestWithoutCounter:
    @pytest.mark.parametrize(
        ("settings", "kind"),
        [
            ({"energy": NOT_SUPPORTED}, "instantaneous"),
            ({"energy": NOT_SUPPORTED, "instant": NOT_SUPPORTED}, "average"),
        ],
    )
    def test_power_is_polled_and_called_a_lower_tier(
        self, beside_gpu: Call, settings: dict[str, float], kind: str
    ) -> None:
        method, notes = beside_gpu(polled, **settings)
        assert method == f"NVML {kind} power every 20 ms"
        assert f"{kind} power is polled instead, a lower tier" in notes[0]

    def test_polled_power_is_the_loads(self, beside_gpu: Call) -> None:
        power_w = beside_gpu(polled_w, energy=NOT_SUPPORTED)
        # Some polls fall between two kernels.
        assert power_w == pytest.approx(LOAD_W, rel=0.15)


class TestRefusals:
    @pytest.mark.parametrize(("settings", "sentence"), REFUSED.values(), ids=REFUSED)
    def test_say_why_and_what_to_do(
        self, beside_gpu: Call, settings: dict[str, float], sentence: str
    ) -> None:
        with pytest.raises(MeterRefused) as refusal:
            beside_gpu(opening, **settings)
        message = str(refusal.value)
        assert message.startswith("nvml: ")
        assert sentence in message
        assert ";" in message
        assert "\n" not in message

    def test_a_counter_that_is_not_the_power(self, beside_gpu: Call) -> None:
        with pytest.raises(MeterRefused, match=r"says (2|3)\d\d\.\d W .* more than 20% apart; use"):
            beside_gpu(opening, SHORT, counter_scale=1.5)

    def test_a_meter_that_does_not_see_the_load(self, beside_gpu: Call) -> None:
        with pytest.raises(MeterRefused, match=r"W idle, so the meter does not see the load; use"):
            beside_gpu(opening, SHORT, load_mw=50e3)

    def test_an_unknown_device_lists_those_there_are(self, beside_gpu: Call) -> None:
        with pytest.raises(MeterRefused, match=f"no device GPU-9, only {FIRST}, {SECOND};"):
            beside_gpu(opening, uuid="GPU-9")

    def test_a_machine_without_the_driver(self) -> None:
        # In this process there is no stub; a real driver does not list this device either.
        with pytest.raises(MeterRefused, match=r"no NVIDIA driver answers here|lists no device"):
            open_nvml("GPU-9", load=lambda: None)


def other_load() -> tuple[float, tuple[str, ...]]:
    """A reading while another process begins to use the device, after the probe."""
    meter = open_nvml(FIRST, load=kernel, probe=SHORT)
    behave(swing_mw=150e3)
    return meter.measure(kernel, seconds=2.0, settle_s=0.2).power_w or 0.0, meter.notes


def noted(**settings: float) -> tuple[str, ...]:
    behave(idle_mw=150e3, **settings)  # what lies between two kernels counts little
    return open_nvml(FIRST, load=kernel, probe=replace(SHORT, load_s=0.6)).notes


class TestMidway:
    def test_a_load_that_begins_after_the_probe_voids_it(self, beside_gpu: Call) -> None:
        with pytest.raises(ReadingVoid, match="something else began to use the device"):
            beside_gpu(other_load)

    def test_a_counter_that_the_sensor_does_not_confirm_is_noted(self, beside_gpu: Call) -> None:
        (note,) = beside_gpu(noted, counter_scale=1.15)
        assert "the energy counter says" in note
        assert "off by more than 10%" in note

    def test_a_lost_device_ends_the_reading(self, beside_gpu: Call) -> None:
        with pytest.raises(DeviceLost, match=rf"{FIRST} went away \(GPU is lost\)"):
            beside_gpu(measured_while, lost=1)

    def test_a_frozen_counter_voids_it(self, beside_gpu: Call) -> None:
        with pytest.raises(ReadingVoid, match=r"did not move for 0\.\d s"):
            beside_gpu(measured_while, frozen=1)

    def test_a_counter_that_runs_backwards_voids_it(self, beside_gpu: Call) -> None:
        with pytest.raises(ReadingVoid, match="ran backwards by 500 mJ"):
            beside_gpu(measured_while, backwards=1)

    def test_a_counter_that_is_reset_upwards_voids_it(self, beside_gpu: Call) -> None:
        with pytest.raises(ReadingVoid, match="jumped by"):
            beside_gpu(measured_while, counter_scale=1e4)

    def test_a_query_that_is_no_longer_supported_voids_it(self, beside_gpu: Call) -> None:
        with pytest.raises(ReadingVoid, match="stopped answering"):
            beside_gpu(measured_while, energy=NOT_SUPPORTED)

    def test_another_error_of_the_driver_voids_it(self, beside_gpu: Call) -> None:
        with pytest.raises(ReadingVoid, match="the driver answered"):
            beside_gpu(measured_while, energy=999)
