"""Calibrated ranges: what sizes, and what sizes together, the measured rows had.

A layer with every size in range may still be far from all rows: a tall product of a small depth
where only flat deep ones were measured. So the products and ratios of the sizes of a matrix product
have a range too; on held-out rows of both Titan X platforms, layers outside one of these alone
were off by as much as layers outside a size (median log error 0.09 to 0.36 beside 0.05 to 0.09
inside). Nothing is said of how far outside a layer is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import numpy as np

from pytest_neuralpower.features import range_columns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pytest_neuralpower.features import Columns, FloatArray

__all__ = ["calibrated_ranges", "is_range", "outside"]

_PAIRS: Final = ("m*n", "m*k", "n*k", "m/n", "m/k", "n/k")

#: Products and ratios of columns that have a range beside the columns themselves.
JOINT: Final[Mapping[str, tuple[str, ...]]] = {
    "conv": _PAIRS,
    "conv.transposed": _PAIRS,
    "conv.depthwise": ("m*groups", "m/groups"),
    "linear": _PAIRS,
    "matmul": _PAIRS,
}

_NAME: Final = re.compile(r"(\w+)(?:([*/])(\w+))?")

#: Ranges are stored to six digits, so what lies on their edge is inside by this much.
_EDGE: Final = 1e-5


def calibrated_ranges(family_name: str, values: Columns) -> dict[str, tuple[float, float]]:
    """Smallest and largest of each column, product and ratio over a family's calibration rows."""
    ranges = {}
    for name in (*range_columns(family_name), *JOINT.get(family_name, ())):
        found = _value(name, values)
        ranges[name] = (_rounded(float(found.min())), _rounded(float(found.max())))
    return ranges


def outside(ranges: Mapping[str, tuple[float, float]], values: Columns) -> NDArray[np.bool_]:
    """Rows with any size, product or ratio outside what was calibrated."""
    mask = np.zeros(len(values["flops"]), dtype=bool)
    for name, (low, high) in ranges.items():
        found = _value(name, values)
        mask |= (found < low * (1 - _EDGE)) | (found > high * (1 + _EDGE))
    return mask


def is_range(name: str) -> bool:
    """Whether the name is a column, or two with ``*`` or ``/`` between them."""
    return _NAME.fullmatch(name) is not None


def _value(name: str, values: Columns) -> FloatArray:
    match = _NAME.fullmatch(name)
    assert match is not None  # checked when the platform was read
    first, operator, second = match.groups()
    if operator is None:
        return values[first]
    other = values[second]
    return values[first] * other if operator == "*" else values[first] / np.maximum(other, 1.0)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}") if value != int(value) or abs(value) >= 1e15 else value
