"""What the boosted residual looks at: sizes, and what of them sets a kernel's efficiency.

Trees on sizes alone would have to learn that a product of 129 columns is cut like one of 256;
here the fill of a tile, of a wave and of a vector are numbers that one split can ask for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from pytest_neuralpower.features import Columns, FloatArray

_RATIO: Final = re.compile(r"(\w+)/(\w+)")
_CALL: Final = re.compile(r"(\w+)\((\w+), (\d+)\)")
#: Keeps a division by an empty size finite.
_TINY: Final = 1e-30
_WAVE: Final = re.compile(r"wave_fill\((\d+)x(\d+), (\d+)\)")


def evaluate_input(name: str, columns: Columns) -> FloatArray:
    """Values of one input, shape ``(rows,)``.

    Parameters
    ----------
    name
        - a column (``m``);
        - ``flops/bytes_moved``: the ratio of two columns;
        - ``fill(n, 128)``: n over n rounded up to a multiple of 128;
        - ``align(k, 64)``: the largest power of two that divides k, at most 64;
        - ``wave_fill(128x64, 24)``: tiles of 128 x 64 over those of full waves of 24.

    Raises
    ------
    KeyError
        There is no such column.
    ValueError
        There is no such input.
    """
    return columns[name] if name in columns else _compiled(name)(columns)


@cache
def _compiled(name: str) -> Callable[[Columns], FloatArray]:
    """What evaluates one input that is no column; the name is read once."""
    if wave := _WAVE.fullmatch(name):
        rows, cols, at_once = (int(each) for each in wave.groups())
        return partial(_wave_fill, rows=rows, cols=cols, at_once=at_once)
    if ratio := _RATIO.fullmatch(name):
        return partial(_ratio, over=ratio[1], under=ratio[2])
    call = _CALL.fullmatch(name)
    if call is None or call[1] not in _CALLS:
        raise ValueError(
            f"unknown input {name!r}: a column, a/b, fill(n, 128), align(k, 64) or "
            "wave_fill(128x64, 24)"
        )
    return partial(_CALLS[call[1]], column=call[2], size=int(call[3]))


def _ratio(columns: Columns, *, over: str, under: str) -> FloatArray:
    return np.asarray(columns[over] / np.maximum(columns[under], _TINY))


def _fill(columns: Columns, *, column: str, size: int) -> FloatArray:
    values = columns[column]
    return np.asarray(values / np.maximum(np.ceil(values / size) * size, _TINY))


def _align(columns: Columns, *, column: str, size: int) -> FloatArray:
    # The lowest bit of a whole number is the largest power of two that divides it.
    whole = columns[column].astype(np.int64)
    return np.asarray(np.minimum(whole & -whole, size), dtype=np.float64)


def _wave_fill(columns: Columns, *, rows: int, cols: int, at_once: int) -> FloatArray:
    tiles = np.ceil(columns["m"] / rows) * np.ceil(columns["n"] / cols) * columns["groups"]
    waves = np.maximum(np.ceil(tiles / at_once), 1.0)
    return np.asarray(tiles / (waves * at_once))


_CALLS: Final[dict[str, Callable[..., FloatArray]]] = {"fill": _fill, "align": _align}
