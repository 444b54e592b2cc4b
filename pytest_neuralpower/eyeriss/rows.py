"""Rows of the input map that a strip of output rows needs: halos, strides and borders, exactly."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

__all__ = ["rows_delivered", "rows_read", "strip_sizes"]


def rows_read(
    size: int, *, outputs: int, length: int, kernel: int, stride: int, dilation: int, before: int
) -> int:
    """Input rows read when ``outputs`` output rows are computed in strips of ``size`` rows.

    Rows that two strips need are read twice; padding and rows that no filter touches (stride above
    kernel) are not read. Works for columns as well.
    """
    taps = np.arange(kernel) * dilation - before
    total = 0
    for start in range(0, outputs, size):
        first = np.arange(start, min(start + size, outputs)) * stride
        touched = np.zeros(length, dtype=bool)
        rows = (first[:, None] + taps).ravel()
        touched[rows[(rows >= 0) & (rows < length)]] = True
        total += int(touched.sum())
    return total


def rows_delivered(
    *, outputs: int, length: int, kernel: int, stride: int, dilation: int, before: int
) -> int:
    """Pairs of an output row and an input row it needs: deliveries to the PEs of a set."""
    rows = np.arange(outputs)[:, None] * stride + np.arange(kernel) * dilation - before
    return int(((rows >= 0) & (rows < length)).sum())


@lru_cache(maxsize=4096)  # one layer's search asks for the same few a hundred times
def strip_sizes(length: int, most: int, *, limit: int | None = None) -> tuple[int, ...]:
    """Sizes that split ``length`` into 1, 2, 3, ... nearly equal parts, none above ``limit``.

    At most about ``most`` of them, thinned evenly on a logarithmic scale; both ends are kept.
    """
    limit = length if limit is None else max(1, min(limit, length))
    parts = np.arange(-(-length // limit), length + 1)
    sizes = np.unique(-(-length // parts))
    if len(sizes) > most:
        wanted = np.geomspace(sizes[0], sizes[-1], most)
        sizes = np.unique(sizes[np.abs(sizes[:, None] - wanted).argmin(axis=0)])
    return tuple(sizes.tolist())
