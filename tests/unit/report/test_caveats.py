"""Why a prediction deserves less trust is said in words that hold for every cause."""

from __future__ import annotations

from pytest_neuralpower import load_platform
from pytest_neuralpower.calibrate.fit.rows import linear_layer
from pytest_neuralpower.layers import Layer, TensorSpec
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
        "E: linear (100% of the energy): sizes or dtype not measured, within 6.5x",
        "   to settle it: `neuralpower calibrate NAME --dtype float16` on the device",
        "note: 1 of 1 layers in float16: priced as float32, for its own peak is not known",
    ]
