"""Energies against hand-worked numbers, an independent mapper and the paper."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_neuralpower.eyeriss import (
    ACCELERGY_40NM,
    COST_TABLES,
    EYERISS_65NM,
    Bits,
    ConvShape,
    EyerissError,
    Zeros,
    layer_energy,
    layer_mapping,
    runtime_s,
)


def conv(size, channels, filters, kernel, *, stride=1, pad=0, groups=1) -> ConvShape:
    return ConvShape(
        size, size, channels, filters, (kernel, kernel), (stride, stride), (pad,) * 4,
        groups=groups,
    )  # fmt: skip


ALEXNET = [
    conv(227, 3, 96, 11, stride=4),
    conv(27, 96, 256, 5, pad=2, groups=2),
    conv(13, 256, 384, 3, pad=1),
    conv(13, 384, 384, 3, pad=1, groups=2),
    conv(13, 384, 256, 3, pad=1, groups=2),
    conv(6, 256, 4096, 6),
    conv(1, 4096, 4096, 1),
    conv(1, 4096, 1000, 1),
]
#: Non-zero outputs, Han et al., NIPS 2015, Table 4; each layer's output is the next one's input.
ACTIVE = [1.0, 0.88, 0.52, 0.37, 0.40, 0.34, 0.36, 0.40, 1.0]
#: Yang et al., CVPR 2017, 1e8 MAC units.
PAPER = [7.0, 10.6, 5.3, 3.35, 2.3, 7.55, 3.25, 0.26]

SMALL = conv(12, 16, 24, 3, pad=1)


def with_zeros(shape, inputs, outputs, batch=16):
    return Zeros(
        input_map=int((1 - inputs) * shape.inputs * batch),
        output_map=int((1 - outputs) * shape.outputs * batch),
    )


def test_single_channel_copy_costs_what_the_formula_says():
    # One 1x1 filter over 4 x 4: each value crosses every level once, no sum meets another.
    energy = layer_energy(ConvShape(4, 4, 1, 1))
    assert energy.input_map == 16 * (200 + 6 + 2 + 1)
    assert energy.output_map == 16 * 200
    columns = layer_mapping(ConvShape(4, 4, 1, 1)).e
    assert energy.weight == 200 + 6 + 2 * columns + 16
    assert energy.computation == 16
    assert energy.total == pytest.approx(
        energy.input_map + energy.output_map + energy.weight + energy.computation
    )


@pytest.mark.parametrize(("index", "expected"), [(1, 12.5), (2, 8.8), (3, 6.65), (4, 4.43)])
def test_dense_alexnet_agrees_with_an_independent_row_stationary_mapper(index, expected):
    energy = layer_energy(ALEXNET[index], batch=16).total / 16
    assert energy / 1e8 == pytest.approx(expected, rel=0.10)


def test_alexnet_with_published_zeros_agrees_with_the_paper():
    energies = [
        layer_energy(shape, batch=16, zeros=with_zeros(shape, a, b)).total
        for shape, a, b in zip(ALEXNET, ACTIVE[:-1], ACTIVE[1:], strict=True)
    ]
    ranks = [np.argsort(np.argsort(values)) for values in (energies, PAPER)]
    assert np.corrcoef(*ranks)[0, 1] >= 0.9
    assert sum(energies[:5]) / sum(energies) == pytest.approx(0.72, abs=0.08)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["input_map", "weight"]))
@settings(max_examples=30, deadline=None)
def test_more_zeros_never_cost_more(inputs, weights, outputs, name):
    zeros = Zeros(
        int(inputs * SMALL.inputs), int(weights * SMALL.weights), int(outputs * SMALL.outputs)
    )
    every = {"input_map": SMALL.inputs, "weight": SMALL.weights}
    more = Zeros(**{
        "input_map": zeros.input_map, "weight": zeros.weight, "output_map": zeros.output_map,
        name: every[name],
    })  # fmt: skip
    some, none = layer_energy(SMALL, zeros=zeros), layer_energy(SMALL, zeros=more)
    assert some.total <= layer_energy(SMALL).total
    assert none.total <= some.total
    assert none.computation == 0
    assert getattr(none, name) == 0


def test_pruned_weights_save_their_share_of_products_and_of_weight_traffic():
    dense = layer_energy(SMALL)
    pruned = layer_energy(SMALL, zeros=Zeros(weight=SMALL.weights * 3 // 4))
    assert pruned.computation == pytest.approx(dense.computation / 4)
    assert pruned.weight == pytest.approx(dense.weight / 4)
    assert dense.input_map / 4 < pruned.input_map < dense.input_map


def test_output_zeros_save_dram_writes_only():
    dense = layer_energy(SMALL)
    sparse = layer_energy(SMALL, zeros=Zeros(output_map=1000))
    assert dense.output_map - sparse.output_map == pytest.approx(1000 * 200)
    assert sparse.input_map == dense.input_map
    assert sparse.weight == dense.weight


def test_access_energy_is_linear_in_bits_and_the_multiplier_in_their_product():
    # 8-bit words also let twice as many fit; on equal memories only the energy scales.
    dense = layer_energy(SMALL)
    half = layer_energy(SMALL, bits=Bits(8, 8, 8))
    assert half.computation == pytest.approx(dense.computation / 4)
    assert half.total < dense.total / 2 * 1.01
    weights = layer_energy(ALEXNET[7], bits=Bits(weight=4))
    assert weights.weight == pytest.approx(layer_energy(ALEXNET[7]).weight / 4, rel=0.02)


def test_groups_are_independent_convolutions():
    grouped = layer_energy(conv(13, 64, 64, 3, pad=1, groups=4), batch=2).total
    single = layer_energy(conv(13, 16, 16, 3, pad=1), batch=2).total
    assert grouped == pytest.approx(4 * single, rel=1e-9)


def test_cost_tables_are_replaceable_and_scale_to_joules():
    assert set(COST_TABLES) == {"eyeriss-65nm", "accelergy-40nm"}
    energy = layer_energy(SMALL, costs=EYERISS_65NM)
    assert energy.millijoules == pytest.approx(energy.total * 2.2e-9)
    # DRAM is 58 MACs there instead of 200.
    assert layer_energy(SMALL, costs=ACCELERGY_40NM).total < energy.total


def test_runtime_is_products_over_busy_elements():
    mapping = layer_mapping(SMALL, batch=4)
    seconds = runtime_s(SMALL, batch=4)
    assert seconds == pytest.approx(4 * SMALL.macs / (168 * mapping.utilisation * 200e6))
    assert seconds >= 4 * SMALL.macs / (168 * 200e6)
    # The chip takes 103.5 ms for AlexNet's conv layers at batch 4 (JSSC 2017, Table V).
    total = sum(runtime_s(shape, batch=4) for shape in ALEXNET[:5])
    assert total == pytest.approx(0.1035, rel=0.15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"bits": Bits(weight=0)}, "every bit width must be at least 1"),
        ({"zeros": Zeros(weight=SMALL.weights + 1)}, "weight has 3457 zeros among 3456 values"),
        ({"zeros": Zeros(input_map=-1)}, "input_map has -1 zeros"),
    ],
)
def test_impossible_input_is_refused(options, message):
    with pytest.raises(EyerissError, match=message):
        layer_energy(SMALL, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 0}, "height is 0"),
        ({"groups": 3}, "groups = 3 must divide"),
        ({"kernel": (9, 9)}, "does not fit"),
        ({"padding": (0, -1, 0, 0)}, "padding"),
    ],
)
def test_impossible_shapes_are_refused(options, message):
    base = {"height": 8, "width": 8, "channels": 4, "filters": 4}
    with pytest.raises(EyerissError, match=message):
        ConvShape(**{**base, **options})


def test_energies_are_the_same_in_another_process():
    code = (
        "import json; from pytest_neuralpower.eyeriss import *; "
        "e = layer_energy(ConvShape(12, 12, 16, 24, (3, 3), padding=(1, 1, 1, 1)));"
        "print(json.dumps([e.input_map, e.output_map, e.weight, e.computation]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    energy = layer_energy(SMALL)
    assert json.loads(run.stdout) == [
        energy.input_map, energy.output_map, energy.weight, energy.computation
    ]  # fmt: skip


def test_import_needs_no_torch():
    code = "import sys, pytest_neuralpower.eyeriss; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
