"""Layers to shapes, and whole networks."""

from __future__ import annotations

import math

import pytest

from pytest_neuralpower.eyeriss import (
    ConvShape,
    Zeros,
    layer_energy,
    network_energy,
    works,
)
from pytest_neuralpower.layers import Layer, TensorSpec


def layer(kind, op, inputs, weights, outputs, *, path="", dtype="float32", **params) -> Layer:
    specs = [
        tuple(TensorSpec(shape, dtype) for shape in each) for each in (inputs, weights, outputs)
    ]
    return Layer(kind, op, path, *specs, dtype, tuple(sorted(params.items())))


def shape_of(each):
    (work,) = works(each)
    return work.shape


CONV = layer(
    "conv", "conv2d", [(2, 8, 13, 9)], [(12, 4, 3, 5), (12,)], [(2, 12, 7, 9)], path="features.0",
    stride=(2, 1), padding=(1, 2), dilation=(1, 1), groups=2, transposed=False,
)  # fmt: skip
RELU = layer("activation", "relu", [(2, 12, 7, 9)], [], [(2, 12, 7, 9)])
POOL = layer("pool", "max_pool2d", [(2, 12, 7, 9)], [], [(2, 12, 3, 4)], kernel=(2, 2))
LINEAR = layer("linear", "linear", [(2, 5, 16)], [(7, 16), (7,)], [(2, 5, 7)])
ATTENTION = layer(
    "attention", "scaled_dot_product_attention", [(2, 4, 6, 8), (2, 4, 10, 8), (2, 4, 10, 16)],
    [], [(2, 4, 6, 16)],
)  # fmt: skip
LSTM = layer(
    "rnn", "lstm", [(5, 2, 3)], [(16, 3), (16, 4)], [(5, 2, 4)], mode="LSTM",
    hidden_size=4, steps=10,
)  # fmt: skip


def test_convolution_keeps_its_configuration():
    assert shape_of(CONV) == ConvShape(13, 9, 8, 12, (3, 5), (2, 1), (1, 1, 2, 2), (1, 1), groups=2)
    assert works(CONV)[0].batch == 2


@pytest.mark.parametrize(
    "empty",
    [
        layer("linear", "linear", [(0, 16)], [(7, 16), (7,)], [(0, 7)]),
        layer("linear", "linear", [(2, 0)], [(7, 0), (7,)], [(2, 7)]),
        layer("matmul", "matmul", [(3, 0), (0, 4)], [], [(3, 4)], reduced=0),
        layer(
            "conv", "conv2d", [(0, 3, 8, 8)], [(8, 3, 3, 3)], [(0, 8, 6, 6)],
            stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, transposed=False,
        ),
        layer(
            "attention", "scaled_dot_product_attention",
            [(1, 2, 5, 8), (1, 2, 0, 8), (1, 2, 0, 8)], [], [(1, 2, 5, 8)],
        ),
    ],
    ids=lambda each: f"{each.op} of {each.inputs[0].shape}",
)  # fmt: skip
def test_a_layer_of_an_empty_tensor_moves_what_there_is_and_computes_nothing(empty):
    assert works(empty) == ()
    (priced,) = network_energy([empty])
    assert priced.energy.computation == 0
    assert priced.runtime_s == 0
    assert math.isfinite(priced.energy.total)


def test_asymmetric_padding_is_kept():
    same = layer(
        "conv", "conv2d", [(1, 8, 8, 8)], [(8, 8, 4, 4)], [(1, 8, 8, 8)],
        stride=(1, 1), padding=(1, 2, 1, 2), dilation=(1, 1), groups=1,
    )  # fmt: skip
    assert shape_of(same).padding == (1, 2, 1, 2)
    assert (shape_of(same).out_height, shape_of(same).out_width) == (8, 8)


def test_tokens_of_a_linear_layer_share_its_weights():
    assert shape_of(LINEAR) == ConvShape(5, 1, 16, 7)
    assert works(LINEAR)[0].batch == 2


