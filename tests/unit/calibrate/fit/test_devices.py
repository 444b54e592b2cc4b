"""The device file: what datasheets say, and recipes that name one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pytest_neuralpower import trace
from pytest_neuralpower.calibrate.fit.datasheet import datasheet_platform
from pytest_neuralpower.calibrate.fit.devices import described, find_device, read_devices
from pytest_neuralpower.calibrate.fit.recipe import read_recipe
from pytest_neuralpower.errors import PlatformError, ProfileError
from pytest_neuralpower.estimators.features import FAMILIES
from pytest_neuralpower.layers import ITEMSIZE
from pytest_neuralpower.platform.prediction import INFERRED

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
    with pytest.raises(ProfileError, match=r"unknown device 'titan-rt' \(did you mean 'titan-rtx'"):
        read_recipe(recipe(tmp_path, "titan-rt"))


@pytest.mark.parametrize(
    ("name", "device"),
    [("RTX4090", "rtx4090"), ("titanrtx", "titan-rtx"), ("a100-sxm-bf16", "a100-sxm"),
     ("cpu-i7-12700h-compile", "i7-12700h"), ("rtxpro6000-maxq", "rtx-pro-6000-maxq")],
)  # fmt: skip
def test_a_datasheet_is_found_by_its_platform_s_name(name: str, device: str) -> None:
    assert find_device(name) == read_devices()[device]


def test_a_board_at_rest_draws_less_than_its_limit() -> None:
    with pytest.raises(ProfileError, match="at rest 900 W, which must be below its board power"):
        described("x", like="rtx4090", peaks_tflops={}, idle_w=900)
    small = described("x", like="rtx4090", peaks_tflops={"float16": 82.6}, limit_w=5)
    assert small.hardware("float32")["idle_w"] < 5
    assert small.peaks_gflops["float32"] == pytest.approx(41_290, rel=0.01)  # half, as float16 is


def test_a_peak_of_something_that_is_no_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="'half' is not one of"):
        read_recipe(recipe(tmp_path, "t4", "peaks_gflops: {half: 1}\n"))


def test_a_recipe_without_device_and_datasheet_is_refused(tmp_path: Path) -> None:
    text = "name: mine\nmode: eager\nhardware: {peak_gflops: 1, bandwidth_gbs: 1}\n"
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ProfileError, match="'device' is missing"):
        read_recipe(tmp_path)


@pytest.mark.parametrize("name", ["titan-rtx", "rtx4090", "b200", "orin"])
def test_a_datasheet_alone_prices_every_kind_within_its_ceilings(name: str) -> None:
    platform = datasheet_platform(name)
    assert not platform.families
    assert set(platform.inferred) == set(FAMILIES)
    assert platform.tiers == {"runtime": "datasheet", "power": "transferred"}
    with torch.device("meta"):
        product = nn.Linear(8192, 8192)
        call = trace(product, torch.empty(8192, 8192))
    found = platform.predict(call)
    limit = call.flops / platform.hardware["peak_gflops"] / 1e6
    assert limit <= found.device_ms <= 2.5 * limit
    assert found.layers[0].flags == (INFERRED,)
    assert (found.power_w or 0) <= platform.hardware["limit_w"]


def test_half_precision_is_priced_as_tensor_cores_of_other_boards_run_it() -> None:
    priors = {dtype: datasheet_platform("l40s", dtype=dtype) for dtype in ("float32", "bfloat16")}
    boards = {
        dtype: platform.inferred["linear"].prior.devices for dtype, platform in priors.items()
    }
    measured = ("H100 (SXM)", "H200", "B200", "L40S")
    assert len(boards["bfloat16"]) == len(measured)
    assert all(any(name in device for name in measured) for device in boards["bfloat16"])
    assert not set(boards["float32"]) & set(boards["bfloat16"])
    assert priors["bfloat16"].hardware["peak_gflops"] == 362_100
    assert priors["bfloat16"].name == "l40s-bfloat16"


def test_a_dtype_that_a_device_has_no_units_for_is_refused() -> None:
    with pytest.raises(PlatformError, match=r"Titan RTX .* computes in float64, float32, float16"):
        datasheet_platform("titan-rtx", dtype="bfloat16")
