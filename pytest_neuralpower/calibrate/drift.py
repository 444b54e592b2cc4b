"""Latencies that hold an overhead of their place in the table, which no layer causes.

Some tables were measured in one long process whose overhead grew: every latency is the layer's
plus ``a u + b u**2`` ms, ``u`` being the share of the table above its row. A layer in use has no
place, so the overhead is taken off before a fit; here it is estimated, and what it does to the
held-out errors is told from training folds alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from pytest_neuralpower.estimators.base import need_extra
from pytest_neuralpower.estimators.regimes import assign
from pytest_neuralpower.estimators.selection import Score
from pytest_neuralpower.estimators.terms import evaluate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.calibrate.rows import Row
    from pytest_neuralpower.estimators import Estimator, Physical
    from pytest_neuralpower.estimators.selection import Selection
    from pytest_neuralpower.features import Columns, FloatArray


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
) -> dict[str, Any] | None:
    """Held-out errors of the chosen estimator with the overhead ignored and with it known.

    Each fold is predicted by an estimator, and by an overhead, from the other folds alone.

    Returns
    -------
    dict or None
        ``rows``; ``removed_ms`` of the last row, by the recipe and by each fold; and the scores
        ``ignored`` (fitted and judged as published), ``added`` (judged as published, the overhead
        of the row's place added to the layer's time) and ``removed`` (taken off the judged rows).
        None when no row has a place.
    """
    known = np.array([row.place is not None for row in rows])
    if not known.any() or physical is None:
        return None
    place = np.array([row.place or 0.0 for row in rows])
    published = np.array([row.runtime_ms + row.overhead_ms for row in rows])
    groups = [row.shape_group for row in rows]
    ignored, alone, overhead = (np.zeros(len(rows)) for _ in range(3))
    ends = []
    for number in range(selection.folds):
        seen = selection.fold != number
        without = {name: each[seen] for name, each in columns.items()}
        linear, square = growing_overhead(
            cast("Physical", physical()), without, published[seen], place[seen]
        )
        ends.append(round(linear + square, 4))
        fold_overhead = linear * place + square * place**2
        overhead[~seen] = fold_overhead[~seen]
        for predicted, target in ((ignored, published), (alone, published - fold_overhead)):
            predicted[~seen] = _predicted(selection, columns, target, seen, groups)
    judged = known & (published > overhead)
    scores = {
        "ignored": Score.of(ignored[judged], published[judged]),
        "added": Score.of((alone + overhead)[judged], published[judged]),
        "removed": Score.of(alone[judged], (published - overhead)[judged]),
    }
    last = int(np.argmax(np.where(known, place, -1.0)))
    return {
        "rows": int(judged.sum()),
        "removed_ms": {"recipe": round(rows[last].overhead_ms, 4), "folds": ends},
        "scores": {name: score.to_json() for name, score in scores.items()},
    }


def _predicted(
    selection: Selection,
    columns: Columns,
    target: FloatArray,
    seen: NDArray[np.bool_],
    groups: Sequence[Any],
) -> FloatArray:
    """What the chosen estimator, fitted to the seen rows whose target is positive, says of the
    others."""
    used = np.flatnonzero(seen & (target > 0))
    estimator = selection.make().fit(
        {name: each[used] for name, each in columns.items()},
        target[used],
        groups=[groups[row] for row in used.tolist()],
    )
    return estimator.predict({name: each[~seen] for name, each in columns.items()})
