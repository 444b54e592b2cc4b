"""What a family of layers must pass before it ships: its baselines, and rows set apart for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
import numpy as np

from pytest_neuralpower.errors import FitError
from pytest_neuralpower.estimators.base import need_extra
from pytest_neuralpower.estimators.selection import (
    Score,
    Selection,
    baseline_makers,
    held_out,
    select,
)
from pytest_neuralpower.estimators.terms import assign, evaluate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.calibrate.fit.designs import Makers
    from pytest_neuralpower.calibrate.fit.rows import Row
    from pytest_neuralpower.estimators import Estimator, Physical
    from pytest_neuralpower.estimators.features import Columns, FloatArray

#: Held-out MAPE (%) under which a tie with the roofline is as good as beating it: tensors that are
#: only streamed take what the roofline says, and no knowledge could add to that.
EXACT: Final = 1.0


class Refused(msgspec.Struct, frozen=True):
    """Why a candidate could not be fitted."""

    refused: str


#: Held-out error by candidate or baseline.
Scores = Mapping[str, Score | Refused]


class Split(msgspec.Struct, frozen=True):
    """Errors on the rows that a source was set apart for, of estimators that saw none of them.

    Attributes
    ----------
    trained, judged
        Numbers of rows.
    chosen
        The candidate that wins on the other rows alone.
    scores
        Of every candidate.
    """

    trained: int
    judged: int
    chosen: str
    scores: Scores


class Removed(msgspec.Struct, frozen=True):
    """Overhead of the last row, ms: as the recipe takes it off, and as each fold estimates it."""

    recipe: float
    folds: list[float]


class Overhead(msgspec.Struct, frozen=True):
    """Held-out errors of the chosen estimator with the overhead ignored and with it known.

    Attributes
    ----------
    rows
        Rows judged.
    removed_ms
        What was taken off the last row.
    scores
        ``ignored`` (fitted and judged as published), ``added`` (judged as published, the overhead
        of the row's place added to the layer's time) and ``removed`` (taken off the judged rows).
    """

    rows: int
    removed_ms: Removed
    scores: Mapping[str, Score]


class FamilyAccuracy(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of one family's estimator, as a platform file keeps it.

    Attributes
    ----------
    rows, groups, folds, chosen, held_out
        As :meth:`~pytest_neuralpower.estimators.selection.Selection.accuracy` has them.
    baselines
        Their scores on the same held-out shapes.
    split, overhead
        None where no row is set apart, or has a place in its table.
    held_out_by
        Columns in which rows agree that are held out together; empty for the layer's shape.
    """

    rows: int
    groups: int
    folds: int
    chosen: str
    held_out: Mapping[str, Mapping[str, Any]]
    baselines: Scores
    split: Split | None = None
    overhead: Overhead | None = None
    held_out_by: tuple[str, ...] = ()

    def is_kept(self, *, alone: str = "") -> bool:
        """Whether the estimator beats its baselines, or the one named: of a device measured on the
        spot, the one that would price the family instead."""
        rivals = {alone: self.baselines[alone]} if alone else self.baselines
        return beats(self.held_out[self.chosen]["mape"], rivals)


def beats(mape: float, baselines: Scores) -> bool:
    """Whether an estimator's held-out MAPE (%) is below that of every baseline that could be
    fitted: what does not beat counting operations or the roofline is not worth shipping."""
    margin = 0.05 if mape < EXACT else 0.0
    return all(
        mape < score.mape + margin for score in baselines.values() if isinstance(score, Score)
    )


def scored(predict: Callable[[], FloatArray], measured: FloatArray) -> Score | Refused:
    """The score of what ``predict`` answers, or why it could not be fitted."""
    try:
        return Score.of(predict(), measured)
    except FitError as error:
        return Refused(str(error))


def baseline_scores(
    columns: Columns,
    target: FloatArray,
    fold: NDArray[np.intp],
    hardware: Mapping[str, float],
) -> dict[str, Score | Refused]:
    """What operations alone and the roofline score on the same held-out shapes.

    Both take what they predict to be one rate times the work, energy and time alike.
    """
    return {
        name: scored(lambda make=make: held_out(make, columns, target, fold), target)  # type: ignore[misc]
        for name, make in baseline_makers(hardware).items()
    }


