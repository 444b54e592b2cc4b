"""Which estimator a family gets: grouped cross-validation, every candidate's score kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pytest_neuralpower.errors import FitError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.estimators.base import Estimator
    from pytest_neuralpower.features import Columns, FloatArray

#: Held-out mean error, %, at which an estimator is as good as none.
WORST_MAPE: Final = 100.0

#: Fewer groups than this cannot judge anything.
MIN_GROUPS: Final = 3


@dataclass(frozen=True, slots=True)
class Score:
    """Held-out error of one candidate; percentages of the measured value.

    Attributes
    ----------
    mape, median_ape, rmspe
        Mean, median and root mean square of the relative error, %.
    bias
        Mean signed relative error, %.
    total
        Error of the sum over all rows, %.
    within_10
        Share of rows within 10%, %.
    """

    mape: float
    median_ape: float
    rmspe: float
    bias: float
    total: float
    within_10: float

    @classmethod
    def of(cls, predicted: FloatArray, measured: FloatArray) -> Score:
        error = predicted / measured - 1.0
        size = np.abs(error)
        values = (
            size.mean(),
            np.median(size),
            np.sqrt((error**2).mean()),
            error.mean(),
            predicted.sum() / measured.sum() - 1.0,
            (size <= 0.1).mean(),
        )
        return cls(*(round(100.0 * float(value), 2) for value in values))

    def to_json(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Selection:
    """The estimator chosen, fitted to all rows, and what every candidate scored.

    ``scores`` maps a candidate to its held-out :class:`Score` as plain data, or to
    ``{"refused": reason}`` where it could not be fitted.
    """

    estimator: Estimator
    scores: dict[str, dict[str, Any]]
    rows: int
    groups: int
    folds: int

    def accuracy(self) -> dict[str, Any]:
        """Plain data for a platform file."""
        return {
            "rows": self.rows,
            "groups": self.groups,
            "folds": self.folds,
            "chosen": self.estimator.name,
            "held_out": self.scores,
        }


def grouped_folds(groups: Sequence[Any], folds: int) -> NDArray[np.intp]:
    """Fold of each row; all rows of one group share a fold, and folds are about equally large.

    Deterministic: groups go, largest first and then in order of appearance, to the fold that has
    fewest rows.
    """
    members: dict[Any, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    if len(members) < MIN_GROUPS:
        raise FitError(
            f"{len(members)} different layer shapes, {MIN_GROUPS} are needed to hold any out: "
            "measure more configurations"
        )
    result = np.zeros(len(groups), dtype=np.intp)
    load = [0] * min(folds, len(members))
    for rows in sorted(members.values(), key=len, reverse=True):
        fold = load.index(min(load))
        load[fold] += len(rows)
        result[rows] = fold
    return result


def held_out(
    make: Callable[[], Estimator], columns: Columns, target: FloatArray, fold: NDArray[np.intp]
) -> FloatArray:
    """Prediction of each row by an estimator that saw none of its fold."""
    predicted = np.zeros(len(target))
    for number in range(int(fold.max()) + 1):
        seen = fold != number
        estimator = make().fit({name: each[seen] for name, each in columns.items()}, target[seen])
        predicted[~seen] = estimator.predict({name: each[~seen] for name, each in columns.items()})
    return predicted


def select(
    candidates: Mapping[str, Callable[[], Estimator]],
    columns: Columns,
    target: FloatArray,
    groups: Sequence[Any],
    *,
    folds: int = 10,
    lines: Sequence[int] | None = None,
) -> Selection:
    """Fit every candidate, score each on held-out groups, keep the one with the lowest MAPE.

    Parameters
    ----------
    candidates
        Makers of unfitted estimators, by name.
    columns, target, lines
        As :meth:`~pytest_neuralpower.estimators.base.Estimator.fit` takes them.
    groups
        What must not be on both sides of a split: the layer's shape, batch sizes together.

    Raises
    ------
    FitError
        Bad rows, too few groups, or no candidate could be fitted.
    """
    fold = grouped_folds(groups, folds)
    scores: dict[str, dict[str, Any]] = {}
    fitted: dict[str, Estimator] = {}
    for name, make in candidates.items():
        try:
            fitted[name] = make().fit(columns, target, lines=lines)
            scores[name] = Score.of(held_out(make, columns, target, fold), target).to_json()
        except FitError as error:
            scores[name] = {"refused": str(error)}
            fitted.pop(name, None)
    if not fitted:
        raise FitError("; ".join(str(score["refused"]) for score in scores.values()))
    best = min(fitted, key=lambda name: float(scores[name]["mape"]))
    if scores[best]["mape"] >= WORST_MAPE:
        raise FitError(
            f"no estimator predicts held-out shapes: {best} errs by {scores[best]['mape']:.0f}% on "
            "average, which is no better than answering 0; measure more configurations"
        )
    return Selection(fitted[best], scores, len(target), len(set(groups)), int(fold.max()) + 1)
