"""The device file: what datasheets say, and recipes that name one."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_neuralpower.calibrate.fit.devices import find_device, read_devices
from pytest_neuralpower.calibrate.fit.recipe import read_recipe
from pytest_neuralpower.errors import ProfileError
from pytest_neuralpower.layers import ITEMSIZE

RECIPES = sorted(Path("calibration").glob("*/recipe.yaml"))

RECIPE = "name: mine\nmode: eager\ndatasheet: {name}\n{more}"


def recipe(tmp_path: Path, name: str, more: str = "") -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(name=name, more=more), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", read_devices())
def test_peaks_of_a_device_grow_as_its_numbers_get_shorter(name: str) -> None:
    device = find_device(name)
    order = ("float64", "float32", "tf32", "bfloat16", "float8_e4m3fn")
    peaks = [device.peaks_gflops[dtype] for dtype in order if dtype in device.peaks_gflops]
    assert peaks == sorted(peaks)
    assert set(device.peaks_gflops) <= {*ITEMSIZE, "tf32"}
    assert device.source


def test_float32_is_what_cores_and_clock_multiply_to() -> None:
    assert find_device("titan-rtx").peaks_gflops["float32"] == pytest.approx(2 * 4608 * 1.770, 1e-3)
    assert find_device("a100").peaks_gflops["float32"] == pytest.approx(2 * 6912 * 1.410, 1e-3)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_recipes_know_peaks_by_dtype_and_their_own_is_that_of_their_rows(path: Path) -> None:
    found = read_recipe(path.parent)
    assert found.peaks_gflops[found.dtype] == found.hardware["peak_gflops"]
    assert found.peaks_gflops["float64"] <= found.peaks_gflops["float32"]


def test_a_recipe_takes_what_its_datasheet_says_and_may_say_otherwise(tmp_path: Path) -> None:
    found = read_recipe(recipe(tmp_path, "t4", "dtype: float16\nhardware: {limit_w: 50}\n"))
    assert found.device == "NVIDIA T4"
    assert found.hardware["peak_gflops"] == 65130
    assert found.hardware["limit_w"] == 50
    assert found.peaks_gflops["int8"] == 130300


def test_a_datasheet_that_is_not_known_is_named_with_what_is_close(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"unknown device 'titanrtx' \(did you mean 'titan-rtx'"):
        read_recipe(recipe(tmp_path, "titanrtx"))


def test_a_peak_of_something_that_is_no_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="'half' is not one of"):
        read_recipe(recipe(tmp_path, "t4", "peaks_gflops: {half: 1}\n"))


def test_a_recipe_without_device_and_datasheet_is_refused(tmp_path: Path) -> None:
    text = "name: mine\nmode: eager\nhardware: {peak_gflops: 1, bandwidth_gbs: 1}\n"
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ProfileError, match="'device' is missing"):
        read_recipe(tmp_path)
