"""Physical terms: what a layer makes the device do, each in a unit that a person can read.

A term's coefficient is then a rate: ms per GFLOP, ms per MB, ms per launch. Tile terms follow
the way GPU libraries cut a matrix product into tiles of rows x columns, hand them to the
multiprocessors in waves, and pay for the part of a tile or wave that holds nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from pytest_neuralpower.features import Columns, FloatArray

_GIGA: Final = 1e-9
_MEGA: Final = 1e-6
_TILE: Final = re.compile(r"(\w+)\[(\d+)x(\d+)\]")


def _tiles(columns: Columns, rows: int, cols: int) -> FloatArray:
    across = np.ceil(columns["m"] / rows) * np.ceil(columns["n"] / cols)
    return np.asarray(across * columns["groups"])


_PLAIN: Final[dict[str, Callable[[Columns], FloatArray]]] = {
    # One kernel launch, ms.
    "launch": lambda columns: np.ones_like(columns["flops"]),
    # GFLOP and MB.
    "flops": lambda columns: columns["flops"] * _GIGA,
    "bytes_in": lambda columns: columns["bytes_in"] * _MEGA,
    "bytes_out": lambda columns: columns["bytes_out"] * _MEGA,
    "bytes_weight": lambda columns: columns["bytes_weight"] * _MEGA,
    "bytes_moved": lambda columns: columns["bytes_moved"] * _MEGA,
    "bytes_workspace": lambda columns: columns["bytes_workspace"] * _MEGA,
    # Steps of one multiprocessor through the reduction: nothing hides them in a small product.
    "depth": lambda columns: columns["k"] * 1e-3,
    # Winograd F(2x2, 3x3): 16 products where a direct 3x3 has 36.
    "winograd_flops": lambda columns: columns["flops"] * (16.0 / 36.0) * _GIGA,
}


def evaluate(name: str, columns: Columns, multiprocessors: int) -> FloatArray:
    """Values of one term, shape ``(rows,)``.

    Parameters
    ----------
    name
        A plain term (``launch``, ``flops``, ``bytes_out``, ...) or a tile term with its tile:
        ``tile_flops[128x64]`` (GFLOP with rows and columns padded to the tile),
        ``wave_flops[128x64]`` (the same with the last wave of tiles filled up),
        ``wave_depth[128x64]`` (waves x reduction length, thousands),
        ``tiles[128x64]`` (thousands of tiles) and ``reread[128x64]`` (MB of both operands as the
        tiles read them).
    multiprocessors
        Tiles that run at once.

    Raises
    ------
    ValueError
        There is no such term.
    """
    plain = _PLAIN.get(name)
    if plain is not None:
        return plain(columns)
    match = _TILE.fullmatch(name)
    if match is None or match[1] not in _TILED:
        raise ValueError(f"unknown term {name!r}; there are {', '.join([*_PLAIN, *_TILED])}")
    return _TILED[match[1]](columns, int(match[2]), int(match[3]), multiprocessors)


def _tile_flops(columns: Columns, rows: int, cols: int, _: int) -> FloatArray:
    return np.asarray(2 * _tiles(columns, rows, cols) * rows * cols * columns["k"] * _GIGA)


def _waves(columns: Columns, rows: int, cols: int, multiprocessors: int) -> FloatArray:
    return np.asarray(np.ceil(_tiles(columns, rows, cols) / multiprocessors))


def _wave_flops(columns: Columns, rows: int, cols: int, multiprocessors: int) -> FloatArray:
    filled = _waves(columns, rows, cols, multiprocessors) * multiprocessors
    return np.asarray(2 * filled * rows * cols * columns["k"] * _GIGA)


def _wave_depth(columns: Columns, rows: int, cols: int, multiprocessors: int) -> FloatArray:
    return np.asarray(_waves(columns, rows, cols, multiprocessors) * columns["k"] * 1e-3)


def _tile_count(columns: Columns, rows: int, cols: int, _: int) -> FloatArray:
    return np.asarray(_tiles(columns, rows, cols) * 1e-3)


def _reread(columns: Columns, rows: int, cols: int, _: int) -> FloatArray:
    left = columns["m"] * np.ceil(columns["n"] / cols)
    right = columns["n"] * np.ceil(columns["m"] / rows)
    return np.asarray((left + right) * columns["k"] * columns["groups"] * 4.0 * _MEGA)


_TILED: Final[dict[str, Callable[[Columns, int, int, int], FloatArray]]] = {
    "tile_flops": _tile_flops,
    "wave_flops": _wave_flops,
    "wave_depth": _wave_depth,
    "tiles": _tile_count,
    "reread": _reread,
}
