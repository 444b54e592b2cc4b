"""Growing a tree: the split that leaves the least relative error, as long as it pays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Final

import numpy as np

from pytest_neuralpower.estimators.base import need_extra
from pytest_neuralpower.estimators.regimes import Condition
from pytest_neuralpower.estimators.small_nnls import residual_squares
from pytest_neuralpower.estimators.tree_nodes import Leaf, Node, Split

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.features import Columns, FloatArray

#: Thresholds tried per column of a node: quantiles of the values that its rows have.
_THRESHOLDS: Final = 10

#: Multiples tried. Vector widths and tiles are powers of two.
_MULTIPLES: Final = (2, 4, 8, 16, 32, 64, 128)

#: Work, of which no multiple is special.
_WORK: Final = ("flops", "bytes", "runtime")

#: A split must leave this share of its node's squared error at most.
_WORTH: Final = 0.99

#: Mean squared relative error (0.1%, squared) that no split needs to explain.
_NOTHING: Final = 1e-6


def grow(
    columns: Columns,
    terms: Mapping[str, FloatArray],
    target: FloatArray,
    splits: Sequence[str],
    *,
    depth: int,
    least_rows: int,
) -> Node:
    """The tree of rows with these terms.

    Parameters
    ----------
    columns
        What conditions are on.
    terms
        What the lines run over, each of shape ``(rows,)``.
    target
        Measured values, positive.
    splits
        Columns that conditions may be on.
    depth, least_rows
        Most conditions above a leaf, fewest rows in one.

    Raises
    ------
    MissingExtraError
        The extra ``calibrate`` is not installed.
    """
    matrix = np.stack(list(terms.values()), axis=1) / target[:, None]
    # Columns of like size keep the normal equations well conditioned.
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0] = 1.0
    matrix /= scale
    pairs = list(combinations_with_replacement(range(matrix.shape[1]), 2))
    products = np.stack([matrix[:, i] * matrix[:, j] for i, j in pairs], axis=1)
    # One row of all that a node needs to know of a sample: products, right side, count.
    sums = np.hstack([products, matrix, np.ones((len(target), 1))])
    given = {name: columns[name] for name in splits}
    grower = _Grower(given, tuple(terms), matrix, scale, sums, least_rows)
    return grower.node(np.arange(len(target)), depth)


@dataclass(frozen=True, slots=True)
class _Grower:
    """Grows the subtree of any subset of rows.

    Attributes
    ----------
    columns
        What conditions may be on.
    names, matrix, scale
        The terms; their values over the target, each column of norm 1; the norms.
    sums
        Per row: products of the columns of ``matrix``, those columns, and 1.
    least_rows
        Fewest rows in a leaf.
    """

    columns: Columns
    names: tuple[str, ...]
    matrix: FloatArray
    scale: FloatArray
    sums: FloatArray
    least_rows: int

    def node(self, rows: NDArray[np.intp], depth: int) -> Node:
        leaf = self.leaf(rows)
        if depth == 0 or len(rows) < 2 * self.least_rows:
            return leaf
        found = self.best_split(rows)
        if found is None:
            return leaf
        condition, holds = found
        yes, no = self.node(rows[holds], depth - 1), self.node(rows[~holds], depth - 1)
        return Split(condition, yes, no, leaf)

    def leaf(self, rows: NDArray[np.intp]) -> Leaf:
        try:
            from scipy.optimize import nnls  # noqa: PLC0415 - only fitting needs it
        except ImportError:
            raise need_extra("SciPy") from None
        part = self.matrix[rows]
        size = np.linalg.norm(part, axis=0)
        size[size == 0] = 1.0
        found, _ = nnls(part / size, np.ones(len(rows)))
        rates = found / size / self.scale
        named = zip(self.names, rates.tolist(), strict=True)
        return Leaf({name: float(f"{rate:.8g}") for name, rate in named if rate > 0}, len(rows))

    def best_split(self, rows: NDArray[np.intp]) -> tuple[Condition, NDArray[np.bool_]] | None:
        """The condition whose two sides two lines fit best, if it is worth having."""
        conditions: list[Condition] = []
        masks: list[NDArray[np.bool_]] = []
        for column, every in self.columns.items():
            values = every[rows]
            for condition in _conditions(column, values):
                holds = condition.holds({column: values})
                if self.least_rows <= np.count_nonzero(holds) <= len(rows) - self.least_rows:
                    conditions.append(condition)
                    masks.append(holds)
        if not masks:
            return None
        part = self.sums[rows]
        whole = part.sum(axis=0)
        yes = np.stack(masks).astype(np.float64) @ part
        left = self.squares(yes) + self.squares(whole - yes)
        least = float(left.min())
        undivided = float(self.squares(whole[None])[0])
        if undivided < _NOTHING * len(rows) or least > _WORTH * undivided:
            return None
        # Of splits equally good but for rounding the first, whatever the unit of the target.
        best = int(np.flatnonzero(left <= least + 1e-9 * len(rows))[0])
        return conditions[best], masks[best]

    def squares(self, sums: FloatArray) -> FloatArray:
        """Squared relative error that the best line leaves of each subset."""
        terms = self.matrix.shape[1]
        upper = np.triu_indices(terms)
        gram = np.zeros((len(sums), terms, terms))
        gram[:, upper[0], upper[1]] = gram[:, upper[1], upper[0]] = sums[:, : len(upper[0])]
        return residual_squares(gram, sums[:, len(upper[0]) : -1], sums[:, -1])


def _conditions(column: str, values: FloatArray) -> list[Condition]:
    """Conditions on one column that tell these values apart."""
    seen = np.unique(values)
    if len(seen) < 2:
        return []
    places = np.unique(np.linspace(0, len(seen) - 1, _THRESHOLDS + 2).astype(int)[1:-1])
    if len(seen) <= _THRESHOLDS:
        places = np.arange(len(seen) - 1)
    found = [
        Condition(column, "<=", _between(seen[place], seen[place + 1]))
        for place in places.tolist()
        if place + 1 < len(seen)
    ]
    if not column.startswith(_WORK):
        found += [Condition(column, "%", float(each)) for each in _MULTIPLES if each < seen[-1]]
    return found


def _between(low: float, high: float) -> float:
    """A short number in ``[low, high)``, near their geometric mean where both are positive."""
    middle = np.sqrt(low * high) if low > 0 else (low + high) / 2
    for digits in range(1, 10):
        short = float(f"{middle:.{digits}g}")
        if low <= short < high:
            return short
    return float(low)
