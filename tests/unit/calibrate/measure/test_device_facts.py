"""What is recorded of a device beside what was measured on it.

torch is loaded where it is needed: the process beside the stub loads this file without it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stub_gpu import (
    CORRUPTED_INFOROM,
    FIRST,
    NOT_SUPPORTED,
    SECOND,
    UNKNOWN_ERROR,
    behave,
)

from pytest_neuralpower.calibrate.measure.facts import cpu_facts, device_facts, nvml_facts
from pytest_neuralpower.calibrate.measure.meters.nvml import NvmlDevice


def facts_beside_stub(uuid: str, **settings: float) -> dict[str, str]:
    behave(**settings)
    device = NvmlDevice(uuid)
    try:
        return {"name": str(device._ask("Name")), **nvml_facts(device)}
    finally:
        device.close()


def test_nvidia_facts_come_from_the_device_of_that_uuid(beside_gpu: Callable[..., Any]) -> None:
    assert beside_gpu(facts_beside_stub, SECOND, celsius=38, clock_mhz=1755) == {
        "name": "Stub 2",
        "device_uuid": SECOND,
        "driver": "570.00.stub",
        "ecc": "on",
        "power_limit_w": "300",
        "default_power_limit_w": "350",
        "sm_clock_mhz": "1755",
        "most_sm_clock_mhz": "1980",
        "memory_clock_mhz": "2619",
        "temperature_c": "38",
    }


def test_what_a_device_does_not_tell_is_left_out(beside_gpu: Callable[..., Any]) -> None:
    facts = beside_gpu(facts_beside_stub, FIRST, ecc=NOT_SUPPORTED, clock=NOT_SUPPORTED)
    assert not facts.keys() & {"ecc", "sm_clock_mhz", "memory_clock_mhz"}
    assert facts["device_uuid"] == FIRST


@pytest.mark.parametrize("code", [CORRUPTED_INFOROM, UNKNOWN_ERROR])
def test_a_query_that_fails_is_left_out_too(beside_gpu: Callable[..., Any], code: int) -> None:
    facts = beside_gpu(facts_beside_stub, FIRST, ecc=code)
    assert "ecc" not in facts
    assert facts["driver"] == "570.00.stub"


def test_a_processor_is_known_by_model_and_settings(tmp_path: Path) -> None:
    import torch

    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Example 9000 @ 3.0GHz\n")
    governor = tmp_path / "devices" / "system" / "cpu" / "cpu0" / "cpufreq"
    governor.mkdir(parents=True)
    (governor / "scaling_governor").write_text("powersave\n")
    facts = cpu_facts(sysfs=tmp_path, proc=tmp_path)
    assert facts["device"] == "Example 9000 @ 3.0GHz"
    assert facts["governor"] == "powersave"
    assert facts["torch_threads"] == str(torch.get_num_threads())


def test_every_fact_fits_one_line_of_a_profile() -> None:
    import torch

    facts = device_facts("cpu").lines
    assert {"device", "cores", "torch", "python", "system", "matmul_precision"} <= facts.keys()
    assert facts["torch"] == torch.__version__
    assert all(value.strip() and "\n" not in value for value in facts.values())
    assert all(":" not in key for key in facts)
