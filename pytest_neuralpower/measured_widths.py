"""Which channel widths a platform's rows had: what tells a measured plateau edge from a fit's own.

A fit can put an edge anywhere between two widths that were measured. Kept are the widths of layers
whose kernels tile their channels; all other layers follow their bytes and have no edges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pytest_neuralpower.features import columns, family

if TYPE_CHECKING:
    from pytest_neuralpower.features import Columns
    from pytest_neuralpower.layers import Layer

__all__ = ["PROVENANCE_KEY", "measured_widths", "were_measured"]

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

#: Family -> column -> ascending widths.
Widths = Mapping[str, Mapping[str, Sequence[int]]]


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
