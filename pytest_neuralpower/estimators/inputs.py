"""What the boosted residual looks at: sizes, and what of them sets a kernel's efficiency.

Trees on sizes alone would have to learn that a product of 129 columns is cut like one of 256;
here the fill of a tile, of a wave and of a vector are numbers that one split can ask for.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from pytest_neuralpower.features import Columns, FloatArray

_RATIO: Final = re.compile(r"(\w+)/(\w+)")
_CALL: Final = re.compile(r"(\w+)\((\w+), (\d+)\)")
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
    if name in columns:
        return columns[name]
    if wave := _WAVE.fullmatch(name):
        rows, cols, at_once = (float(each) for each in wave.groups())
        tiles = np.ceil(columns["m"] / rows) * np.ceil(columns["n"] / cols) * columns["groups"]
        waves = np.maximum(np.ceil(tiles / at_once), 1.0)
        return np.asarray(tiles / (waves * at_once))
    if ratio := _RATIO.fullmatch(name):
        return np.asarray(columns[ratio[1]] / np.maximum(columns[ratio[2]], 1e-30))
    call = _CALL.fullmatch(name)
    if call is None or call[1] not in ("fill", "align"):
        raise ValueError(
            f"unknown input {name!r}: a column, a/b, fill(n, 128), align(k, 64) or "
            "wave_fill(128x64, 24)"
        )
    values, size = columns[call[2]], int(call[3])
    if call[1] == "fill":
        return np.asarray(values / np.maximum(np.ceil(values / size) * size, 1e-30))
    found = np.ones_like(values)
    power = 2
    while power <= size:
        found[values % power == 0] = power
        power *= 2
    return found