def judge_split(
    rows: Sequence[Row], values: Columns, runtime: FloatArray, makers: Makers
) -> Split | None:
    """Errors on the rows set apart; None when no row is, or all are.

    The candidates compete on the other rows alone; the one that wins there is what is judged,
    whatever the others score here.

    Raises
    ------
    FitError
        The other rows cannot be fitted.
    """
    apart = np.array([row.judges for row in rows])
    if not apart.any() or apart.all():
        return None
    seen = {name: column[~apart] for name, column in values.items()}
    unseen = {name: column[apart] for name, column in values.items()}
    groups = [row.shape_group for row in rows if not row.judges]
    chosen = select(makers, seen, runtime[~apart], groups)

    def predicted(make: Callable[[], Estimator]) -> FloatArray:
        return make().fit(seen, runtime[~apart], groups=groups).predict(unseen)

    scores = {
        name: scored(lambda make=make: predicted(make), runtime[apart])  # type: ignore[misc]
        for name, make in makers.items()
    }
    return Split(int((~apart).sum()), int(apart.sum()), chosen.estimator.label, scores)


# -- Latencies that hold an overhead of their place in the table, which no layer causes.
#
# Some tables were measured in one long process whose overhead grew: every latency is the layer's
# plus ``a u + b u**2`` ms, ``u`` being the share of the table above its row. A layer in use has no
# place, so the overhead is taken off before a fit; here it is estimated, and what it does to the
# held-out errors is told from training folds alone.


def growing_overhead(
    physical: Physical, columns: Columns, published_ms: FloatArray, place: FloatArray
) -> tuple[float, float]:
    """The overhead's ``(a, b)`` in ms, fitted together with the layers' own cost.

    Non-negative least squares, weighted 1/y, on the regimes' terms, ``u`` and ``u**2``. Rows in
    random order share nothing with their place, so what ``u`` explains is not the layers'.

    Parameters
    ----------
    physical
        Says which terms price which rows; need not be fitted.
    columns, published_ms, place
        Of the rows: their columns, latencies in ms with the overhead, and ``u``; shape ``(rows,)``.
    """
    try:
        from scipy.optimize import nnls  # noqa: PLC0415 - only fitting needs it
    except ImportError:
        raise need_extra("SciPy") from None
    chosen = assign(physical.regimes, columns)
    parts = [
        np.where(chosen == index, evaluate(term, columns, physical.multiprocessors), 0.0)
        for index, regime in enumerate(physical.regimes)
        for term in regime.terms
        if (chosen == index).any()
    ]
    matrix = np.stack([*parts, place, place**2], axis=1) / published_ms[:, None]
    size = np.maximum(np.linalg.norm(matrix, axis=0), 1e-30)
    rates, _ = nnls(matrix / size, np.ones(len(published_ms)))
    linear, square = (rates / size)[-2:]
    return float(f"{linear:.4g}"), float(f"{square:.4g}")


def judge_overhead(
    rows: Sequence[Row],
    columns: Columns,
    selection: Selection,
    physical: Callable[[], Estimator] | None,
) -> Overhead | None:
    """Each fold is predicted by an estimator, and by an overhead, from the other folds alone.

    None when no row has a place.
    """
    known = np.array([row.place is not None for row in rows])
    if not known.any() or physical is None:
        return None
    place = np.array([row.place or 0.0 for row in rows])
    published = np.array([row.runtime_ms + row.overhead_ms for row in rows])
    groups = [row.shape_group for row in rows]
    ignored, alone, overhead = (np.zeros(len(rows)) for _ in range(3))
    folds = []
    for number in range(selection.folds):
        seen = selection.fold != number
        without, unseen = (
            {name: column[mask] for name, column in columns.items()} for mask in (seen, ~seen)
        )
        linear, square = growing_overhead(
            cast("Physical", physical()), without, published[seen], place[seen]
        )
        folds.append(round(linear + square, 4))
        grown = linear * place + square * place**2
        overhead[~seen] = grown[~seen]
        for predicted, target in ((ignored, published), (alone, published - grown)):
            used = np.flatnonzero(seen & (target > 0))
            estimator = selection.make().fit(
                {name: column[used] for name, column in columns.items()},
                target[used],
                groups=[groups[row] for row in used.tolist()],
            )
            predicted[~seen] = estimator.predict(unseen)
    judged = known & (published > overhead)
    first, last = int(np.argmin(np.where(known, place, 2.0))), int(np.argmax(place))
    grown_ms = rows[last].overhead_ms - rows[first].overhead_ms
    return Overhead(
        int(judged.sum()),
        Removed(round(grown_ms, 4), folds),
        {
            "ignored": Score.of(ignored[judged], published[judged]),
            "added": Score.of((alone + overhead)[judged], published[judged]),
            "removed": Score.of(alone[judged], (published - overhead)[judged]),
        },
    )