@pytest.mark.parametrize(
    "each",
    [
        CONV,
        LINEAR,
        ATTENTION,
        layer("linear", "linear", [(16,)], [(7, 16)], [(7,)]),
        layer("matmul", "matmul", [(2, 3, 4), (2, 4, 5)], [], [(2, 3, 5)]),
        layer("matmul", "mv", [(3, 4), (4,)], [], [(3,)]),
        layer(
            "conv", "conv1d", [(2, 3, 100)], [(8, 3, 5)], [(2, 8, 50)],
            stride=(2,), padding=(2,), dilation=(1,), groups=1,
        ),
        layer(
            "conv", "conv3d", [(2, 3, 8, 9, 9)], [(4, 3, 3, 3, 3)], [(2, 4, 8, 9, 9)],
            stride=(1, 1, 1), padding=(1, 1, 1), dilation=(1, 1, 1), groups=1,
        ),
    ],
    ids=lambda each: each.op,
)  # fmt: skip
def test_works_do_all_products_of_a_layer(each):
    assert sum(work.shape.macs * work.batch for work in works(each)) == each.macs


@pytest.mark.parametrize(("kernel", "stride", "padding", "extra"), [(4, 2, 1, 0), (2, 3, 0, 1)])
def test_transposed_convolution_is_one_over_a_stuffed_map(kernel, stride, padding, extra):
    size = (8 - 1) * stride - 2 * padding + kernel + extra
    each = layer(
        "conv", "conv_transpose2d", [(1, 4, 8, 8)], [(4, 6, kernel, kernel)], [(1, 6, size, size)],
        stride=(stride,) * 2, padding=(padding,) * 2, output_padding=(extra,) * 2,
        dilation=(1, 1), groups=1, transposed=True,
    )  # fmt: skip
    (work,) = works(each)
    assert (work.shape.out_height, work.shape.out_width) == (size, size)
    executed = work.shape.macs * (1 - work.input_zeros / work.shape.inputs)
    assert executed == pytest.approx(each.macs, rel=0.25)  # borders differ


@pytest.mark.parametrize("each", [RELU, POOL, LSTM], ids=lambda each: each.op)
def test_other_layers_are_no_convolution(each):
    assert works(each) == ()


def test_attention_is_two_products():
    assert len(works(ATTENTION)) == 2


def test_no_layer_is_free_and_each_says_how_it_was_priced():
    network = network_energy([CONV, RELU, POOL, LINEAR, ATTENTION, LSTM])
    assert [each.how for each in network] == [
        "row-stationary", "fused", "movement", "row-stationary", "row-stationary", "unmapped"
    ]  # fmt: skip
    assert all(each.energy.total > 0 for each in network)
    for each in network:
        assert math.fsum(each.energy.parts_mj.values()) == pytest.approx(each.energy.total * 2.2e-9)


def test_pooling_moves_its_maps_once_through_every_level():
    (pool,) = network_energy([POOL])
    assert pool.energy.input_map == 2 * 12 * 7 * 9 * 209
    assert pool.energy.output_map == 2 * 12 * 3 * 4 * 209
    assert pool.energy.computation == 0


def test_values_count_not_the_bytes_of_the_models_dtype():
    half = layer("pool", "max_pool2d", [(2, 12, 7, 9)], [], [(2, 12, 3, 4)], dtype="float16")
    (ours,), (theirs,) = network_energy([half]), network_energy([POOL])
    assert ours.energy.total == theirs.energy.total


def test_zeros_are_given_by_path():
    zeros = Zeros(weight=100)
    (priced,) = network_energy([CONV], zeros={"features.0": zeros})
    assert priced.energy == layer_energy(shape_of(CONV), batch=2, zeros=zeros)
    (other,) = network_energy([CONV], zeros={"features.1": zeros})
    assert other.energy.total > priced.energy.total
