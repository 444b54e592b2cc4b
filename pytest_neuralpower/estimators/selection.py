"""Select the estimator of a family by grouped cross-validation, against simple baselines."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
from msgspec import Struct, structs

from pytest_neuralpower.errors import FitError
from pytest_neuralpower.estimators.base import Estimator, need_extra
from pytest_neuralpower.estimators.features import FloatArray, IndexArray

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.estimators.features import Columns


#: Fewer groups than this cannot judge anything.
MIN_GROUPS: Final = 3


def grouped_folds(groups: Sequence[Hashable], folds: int) -> NDArray[np.intp]:
    """Fold of each row; all rows of one group share a fold, and folds are about equally large.

    Deterministic: groups go, largest first and then in order of appearance, to the fold that has
    fewest rows.
    """
    members: dict[Hashable, list[int]] = {}
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


def usual_folds(groups: Sequence[Hashable]) -> NDArray[np.intp]:
    """:func:`grouped_folds` of as many folds as estimators are compared with: 10, or 5 of more than
    :data:`MANY_ROWS` rows."""
    return grouped_folds(groups, 5 if len(groups) > MANY_ROWS else 10)


def whole_groups(groups: Sequence[Hashable], most: int) -> NDArray[np.intp]:
    """Rows of whole groups, about ``most`` of them, evenly over the order of appearance.

    Choosing a hyper-parameter needs no more rows than that, and takes time with each. All rows
    where there are no more.
    """
    if len(groups) <= most:
        return np.arange(len(groups))
    order = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    step = len(groups) / most
    kept = {int(place) for place in np.arange(0.0, len(order), step)}
    return np.flatnonzero([order[group] in kept for group in groups])


# -- Baselines: operations alone, and the roofline.
#
# Both are fitted as fairly as the others (a launch and one rate, relative weights, the same folds),
# so that what beats them is knowledge of the layer and not merely a free constant. They are
# compared
# with and never stored in a platform.


class _OneRate(Estimator):
    """``y = launch + rate x work``, both non-negative, least squares on the relative error.

    Attributes
    ----------
    launch_
        ms.
    rate_
        ms per unit of work.
    """

    launch_: float = 0.0
    rate_: float = 0.0

    def _work(self, columns: Columns) -> FloatArray:
        """What one rate prices, shape ``(rows,)``."""
        raise NotImplementedError

    def _fit(self, columns: Columns, target: FloatArray) -> None:
        try:
            from scipy.optimize import nnls  # noqa: PLC0415 - only fitting needs it
        except ImportError:
            raise need_extra("SciPy") from None
        matrix = np.stack([np.ones_like(target), self._work(columns)], axis=1) / target[:, None]
        size = np.linalg.norm(matrix, axis=0)
        size[size == 0] = 1.0  # no operations at all: only the launch is left
        rates, _ = nnls(matrix / size, np.ones(len(target)))
        self.launch_, self.rate_ = (float(f"{rate:.10g}") for rate in rates / size)

    def predict(self, columns: Columns) -> FloatArray:
        return np.asarray(self.launch_ + self.rate_ * self._work(columns))


class FlopsOnly(_OneRate):
    """Runtime from the number of operations alone, as FLOP counters are commonly read.

    ``rate_`` is in ms per GFLOP.
    """

    name: ClassVar[str] = "flops-only"

    def _work(self, columns: Columns) -> FloatArray:
        return columns["flops"] * 1e-9


class Roofline(_OneRate, kw_only=True):
    """The longer of computing at the peak and moving every tensor once, over one efficiency.

    Williams, Waterman, Patterson, "Roofline: An Insightful Visual Performance Model", CACM 2009.
    ``rate_`` is the inverse of the efficiency: ms per ideal ms.

    Parameters
    ----------
    peak_gflops, bandwidth_gbs
        The device's ceilings.
    """

    name: ClassVar[str] = "roofline"

    peak_gflops: float
    bandwidth_gbs: float

    def _work(self, columns: Columns) -> FloatArray:
        compute = columns["flops"] / (self.peak_gflops * 1e6)
        traffic = columns["bytes_moved"] / (self.bandwidth_gbs * 1e6)
        return np.asarray(np.maximum(compute, traffic))


def baseline_makers(hardware: Mapping[str, float]) -> dict[str, Callable[[], Estimator]]:
    """Makers of the unfitted baselines of runtime, by name.

    Parameters
    ----------
    hardware
        ``peak_gflops`` and ``bandwidth_gbs``.
    """
    return {
        FlopsOnly.name: FlopsOnly,
        Roofline.name: lambda: Roofline(
            peak_gflops=float(hardware["peak_gflops"]),
            bandwidth_gbs=float(hardware["bandwidth_gbs"]),
        ),
    }


# -- Selection.

#: More rows than this are held out by fifths: four fifths of them are enough to fit anything, and
#: all candidates on 6,000 rows then take less than a minute.
MANY_ROWS: Final = 1000

#: Scored with the others, and chosen only where nothing else can be fitted: the paper's estimator
#: as it was published, whose polynomials turn negative outside what they were fitted on.
COMPARED: Final = ("neuralpower",)

#: Held-out mean error, %, at which an estimator is as good as none.
WORST_MAPE: Final = 100.0


class Score(Struct, frozen=True):
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
        return structs.asdict(self)


class Selection(Struct, frozen=True, eq=False):
    """The estimator chosen, fitted to all rows, and what every candidate scored.

    ``scores`` maps a candidate to its held-out :class:`Score` as plain data, or to
    ``{"refused": reason}`` where it could not be fitted. ``predicted`` maps it to its held-out
    prediction of each row, and ``held_out`` is the chosen one's; ``fold`` says which rows were
    held out together; ``make`` makes the chosen one again.
    """

    estimator: Estimator
    scores: dict[str, dict[str, Any]]
    rows: int
    groups: int
    folds: int
    make: Callable[[], Estimator]
    fold: IndexArray
    predicted: dict[str, FloatArray]
    held_out: FloatArray

    def accuracy(self) -> dict[str, Any]:
        """Plain data for a platform file."""
        return {
            "rows": self.rows,
            "groups": self.groups,
            "folds": self.folds,
            "chosen": self.estimator.label,
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

    Hyper-parameters are chosen again without each fold, so no held-out row had a say in them.
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

    Raises
    ------
    FitError
        Bad rows, too few groups, or no candidate could be fitted.
    """
    fold = usual_folds(groups)
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
            f"no estimator predicts held-out shapes: {best} is off by {scores[best]['mape']:.0f}% "
            "on average, which is no better than answering 0; measure more configurations"
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
