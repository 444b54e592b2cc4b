"""Layers in another dtype than a platform's rows: what the ceilings' ratio says, and how sure."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import torch
from msgspec.structs import replace
from torch import nn

from pytest_neuralpower import load_platform, trace
from pytest_neuralpower.calibrate.fit.datasheet import datasheet_platform
from pytest_neuralpower.platform.prediction import EXTRAPOLATED

if TYPE_CHECKING:
    from pytest_neuralpower.platform.prediction import Prediction
    from pytest_neuralpower.platform.price import FittedPlatform

GFLOP = 8 * 2752 * 4096 * 4096 / 1e9  # of the perceptron below


@pytest.fixture(scope="module")
def a100() -> FittedPlatform:
    return datasheet_platform("a100")


@pytest.fixture(scope="module")
def h200() -> FittedPlatform:
    return datasheet_platform("h200", dtype="bfloat16")


def perceptron(platform: FittedPlatform, dtype: torch.dtype) -> Prediction:
    with torch.device("meta"):
        layers = [nn.Linear(4096, 4096, dtype=dtype) for _ in range(4)]
        return platform.predict(trace(nn.Sequential(*layers), torch.empty(2752, 4096, dtype=dtype)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_takes_as_much_less_as_tensor_cores_are_faster(
    a100: FittedPlatform, dtype: torch.dtype
) -> None:
    known, other = perceptron(a100, torch.float32), perceptron(a100, dtype)
    assert known.device_ms / other.device_ms == pytest.approx(16, rel=0.15)
    limit = GFLOP / 311_900 * 1000
    assert other.runtime_interval_ms.low <= limit <= other.device_ms
    # Half of the gain may be missed.
    assert other.runtime_interval_ms.high >= 3.5 * other.device_ms


def test_single_precision_on_a_platform_of_half_precision_has_its_own_peak(
    h200: FittedPlatform,
) -> None:
    other = perceptron(h200, torch.float32)
    limit = GFLOP / 66_900 * 1000
    low, high, _ = other.runtime_interval_ms
    assert low <= limit <= other.device_ms < 2 * limit < high
    assert other.device_ms > 10 * perceptron(h200, torch.bfloat16).device_ms


def test_float32_never_has_the_peak_of_tf32(a100: FittedPlatform, h200: FittedPlatform) -> None:
    assert a100.peak_gflops("float32") == 19_492
    assert h200.peak_gflops("float32") == 66_900
    for platform in (a100, h200):
        slower = dict(platform.peaks_gflops)
        del slower["tf32"]
        without = perceptron(replace(platform, peaks_gflops=slower), torch.float32)
        assert without.device_ms == perceptron(platform, torch.float32).device_ms
    assert "without TF32" in a100.mode
    assert any("TF32 off" in note for note in perceptron(h200, torch.float32).notes)


def test_what_streams_takes_half_in_half_the_bytes_and_is_as_sure(a100: FittedPlatform) -> None:
    def relu(dtype: torch.dtype) -> Prediction:
        return a100.predict(trace(nn.ReLU(), torch.empty(2**28, dtype=dtype, device="meta")))

    known, other = relu(torch.float32), relu(torch.bfloat16)
    assert known.device_ms / other.device_ms == pytest.approx(2, rel=0.05)
    width = [each.runtime_interval_ms.high / each.device_ms for each in (known, other)]
    assert width[1] == pytest.approx(width[0], rel=0.05)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("a100", torch.bfloat16), ("t4", torch.float16), ("cpu-broadwell", torch.float16)],
)
def test_no_layer_takes_less_time_when_the_batch_doubles(name: str, dtype: torch.dtype) -> None:
    platform = load_platform(name)
    for width in (96, 192, 320, 768, 1536, 3072):
        with torch.device("meta"):
            conv = nn.Conv2d(width // 8, width // 8, 3, dtype=dtype)
            calls = [
                trace(each, torch.empty(2**halvings, *shape, dtype=dtype))
                for each, shape in (
                    (nn.Linear(width, width, dtype=dtype), (width,)),
                    (conv, (width // 8, 14, 14)),
                )
                for halvings in range(12)
            ]
        times = [platform.predict(call).device_ms or 0.0 for call in calls]
        for start in (0, 12):
            some = times[start : start + 12]
            assert all(after >= 0.959 * before for before, after in pairwise(some)), width


def test_convolutions_on_tensor_cores_are_not_filtered_minimally(a100: FittedPlatform) -> None:
    with torch.device("meta"):
        conv = nn.Conv2d(128, 128, 3, padding=1, dtype=torch.bfloat16)
        call = trace(conv, torch.empty(64, 128, 56, 56, dtype=torch.bfloat16))
    found = a100.predict(call)
    assert found.device_ms >= call.flops / 311_900e6
    assert found.runtime_interval_ms.low <= call.flops / 2.25 / 311_900e6


@pytest.mark.parametrize("name", ["h100", "h200"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_kind_without_rows_is_as_sure_at_a_peak_that_is_no_higher(
    name: str, dtype: torch.dtype
) -> None:
    def convolution(dtype: torch.dtype) -> Prediction:
        with torch.device("meta"):
            model = nn.Conv2d(64, 64, 3, padding=1, dtype=dtype).eval()
            return load_platform(name).predict(
                trace(model, torch.empty(32, 64, 56, 56, dtype=dtype))
            )

    known, other = convolution(torch.bfloat16), convolution(dtype)
    factors = [each.runtime_interval_ms.high / each.device_ms for each in (known, other)]
    assert factors[1] == pytest.approx(factors[0])
    assert EXTRAPOLATED in other.layers[0].flags
    if dtype is torch.float32:  # as the platform of that dtype says, whose prior is the same
        own = load_platform("h100-fp32").predict([other.layers[0].layer])
        assert other.device_ms == pytest.approx(own.device_ms, rel=0.1)


def test_the_note_says_what_is_done(a100: FittedPlatform) -> None:
    other = perceptron(a100, torch.bfloat16)
    assert other.notes[0] == ("4 of 4 layers in bfloat16: priced at 16 times the peak of float32")
    assert all(EXTRAPOLATED in layer.flags for layer in other.layers)
    assert not any("layers in" in note for note in perceptron(a100, torch.float32).notes)


def test_a_dtype_without_units_is_no_faster() -> None:
    v100 = datasheet_platform("v100")
    known, other = perceptron(v100, torch.float32), perceptron(v100, torch.bfloat16)
    assert other.device_ms == pytest.approx(known.device_ms, rel=0.05)
    assert "in bfloat16: priced as float32, its peak is not known" in other.notes[0]


@pytest.mark.filterwarnings("ignore")
def test_quantised_layers_are_priced_in_bytes_and_flagged(a100: FittedPlatform) -> None:
    model = nn.Sequential(nn.Linear(2048, 2048), nn.ReLU())
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    data = torch.zeros(2048, 2048)
    plain, dynamic = (a100.predict(trace(each, data)) for each in (model, quantised))
    linear, relu = dynamic.layers
    assert linear.layer.dtype == "int8"
    assert EXTRAPOLATED in linear.flags
    assert EXTRAPOLATED not in relu.flags
    assert linear.runtime_ms < plain.layers[0].runtime_ms / 8
    without = replace(a100, peaks_gflops={"float32": 19_492.0})
    (linear, _) = without.predict(trace(quantised, data)).layers
    assert EXTRAPOLATED in linear.flags
    assert linear.runtime_ms == pytest.approx(plain.layers[0].runtime_ms, rel=0.05)


def test_a_small_board_sustains_the_same_share_of_every_peak() -> None:
    t4 = datasheet_platform("t4")
    known, other = perceptron(t4, torch.float32), perceptron(t4, torch.float16)
    assert known.device_ms / other.device_ms == pytest.approx(65_130 / 8_141, rel=0.15)
    assert known.device_ms > 1.3 * GFLOP / 8_141 * 1000
