"""Which estimator a family gets: grouped cross-validation, every candidate's score kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pytest_neuralpower.errors import FitError
from pytest_neuralpower.estimators.folds import grouped_folds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.estimators.base import Estimator
    from pytest_neuralpower.features import Columns, FloatArray

#: More rows than this are held out by fifths: four fifths of them are enough to fit anything, and
#: all candidates on 6,000 rows then take less than a minute.
MANY_ROWS: Final = 1000

#: Scored beside the others, and chosen only where nothing else can be fitted: the paper's estimator
#: as it was published, whose polynomials turn negative outside what they were fitted on.
COMPARED: Final = ("neuralpower",)

#: Held-out mean error, %, at which an estimator is as good as none.
WORST_MAPE: Final = 100.0


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
    within_5, within_10, within_20
        Share of rows within 5, 10 and 20%, %.
    """

    mape: float
    median_ape: float
    rmspe: float
    bias: float
    total: float
    within_5: float
    within_10: float
    within_20: float

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
            *((size <= limit).mean() for limit in (0.05, 0.1, 0.2)),
        )
        return cls(*(round(100.0 * float(value), 2) for value in values))

    def to_json(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Selection:
    """The estimator chosen, fitted to all rows, and what every candidate scored.

    ``scores`` maps a candidate to its held-out :class:`Score` as plain data, or to
    ``{"refused": reason}`` where it could not be fitted. ``predicted`` maps it to its held-out
    prediction of each row, and ``held_out`` is the chosen one's; ``fold`` says which rows were
    held out together; ``make`` makes the chosen one anew.
    """

    estimator: Estimator
    scores: dict[str, dict[str, Any]]
    rows: int
    groups: int
    folds: int
    make: Callable[[], Estimator]
    fold: NDArray[np.intp]
    predicted: dict[str, FloatArray]
    held_out: FloatArray

    def accuracy(self) -> dict[str, Any]:
        """Plain data for a platform file."""
        return {
            "rows": self.rows,
            "groups": self.groups,
            "folds": self.folds,
            "chosen": self.estimator.name,
            "held_out": self.scores,
        }


def held_out(
    make: Callable[[], Estimator],
    columns: Columns,
    target: FloatArray,
    fold: NDArray[np.intp],
    groups: Sequence[Any] | None = None,
) -> FloatArray:
    """Prediction of each row by an estimator that saw none of its fold.

    Hyper-parameters are chosen anew without each fold, so no held-out row had a say in them.
    """
    predicted = np.zeros(len(target))
    for number in range(int(fold.max()) + 1):
        seen = fold != number
        kept = None if groups is None else [groups[row] for row in np.flatnonzero(seen).tolist()]
        estimator = make().fit(
            {name: each[seen] for name, each in columns.items()}, target[seen], groups=kept
        )
        predicted[~seen] = estimator.predict({name: each[~seen] for name, each in columns.items()})
    return predicted


def select(
    candidates: Mapping[str, Callable[[], Estimator]],
    columns: Columns,
    target: FloatArray,
    groups: Sequence[Any],
    *,
    folds: int | None = None,
    lines: Sequence[int] | None = None,
) -> Selection:
    """Fit every candidate, score each on held-out groups, keep the one with the lowest MAPE.

    Those of :data:`COMPARED` are scored and not kept, unless they are alone.

    One that comes before it and is worse by no more than a standard error of their difference is
    kept instead: the rows cannot tell the two apart, and what is simpler extrapolates better.

    Parameters
    ----------
    candidates
        Makers of unfitted estimators by name, the simplest first.
    columns, target, lines
        As :meth:`~pytest_neuralpower.estimators.base.Estimator.fit` takes them.
    groups
        What must not be on both sides of a split: the layer's shape, batch sizes together.
    folds
        10 by default, 5 of more than :data:`MANY_ROWS` rows.

    Raises
    ------
    FitError
        Bad rows, too few groups, or no candidate could be fitted.
    """
    fold = grouped_folds(groups, folds or (5 if len(target) > MANY_ROWS else 10))
    scores: dict[str, dict[str, Any]] = {}
    fitted: dict[str, Estimator] = {}
    predicted: dict[str, FloatArray] = {}
    for name, make in candidates.items():
        try:
            fitted[name] = make().fit(columns, target, lines=lines, groups=groups)
            predicted[name] = held_out(make, columns, target, fold, groups)
            scores[name] = Score.of(predicted[name], target).to_json()
        except FitError as error:
            scores[name] = {"refused": str(error)}
            fitted.pop(name, None)
    if not fitted:
        raise FitError("; ".join(str(score["refused"]) for score in scores.values()))
    eligible = [name for name in fitted if name not in COMPARED] or list(fitted)
    best = _simplest_of_the_best(
        {name: np.abs(predicted[name] / target - 1.0) for name in eligible}, groups
    )
    if scores[best]["mape"] >= WORST_MAPE:
        raise FitError(
            f"no estimator predicts held-out shapes: {best} errs by {scores[best]['mape']:.0f}% on "
            "average, which is no better than answering 0; measure more configurations"
        )
    return Selection(
        fitted[best],
        scores,
        rows=len(target),
        groups=len(set(groups)),
        folds=int(fold.max()) + 1,
        make=candidates[best],
        fold=fold,
        predicted=predicted,
        held_out=predicted[best],
    )


def _simplest_of_the_best(errors: Mapping[str, FloatArray], groups: Sequence[Any]) -> str:
    """The first whose mean error is within a standard error of the least.

    Parameters
    ----------
    errors
        Held-out relative error of each row by candidate, the simplest first.
    groups
        Of each row: errors of one group are no independent witnesses.
    """
    best = min(errors, key=lambda name: float(errors[name].mean()))
    place = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    member = [place[group] for group in groups]
    for name, error in errors.items():
        worse = error - errors[best]
        # Of a mean over groups of rows (cluster-robust).
        deviations = np.bincount(member, weights=worse - worse.mean())
        if worse.mean() <= np.sqrt((deviations**2).sum()) / len(worse):
            return name
    return best
