"""Non-negative least squares with a few unknowns, for hundreds of subsets of rows at once.

A tree asks of every possible split how well a line fits either side. Only the products of the
columns are needed for that (the normal equations), and coordinate descent solves all subsets'
together, one unknown at a time. It is exact enough to rank splits; the lines that are kept are
solved on their rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from pytest_neuralpower.features import FloatArray

#: Times that each unknown is solved for, the others fixed. On the splits of real rows the squared
#: error is then within a percent of the least.
SWEEPS: Final = 40

#: A column whose square in one subset is less than this share of that in another is taken to be
#: zero there: sums of a subset found by subtraction leave as much by rounding, and of any sign.
_ROUNDING: Final = 1e-14


def residual_squares(gram: FloatArray, right: FloatArray, rows: FloatArray) -> FloatArray:
    """Least ``||1 - A x||^2`` over x >= 0, or a little more.

    Parameters
    ----------
    gram
        ``A^T A`` of each subset, shape ``(subsets, terms, terms)``.
    right
        ``A^T 1``, shape ``(subsets, terms)``.
    rows
        Number of rows of each subset, shape ``(subsets,)``: what x = 0 leaves.

    Returns
    -------
    numpy.ndarray
        Shape ``(subsets,)``.
    """
    # The last axis runs over subsets, so that every step is one pass over contiguous numbers.
    gram = np.ascontiguousarray(gram.transpose(1, 2, 0))
    right = np.ascontiguousarray(right.T)
    terms = len(right)
    size = np.einsum("iis->is", gram)
    size = np.where(size > _ROUNDING * size.max(axis=1, keepdims=True), size, np.inf)
    found = np.zeros_like(right)
    for _ in range(SWEEPS):
        for term in range(terms):
            others = np.einsum("is,is->s", gram[term], found)
            step = (right[term] - others) / size[term]
            np.maximum(found[term] + step, 0.0, out=found[term])
    fitted = np.einsum("is,ijs,js->s", found, gram, found)
    left = rows - 2 * np.einsum("is,is->s", found, right) + fitted
    return np.asarray(np.maximum(left, 0.0))
