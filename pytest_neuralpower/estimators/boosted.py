"""Another estimator times the exponential of a small boosted residual."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import numpy as np

from pytest_neuralpower.errors import FitError
from pytest_neuralpower.estimators.base import Estimator
from pytest_neuralpower.estimators.boosted_trees import BoostedTrees, no_trees
from pytest_neuralpower.estimators.boosting import Boosting
from pytest_neuralpower.estimators.folds import MIN_GROUPS, grouped_folds, whole_groups
from pytest_neuralpower.estimators.inputs import evaluate_input
from pytest_neuralpower.estimators.physical import Physical
from pytest_neuralpower.estimators.shares import Shares

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.features import Columns, FloatArray

#: Numbers of trees, and fewest rows of a leaf, that cross-validation chooses among.
TREES: Final = (0, 20, 50, 100, 150)
LEAST_ROWS: Final = (8, 25)
DEPTH: Final = 4

#: Fewer rows than this say nothing about the residual of an estimator fitted to them.
MIN_ROWS: Final = 80

#: The cross-validation that chooses them: its folds, and the most rows it looks at.
_TUNING_FOLDS: Final = 3
_TUNING_ROWS: Final = 2500

#: What the residual may be added to.
_BASES: Final[dict[str, type[Estimator]]] = {each.name: each for each in (Physical, Shares)}


class Boosted(Estimator):
    """``base x exp(residual)``, the residual a sum of small trees that sees sizes and alignment.

    The base knows how cost grows; the trees know what it leaves out where there were rows. Trees
    know nothing beyond their rows, so the residual fades: outside the calibrated range of
    ``ranges`` it is multiplied by ``2 ** -d**2``, ``d`` being the distance in doublings (root
    of the sum of squares over columns).

    Parameters
    ----------
    base
        Unfitted physical estimator (runtime, energy) or shares (power).
    inputs
        What the trees ask about (:mod:`pytest_neuralpower.estimators.inputs`).
    ranges
        Columns whose calibrated range bounds the residual.
    trees, least_rows
        Number of trees and fewest rows in a leaf; None has grouped cross-validation choose
        among :data:`TREES` and :data:`LEAST_ROWS`.

    Attributes
    ----------
    base_
        Fitted.
    constant_, trees_
        The residual, natural logarithm.
    ranges_
        Smallest and largest calibrated value by column.
    spread_
        Standard deviation of the residual over the rows it was fitted to.
    """

    name: ClassVar[str] = "boosted"

    def __init__(
        self,
        base: Estimator,
        inputs: Sequence[str],
        ranges: Sequence[str],
        *,
        trees: int | None = None,
        least_rows: int | None = None,
    ) -> None:
        if base.name not in _BASES:
            raise ValueError(f"boosted starts from {' or '.join(_BASES)}, not {base.name!r}")
        self.base = base
        self.inputs = tuple(inputs)
        self.ranges = tuple(ranges)
        self.trees = trees
        self.least_rows = least_rows
        self.base_ = base
        self.constant_ = 0.0
        self.trees_ = no_trees(DEPTH)
        self.ranges_: dict[str, tuple[float, float]] = {}
        self.spread_ = 0.0

    def _tune(self, columns: Columns, target: FloatArray, groups: Sequence[Hashable]) -> None:
        counts = TREES if self.trees is None else (self.trees,)
        sizes = LEAST_ROWS if self.least_rows is None else (self.least_rows,)
        self.trees, self.least_rows = counts[0], sizes[-1]
        if len(target) < MIN_ROWS:
            raise FitError(f"boosted: {len(target)} rows, {MIN_ROWS} are needed: measure more")
        kept = whole_groups(groups, _TUNING_ROWS)
        some = [groups[row] for row in kept.tolist()]
        if len(counts) * len(sizes) == 1 or len(set(some)) < MIN_GROUPS:
            return
        columns, target = _part(columns, kept), target[kept]
        fold = grouped_folds(some, _TUNING_FOLDS)
        errors = np.zeros((len(sizes), len(counts)))
        for number in range(int(fold.max()) + 1):
            seen = fold != number
            known, held_out = _part(columns, seen), _part(columns, ~seen)
            base = deepcopy(self.base).fit(known, target[seen])
            left = _residual(base, known, target[seen])
            plain = base.predict(held_out)
            for row, size in enumerate(sizes):
                model = Boosting(trees=max(counts), depth=DEPTH, least_rows=size)
                model.fit(self._values(known), left)
                constant, trees = model.trees(max(counts))
                for column, count in enumerate(counts):
                    left_out = trees.first(count).predict(self._values(held_out))
                    factor = np.exp(constant + left_out) if count else 1.0
                    errors[row, column] += np.abs(plain * factor / target[~seen] - 1).sum()
        # Of about equally good ones the fewest trees with the largest leaves.
        good = errors <= errors.min() * 1.005
        column = int(np.flatnonzero(good.any(axis=0))[0])
        self.trees = counts[column]
        self.least_rows = sizes[int(np.flatnonzero(good[:, column])[-1])]

    def _fit(self, columns: Columns, target: FloatArray) -> None:
        if self.trees is None or self.least_rows is None:  # pragma: no cover - fit() tunes first
            raise FitError("boosted: neither trees nor least_rows was chosen")
        self.base_ = deepcopy(self.base).fit(columns, target)
        self.ranges_ = {
            name: (float(columns[name].min()), float(columns[name].max())) for name in self.ranges
        }
        if not self.trees:
            self.constant_, self.trees_ = 0.0, no_trees(DEPTH)
            return
        model = Boosting(trees=self.trees, depth=DEPTH, least_rows=self.least_rows)
        model.fit(self._values(columns), _residual(self.base_, columns, target))
        constant, self.trees_ = model.trees(self.trees)
        self.constant_ = float(f"{constant:.6g}")
        self.spread_ = float(f"{float(self._sum(columns).std()):.3g}")
        if getattr(self.base, "rescale", False):
            # As in the base: logarithms alone make the total of noisy rows too low.
            total = float(target.sum() / self.predict(columns).sum())
            self.constant_ = float(f"{self.constant_ + np.log(total):.6g}")

    def _values(self, columns: Columns) -> FloatArray:
        return np.stack([evaluate_input(name, columns) for name in self.inputs])

    def _sum(self, columns: Columns) -> FloatArray:
        return self.constant_ + self.trees_.predict(self._values(columns))

    def fade(self, columns: Columns) -> FloatArray:
        """Weight of the residual, 1 inside the calibrated ranges, towards 0 beyond them."""
        distance: FloatArray = np.zeros(len(columns["flops"]))
        for name, (low, high) in self.ranges_.items():
            values = np.maximum(columns[name], 1e-30)
            beyond = np.maximum(values / max(high, 1e-30), max(low, 1e-30) / values)
            distance += np.log2(np.maximum(beyond, 1.0)) ** 2
        return np.asarray(np.exp2(-distance), dtype=np.float64)

    def predict(self, columns: Columns) -> FloatArray:
        base = self.base_.predict(columns)
        if not len(self.trees_):
            return base
        found = base * np.exp(self.fade(columns) * self._sum(columns))
        # The board's limit holds for the residual too, where the base is of power and knows one.
        limit = getattr(self.base_, "limit_w", None)
        return np.asarray(found if limit is None else np.minimum(found, limit))

    def to_json(self) -> dict[str, Any]:
        return {
            "estimator": self.name,
            "base": self.base_.to_json(),
            "inputs": list(self.inputs),
            "ranges": {name: list(ends) for name, ends in self.ranges_.items()},
            "least_rows": self.least_rows,
            "spread": self.spread_,
            "constant": self.constant_,
            "depth": self.trees_.depth,
            "trees": self.trees_.to_json(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        kind = data["base"]["estimator"]
        if kind not in _BASES:
            raise ValueError(f"boosted starts from {' or '.join(_BASES)}, not {kind!r}")
        inputs = [str(name) for name in data["inputs"]]
        estimator = cls(
            _BASES[kind].from_json(data["base"]),
            inputs,
            [str(name) for name in data["ranges"]],
            trees=len(data["trees"]),
            least_rows=int(data["least_rows"]),
        )
        estimator.ranges_ = {
            str(name): (float(low), float(high)) for name, (low, high) in data["ranges"].items()
        }
        estimator.spread_ = float(data["spread"])
        estimator.constant_ = float(data["constant"])
        estimator.trees_ = BoostedTrees.from_json(data["trees"], int(data["depth"]), len(inputs))
        return estimator


def _part(columns: Columns, rows: NDArray[Any]) -> dict[str, FloatArray]:
    return {name: values[rows] for name, values in columns.items()}


def _residual(base: Estimator, columns: Columns, target: FloatArray) -> FloatArray:
    """Logarithm of measured over predicted, rounded so that the target's unit leaves no trace."""
    left = np.log(target / np.maximum(base.predict(columns), 1e-30))
    return np.asarray(np.round(left, 9), dtype=np.float64)
