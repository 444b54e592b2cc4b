"""When a layer is inside what was measured: in each size, and in sizes taken together."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_neuralpower.calibrate.fit.rows import linear_layer, streaming_layer
from pytest_neuralpower.estimators.features import columns, range_columns
from pytest_neuralpower.platform.ranges import calibrated_ranges, outside

#: Flat deep products and tall shallow ones: (rows, depth, width).
MEASURED = [(16, 4096, 256), (32, 2048, 256), (4096, 64, 256), (2048, 128, 512)]


def flagged(*sizes: tuple[int, int, int]) -> list[bool]:
    measured = columns("linear", [linear_layer(*size) for size in MEASURED])
    asked = columns("linear", [linear_layer(*size) for size in sizes])
    return outside(calibrated_ranges("linear", measured), asked).tolist()


def test_every_measured_row_is_inside() -> None:
    assert flagged(*MEASURED) == [False] * len(MEASURED)


@pytest.mark.parametrize("size", [(15, 4096, 256), (16, 4097, 256), (32, 2048, 255)])
def test_one_size_just_outside_is_outside(size: tuple[int, int, int]) -> None:
    assert flagged(size) == [True]


def test_sizes_that_were_never_large_or_small_together_are_outside() -> None:
    # 16 to 4096 rows and depths of 64 to 4096 were measured, but never both large or both small.
    assert flagged((4096, 4096, 256), (16, 64, 256), (1024, 256, 256)) == [True, True, False]


@pytest.mark.parametrize("kind", ["norm", "activation"])
def test_a_family_without_matrix_products_has_single_ranges(kind: str) -> None:
    layers = [streaming_layer(kind, kind, [(8, size)], (8, size)) for size in (64, 512)]
    assert set(calibrated_ranges(kind, columns(kind, layers))) == set(range_columns(kind))


def test_ends_survive_being_rounded() -> None:
    values = {"m": np.array([3.0, 7.0]), "n": np.array([7.0, 3.0]), "k": np.array([11.0, 13.0])}
    values |= {"groups": np.ones(2), "flops": np.ones(2)}
    ranges = calibrated_ranges("linear", values)
    assert ranges["m/n"] == (0.428571, 2.33333)
    assert not outside(ranges, values).any()


@pytest.mark.parametrize("name", ["m*", "", "m-n", "m*n*k"])
def test_a_range_that_names_not_one_or_two_columns_is_refused(name: str) -> None:
    values = columns("linear", [linear_layer(*size) for size in MEASURED])
    assert not outside({"m": (1, 9999), "m*n": (1, 1e9), "m/groups": (1, 9999)}, values).any()
    with pytest.raises(ValueError, match="is of no size, product or ratio of sizes"):
        outside({name: (1, 2)}, values)
