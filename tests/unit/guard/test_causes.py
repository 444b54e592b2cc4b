"""Why a paired layer costs something else, of layers that are small enough to count by hand."""

from __future__ import annotations

import pytest

from pytest_neuralpower.calibrate.fit.rows import linear_layer
from pytest_neuralpower.guard.causes import Batches, Cause, find_causes
from pytest_neuralpower.layers import Layer, TensorSpec
from pytest_neuralpower.platform.prediction import LayerPrediction

SAME = Batches(1, 1)


def causes(
    base: Layer, head: Layer, times: tuple[float, float] = (1.0, 1.0), batches: Batches = SAME
) -> tuple[Cause, ...]:
    """Causes of the difference between two layers that take so many ms."""
    sides = [
        LayerPrediction(layer, ms, None, None, "by hand")
        for layer, ms in zip((base, head), times, strict=True)
    ]
    return find_causes(sides[0], sides[1], batches, {})


def transposed(cin: int, cout: int) -> Layer:
    """A transposed convolution of one position; its weight has its input channels first."""
    given, weight, made = (
        TensorSpec(shape, "float32")
        for shape in ((1, cin, 1, 1), (cin, cout, 1, 1), (1, cout, 1, 1))
    )
    params = (("transposed", True),)
    return Layer("conv", "conv_transpose2d", "", (given,), (weight,), (made,), "float32", params)


def test_weights_do_not_grow_with_the_batch() -> None:
    """Inputs and outputs double, weights do not: that is all that the batch explains, and all."""
    found = causes(linear_layer(2, 64, 64), linear_layer(4, 64, 64), batches=Batches(2, 4))
    assert [(each.name, each.detail, each.share) for each in found] == [
        ("batch change", "2 -> 4", 1)
    ]


class TestRegimes:
    """64 more columns double operations, weights and output, not the input: the time may stay or
    double, and 2% more or less than that are nearly a sum."""

    BASE, HEAD = linear_layer(64, 64, 64), linear_layer(64, 64, 128)

    @pytest.mark.parametrize("after", [0.985, 1.0, 1.5, 2.0, 2.03])
    def test_within_what_operations_and_bytes_explain_is_none(self, after: float) -> None:
        found = causes(self.BASE, self.HEAD, (1.0, after))
        assert [each.name for each in found] == ["more operations", "more bytes"]
        assert [each.share for each in found] == [1.0, 0.0]

    @pytest.mark.parametrize(
        ("after", "name"), [(0.975, "cheaper regime"), (2.05, "costlier regime")]
    )
    def test_outside_is_another_one(self, after: float, name: str) -> None:
        assert causes(self.BASE, self.HEAD, (1.0, after))[-1].name == name

    def test_beyond_is_a_worse_one_to_which_the_rest_of_the_growth_is_due(self) -> None:
        main, _, regime = causes(self.BASE, self.HEAD, (1.0, 3.0))
        assert regime.name == "costlier regime"
        assert regime.detail.startswith("+200.0% where operations and bytes make at most +100.0%")
        # Of 2 ms more, operations explain 1 ms.
        assert (main.share, regime.share) == (0.5, 0.5)

    def test_beneath_is_a_better_one_that_explains_all(self) -> None:
        main, _, regime = causes(self.BASE, self.HEAD, (1.0, 0.75))
        assert regime.name == "cheaper regime"
        assert regime.detail.startswith("-25.0% where operations and bytes make at least +0.0%")
        assert (main.share, regime.share) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("base", "head", "edge"),
    [
        (linear_layer(8, 256, 128), linear_layer(8, 256, 129), "output width 128 -> 129 leaves"),
        (linear_layer(8, 128, 256), linear_layer(8, 129, 256), "input width 128 -> 129 leaves"),
        (transposed(256, 128), transposed(256, 129), "output width 128 -> 129 leaves"),
        (transposed(128, 256), transposed(129, 256), "input width 128 -> 129 leaves"),
    ],
)
def test_an_edge_names_the_width_that_has_changed(base: Layer, head: Layer, edge: str) -> None:
    worse, better = causes(base, head, (1.0, 2.0))[-1], causes(head, base, (2.0, 1.0))[-1]
    assert worse.detail.endswith(f": {edge} a multiple of 128")
    ours, theirs = edge.split()[2:5:2]
    turned = edge.replace(f"{ours} -> {theirs} leaves", f"{theirs} -> {ours} reaches")
    assert better.detail.endswith(f": {turned} a multiple of 128")
