"""On an NVIDIA GPU: a short calibration with NVML energy, and a measured model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pytest_neuralpower.calibrate.measure.device import choose_meter, open_device
from pytest_neuralpower.platform.catalog import load_platform

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device: torch sees none here"
)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def folder(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GPU, calibrated for a minute."""
    base = tmp_path_factory.mktemp("gpu")
    command = "from pytest_neuralpower.cli import main; main()"
    arguments = ["calibrate", "gpu", "--device", "cuda:0", "--dtype", request.param, "--quick"]
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments],
        cwd=base, env=dict(os.environ), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr  # 1: the closing trials lay too far apart
    return base / "gpu"


def test_the_platform_knows_runtime_and_the_uuid(folder: Path) -> None:
    platform = load_platform(folder / "gpu.json")
    (record,) = platform.provenance["calibration"]
    assert record["facts"]["device_uuid"].startswith("GPU-")
    assert platform.families["conv"].estimators["runtime"]


def test_energy_is_measured_where_the_counter_is_proven(folder: Path) -> None:
    device = open_device("cuda:0", "float32", meter="auto")
    try:
        if device.meter.source != "measured":
            pytest.skip(f"no meter works here: {'; '.join(device.meter.notes)}")
    finally:
        device.close()
    platform = load_platform(folder / "gpu.json")
    assert platform.tiers["power"] == "measured"
    assert platform.power is not None


def test_a_meter_that_is_asked_for_is_proven_under_load() -> None:
    left = torch.randn(2048, 2048, device="cuda:0")

    def load() -> None:
        torch.mm(left, left)
        torch.cuda.synchronize()

    meter = choose_meter("auto", "cuda:0", load=load)
    try:
        reading = meter.measure(load, seconds=1.0, settle_s=0.5)
        assert reading.power_w is None or reading.power_w > 5
    finally:
        meter.close()
