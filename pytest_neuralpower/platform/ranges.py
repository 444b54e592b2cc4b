"""Calibrated ranges: what sizes, and what sizes together, the measured rows had.

A layer with every size in range may still be far from all rows: a tall product of a small depth
where only flat deep ones were measured. So the products and ratios of the sizes of a matrix product
have a range too; on held-out rows of both Titan X platforms, layers outside one of these alone
were off by as much as layers outside a size (median log error 0.09 to 0.36, against 0.05 to 0.09
inside). Nothing is said of how far outside a layer is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pytest_neuralpower.estimators.features import columns, family, range_columns

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.estimators.features import Columns, FloatArray
    from pytest_neuralpower.layers import Layer


_PAIRS: Final = ("m*n", "m*k", "n*k", "m/n", "m/k", "n/k")

#: Products and ratios of columns that have a range as well as the columns themselves.
JOINT: Final[Mapping[str, tuple[str, ...]]] = {
    "conv": _PAIRS,
    "conv.transposed": _PAIRS,
    "conv.depthwise": ("m*groups", "m/groups"),
    "linear": _PAIRS,
    "matmul": _PAIRS,
    # A prompt that follows others has fewer queries than keys, and a kernel of its own.
    "attention": ("queries/keys", "heads/shared_heads"),
    "attention.decode": ("queries", "causal", "heads/shared_heads", "shared_heads*keys"),
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


def _value(name: str, values: Columns) -> FloatArray:
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"range {name!r} is of no size, product or ratio of sizes")
    first, operator, second = match.groups()
    if operator is None:
        return values[first]
    other = values[second]
    return values[first] * other if operator == "*" else values[first] / np.maximum(other, 1.0)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}") if value != int(value) or abs(value) >= 1e15 else value


# -- Measured channel widths, which tell a measured plateau edge from one of the fit's own.
#
# A fit can put an edge anywhere between two widths that were measured. Kept are the widths of
# layers whose kernels tile their channels; all other layers follow their bytes and have no edges.

#: Where a fitted platform's provenance has them.
PROVENANCE_KEY: Final = "widths"

#: Columns that hold a layer's widths, by family.
_WIDTHS: Final[Mapping[str, tuple[str, ...]]] = {
    "conv": ("cin", "cout"),
    "conv.depthwise": ("groups",),
    "conv.transposed": ("cin", "cout"),
    "linear": ("k", "n"),
}

#: More widths than this were drawn at random, each in a row or two: none tells an edge by itself,
#: and they would outweigh the rest of a platform file.
_MOST: Final = 500


def measured_widths(tables: Mapping[str, Columns]) -> dict[str, dict[str, list[int]]]:
    """The distinct widths of calibration rows, in JSON types, where there are not too many.

    Parameters
    ----------
    tables
        Columns of the rows of each family.
    """
    found: dict[str, dict[str, list[int]]] = {}
    for name, values in tables.items():
        for column in _WIDTHS.get(name, ()):
            widths = np.unique(values[column]).astype(int).tolist()
            if len(widths) <= _MOST:
                found.setdefault(name, {})[column] = widths
    return found


def were_measured(known: Any, pairs: Sequence[tuple[Layer, Layer]]) -> bool:
    """Whether rows had every width in which the layers of a pair differ, on both sides.

    Their other sizes may have been other ones.

    Parameters
    ----------
    known
        What :func:`measured_widths` returned; empty for a platform that does not keep them.
    pairs
        A layer before and after a change of widths.
    """
    changed = False
    for pair in pairs:
        name = family(pair[0])
        for column in _WIDTHS.get(name, ()):
            here, there = columns(name, pair)[column].tolist()
            if here != there:
                changed = True
                if not {here, there} <= set(known.get(name, {}).get(column, ())):
                    return False
    return changed
