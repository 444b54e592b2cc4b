"""Many devices: each worker has one for itself, and their rows make one platform or one each."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import yaml

from pytest_neuralpower.calibrate.fit.profile import read_profile
from pytest_neuralpower.calibrate.measure import fleet
from pytest_neuralpower.calibrate.measure.plan import CalibrationOptions
from pytest_neuralpower.calibrate.measure.progress import Progress
from pytest_neuralpower.errors import MissingExtraError, OptionError

linux = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="cores can be chosen on Linux alone"
)


@linux
def test_two_workers_of_one_machine_never_share_a_core(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    cores = os.sched_getaffinity(0)
    held = []
    with fleet._claimed("cpu") as device:
        held.append(os.sched_getaffinity(0))
        assert device == "cpu"
        assert len(held[0]) == 1
    assert os.sched_getaffinity(0) == cores
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: held[0])
    with (
        fleet._claimed("cpu"),
        pytest.raises(OptionError, match=r"no cpu device is left on .*: use fewer --workers"),
        fleet._claimed("cpu"),
    ):
        pass


def part(number: int, device: str) -> fleet._FleetPart:
    recipe = yaml.safe_dump({"name": "x", "device": device, "sources": []})
    return fleet._FleetPart(number, "host", {"recipe.yaml": recipe, "profile.csv": "kind\n"})


def test_devices_of_one_model_are_pooled_into_one_recipe(tmp_path: Path) -> None:
    options = CalibrationOptions("x", out=tmp_path)
    parts = [part(0, "Toy"), part(1, "Toy")]
    for each in parts:
        fleet._save(each, tmp_path)
    assert fleet._pool(options, parts) == tmp_path
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert [source["profile"] for source in recipe["sources"]] == [
        "device0/profile.csv",
        "device1/profile.csv",
    ]
    assert (tmp_path / "device1" / "profile.csv").read_text() == "kind\n"


def test_devices_that_differ_are_not_pooled(tmp_path: Path) -> None:
    options = CalibrationOptions("x", out=tmp_path)
    with pytest.raises(OptionError, match=r"the devices differ \(Toy A, Toy B\).*--per-device"):
        fleet._pool(options, [part(0, "Toy A"), part(1, "Toy B")])


@pytest.mark.parametrize(("backend", "module"), [("dask", "distributed"), ("ray", "ray")])
def test_an_engine_that_is_not_installed_is_one_line(tmp_path, backend, module) -> None:
    if importlib.util.find_spec(module):
        pytest.skip(f"{module} is installed")
    options = CalibrationOptions("x", out=tmp_path, device="cpu")
    with pytest.raises(MissingExtraError, match=rf"--backend {backend} needs {backend}, which"):
        fleet.calibrate_fleet(
            options, all_gpus=False, backend=backend, workers=2, per_device=False,
            progress=Progress(),
        )  # fmt: skip


@linux
def test_dask_workers_calibrate_this_processor_core_by_core(tmp_path, monkeypatch) -> None:
    pytest.importorskip("distributed", reason="needs dask: pip install 'dask[distributed]'")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    monkeypatch.chdir(tmp_path)
    options = CalibrationOptions("pair", device="cpu", quick=True, minutes=0.25)
    ((path, platform),) = fleet.calibrate_fleet(
        options, all_gpus=False, backend="dask", workers=2, per_device=False,
        progress=Progress(),
    )  # fmt: skip
    assert path == Path("pair/pair.json")
    assert len(platform.provenance["calibration"]) == 2
    for number in (0, 1):
        rows = read_profile(Path(f"pair/device{number}/profile.csv")).measurements
        assert {row.device_uuid for row in rows} == {rows[0].device_uuid}
        assert rows[0].device_uuid.startswith("CPU-")
