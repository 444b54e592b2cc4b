"""The physical model: what a layer must take, and what half a batch of it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from pytest_neuralpower import trace
from pytest_neuralpower.calibrate.fit.rows import conv_layer, linear_layer, matmul_layer
from pytest_neuralpower.estimators.features import Columns, columns, family
from pytest_neuralpower.estimators.physics import (
    FEATURES,
    Ceilings,
    batches,
    features,
    least_ms,
    roofline_ms,
    traffic_bytes,
    with_batch,
)

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Layer

GPU = Ceilings(peak_gflops=10_000, bandwidth_gbs=500, cache_mb=4, units=40, launch_ms=0.004)
CPU = Ceilings(peak_gflops=200, bandwidth_gbs=20, cache_mb=30, launch_ms=0.008)


def of(layer: Layer) -> tuple[str, Columns]:
    name = family(layer)
    return name, columns(name, [layer])


def traced(model: nn.Module, *shape: int) -> Layer:
    with torch.device("meta"):
        return trace(model, torch.empty(shape))[-1]


def test_a_layer_takes_its_launch_and_the_longer_of_computing_and_moving() -> None:
    name, wide = of(linear_layer(4096, 4096, 4096))
    computing = 2 * 4096**3 / 10e12 * 1e3
    assert roofline_ms(name, wide, GPU) == pytest.approx(0.004 + computing)
    name, thin = of(linear_layer(1, 4096, 4096))
    moving = 4 * (4096 + 4096 + 4096**2) / 500e9 * 1e3
    assert roofline_ms(name, thin, GPU) == pytest.approx(0.004 + moving)


def test_only_a_three_by_three_convolution_of_stride_one_may_do_with_fewer_operations() -> None:
    def least(kernel: int, stride: int) -> float:
        layer = conv_layer(
            (64, 512, 28, 28), cout=512, kernel=(kernel,) * 2, stride=(stride,) * 2,
            padding=(kernel // 2,) * 2,
        )  # fmt: skip
        name, values = of(layer)
        return float(least_ms(name, values, GPU)[0] / (values["flops"][0] / 10e9))

    assert least(3, 1) == pytest.approx(1 / 2.25)
    assert least(3, 2) == pytest.approx(1.0)
    assert least(5, 1) == pytest.approx(1.0)


def test_what_fits_the_cache_need_not_come_from_memory() -> None:
    name, small = of(linear_layer(1, 900, 900))
    assert small["bytes_moved"] < 4e6
    assert least_ms(name, small, GPU) == pytest.approx(2 * 900**2 / 10e9)


@pytest.mark.parametrize(
    ("model", "passes"),
    [
        (nn.BatchNorm2d(64).eval(), 2),
        (nn.BatchNorm2d(64).train(), 3),
        (nn.GroupNorm(8, 64), 3),
        (nn.InstanceNorm2d(64), 3),
    ],
)
def test_statistics_are_a_pass_of_their_own(model: nn.Module, passes: int) -> None:
    name, values = of(traced(model, 32, 64, 112, 112))
    tensor = 4 * 32 * 64 * 112 * 112
    assert traffic_bytes(name, values, GPU) == pytest.approx(passes * tensor, rel=1e-4)


def test_a_wide_softmax_reads_its_rows_again_where_the_cache_is_small() -> None:
    def passes(width: int, ceilings: Ceilings) -> float:
        name, values = of(traced(nn.Softmax(-1), 1000, width))
        return float(traffic_bytes(name, values, ceilings)[0] / (4 * 1000 * width))

    assert passes(1024, GPU) == pytest.approx(2)
    held = 40 * 16 * 8192 * 4
    assert passes(8192, GPU) == pytest.approx(2 + 2 * (1 - 4e6 / held))
    assert passes(8192, CPU) == pytest.approx(2)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_steps_of_a_recurrent_layer_wait_for_one_another(kind: type[nn.Module]) -> None:
    name, values = of(traced(kind(8, 16, 3, batch_first=True), 5, 200, 8))
    assert values["steps"] == [600]
    assert least_ms(name, values, GPU) == pytest.approx(600 * 0.002)
    assert roofline_ms(name, values, GPU) >= 600 * 0.004


def test_a_global_pool_sweeps_its_input_once() -> None:
    name, whole = of(traced(nn.AdaptiveAvgPool2d(1), 64, 16, 128, 128))
    tensor = 4 * 64 * 16 * 128 * 128
    assert roofline_ms(name, whole, GPU) == pytest.approx(0.004 + tensor / 500e6, rel=1e-3)


def test_overlapping_windows_are_read_more_than_once() -> None:
    def pool(kernel: int, stride: int) -> float:
        model = nn.MaxPool2d(kernel, stride, kernel // 2 if stride == 1 else 0)
        name, values = of(traced(model, 64, 16, 128, 128))
        return float(roofline_ms(name, values, GPU)[0])

    assert pool(3, 1) > 2 * pool(2, 2)


MADE = {
    "conv": lambda n: conv_layer(
        (n, 32, 28, 28), cout=64, kernel=(3, 3), stride=(1, 1), padding=(1, 1)
    ),
    "grouped": lambda n: conv_layer(
        (n, 32, 28, 28), cout=64, kernel=(3, 3), stride=(2, 2), padding=(1, 1), groups=4
    ),
    "linear": lambda n: linear_layer(n, 512, 256),
    "batched product": lambda n: matmul_layer((n, 64, 32), (n, 32, 48)),
    "product": lambda n: matmul_layer((n, 32), (32, 48)),
    "layer norm": lambda n: traced(nn.LayerNorm(128), n, 64, 128),
    "batch norm": lambda n: traced(nn.BatchNorm2d(16).eval(), n, 16, 14, 14),
    "softmax": lambda n: traced(nn.Softmax(-1), n, 64, 128),
    "pool": lambda n: traced(nn.MaxPool2d(3, 2), n, 16, 27, 27),
    "activation": lambda n: traced(nn.GELU(), n, 256),
    "recurrent": lambda n: traced(nn.GRU(8, 16, 2, batch_first=True), n, 20, 8),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_half_a_batch_is_what_a_layer_of_half_the_batch_has(make: object) -> None:
    name, twice = of(make(32))  # type: ignore[operator]
    _, once = of(make(16))  # type: ignore[operator]
    assert batches(name, twice) == 2 * batches(name, once)
    found = with_batch(name, twice, np.array([0.5]))
    for column, value in once.items():
        assert found[column] == pytest.approx(value, rel=1e-3), column


def test_a_batch_of_products_is_halved_to_one_and_then_its_rows_are() -> None:
    _, four = of(matmul_layer((4, 64, 32), (4, 32, 48)))
    _, half = of(matmul_layer((1, 32, 32), (1, 32, 48)))
    found = with_batch("matmul", four, np.array([0.125]))
    for column, value in half.items():
        assert found[column] == pytest.approx(value), column
    assert batches("matmul", four) == 4 * 64


def test_features_are_finite_wherever_a_family_has_them() -> None:
    empty = [linear_layer(0, 8, 8), matmul_layer((2, 0, 8), (8, 8))]
    made = (MADE["conv"](1), MADE["linear"](1), MADE["product"](1))  # type: ignore[no-untyped-call]
    for layer in (*made, *empty):
        name, values = of(layer)
        assert features(name)
        for each in features(name):
            for ceilings in (GPU, CPU):
                assert np.isfinite(FEATURES[each][1](values, ceilings)).all(), each
    assert features("activation") == ()


def test_a_board_of_few_watts_does_not_sustain_its_peak() -> None:
    t4 = {"peak_gflops": 8141, "bandwidth_gbs": 320, "multiprocessors": 40, "limit_w": 70}
    assert Ceilings.of(t4).compute_gflops == 8141
    small = Ceilings.of({**t4, "process_nm": 12})
    assert small.compute_gflops == pytest.approx(4240, rel=0.01)
    assert small.peak_gflops == 8141
    assert Ceilings.of({**t4, "process_nm": 12, "limit_w": 300}).compute_gflops == 8141
