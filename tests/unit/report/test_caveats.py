"""Why a prediction deserves less trust is said in words that hold for every cause."""

from __future__ import annotations

import math

from msgspec import structs

from pytest_neuralpower import load_platform
from pytest_neuralpower.calibrate.fit.rows import linear_layer
from pytest_neuralpower.layers import Layer, TensorSpec
from pytest_neuralpower.platform.intervals import Intervals, QuantitySpreads, Spread
from pytest_neuralpower.report.terminal import caveats


def in_dtype(layer: Layer, dtype: str) -> Layer:
    tensors = (
        tuple(TensorSpec(each.shape, dtype) for each in group)
        for group in (layer.inputs, layer.weights, layer.outputs)
    )
    return Layer(layer.kind, layer.op, layer.path, *tensors, dtype, layer.params)


def test_a_layer_of_calibrated_sizes_in_another_dtype_is_not_said_to_lie_outside_the_sizes() -> (
    None
):
    platform = load_platform("titanx")
    layer = linear_layer(32, 1024, 1024)
    assert caveats(platform.predict([layer])) == []
    lines = caveats(platform.predict([in_dtype(layer, "float16")]))
    assert lines == [
        "E: linear (100% of the energy): sizes or dtype not measured, within 6.2x",
        "   to settle it: `neuralpower calibrate NAME --dtype float16` on the device",
        "note: 1 of 1 layers in float16: priced as float32, its peak is not known",
    ]


def streaming(kind: str, op: str, width: int = 1000) -> Layer:
    tensor = TensorSpec((1000, width), "float32")
    return Layer(kind, op, "", (tensor,), (), (tensor,), "float32")


def test_each_cause_names_its_kinds_their_share_and_how_far_they_may_be_off() -> None:
    spread = Spread(math.log(1.25), math.log(2), 1.0)
    platform = structs.replace(
        load_platform("titanx"),
        intervals=Intervals(0.9, QuantitySpreads({}, spread)),
        power=None,
        families={},
    )
    layers = [streaming("softmax", "softmax", 3000), streaming("norm", "layer_norm")]
    assert caveats(platform.predict(layers)) == [
        "I: softmax, norm (100% of the runtime):",
        "   not measured on this device, within 1.2x",
        "   to settle it: `neuralpower calibrate NAME` on the device",
    ]


def test_nothing_settles_what_an_operation_without_a_formula_takes() -> None:
    found = load_platform("titanx").predict([streaming("uncovered", "fft")])
    assert caveats(found) == ["U: fft (100% of the energy): no formula, may take any time"]


def test_shares_are_of_the_quantity_that_is_asked_for() -> None:
    found = load_platform("titanx").predict(
        [streaming("norm", "layer_norm"), linear_layer(32, 1024, 1024)]
    )
    share = (found.layers[0].runtime_ms or 0) / (found.runtime_ms or 1)
    (line, *_) = caveats(found, "runtime")
    assert line.startswith(f"I: norm ({share:.1%} of the runtime): ")
