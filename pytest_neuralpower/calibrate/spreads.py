"""Spreads: how far held-out rows and networks lay from what was predicted without them.

Residuals are logs of measured over predicted, each row's prediction made without its shape. One
distance per family, up and down alike: with tens of shapes the two tails are not known apart.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pytest_neuralpower.errors import FitError
from pytest_neuralpower.estimators.base import need_extra
from pytest_neuralpower.intervals import Spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.estimators.selection import Selection
    from pytest_neuralpower.features import Columns, FloatArray

#: What the intervals are made to hold.
COVERAGE: Final = 0.9

#: Fewer independent errors than this have no 90% quantile: ceil(0.9 (n + 1)) > n.
_LEAST_FOR_QUANTILE: Final = 9

#: Share of the groups at each end of the work that tells how far extrapolation errs.
_END: Final = 0.2

#: Rows whose neighbours are looked for, at most.
_MOST_ROWS: Final = 2000

#: Neighbours of a row whose errors are compared with its own.
_NEIGHBOURS: Final = 3


def conformal_distance(residuals: FloatArray, groups: Sequence[Hashable]) -> float:
    """Log factor that holds 90% of the residuals of a shape that was not seen.

    Rows of one shape are no independent witnesses, so each shape counts once, its rows sharing its
    weight, and the quantile is raised by one unseen shape (Dunn, Wasserman, Ramdas,
    "Distribution-Free Prediction Sets for Two-Layer Hierarchical Models", JASA 2023). Below nine
    shapes that quantile does not exist: Student's t about 0 takes its place.
    """
    which, count = _numbered(groups)
    weight = 1.0 / np.bincount(which)[which]
    size = np.abs(residuals)
    if count < _LEAST_FOR_QUANTILE:
        return few_distance(np.sqrt(np.bincount(which, weight * size**2)))
    level = COVERAGE * (count + 1) / count
    order = np.argsort(size, kind="stable")
    reached = np.cumsum(weight[order]) / count
    place = int(np.searchsorted(reached, level - 1e-12))
    return _rounded(float(size[order][min(place, len(size) - 1)]))


def few_distance(errors: FloatArray) -> float:
    """The same from few independent errors: ``t x root mean square``, n degrees of freedom, as
    a prediction claims that its errors are about 0."""
    try:
        from scipy.stats import t  # noqa: PLC0415 - only fitting needs it
    except ImportError:
        raise need_extra("SciPy") from None
    quantile = float(t.ppf((1 + COVERAGE) / 2, len(errors)))
    return _rounded(quantile * float(np.sqrt((errors**2).mean())))


def cross_coverage(
    residuals: FloatArray, groups: Sequence[Hashable], fold: NDArray[np.intp]
) -> dict[str, float]:
    """Share of the held-out rows inside intervals that were made without their fold.

    Returns
    -------
    dict
        ``shapes_percent``, each shape counting once, which is what the interval promises;
        ``rows_percent``, each row counting once.
    """
    which, _ = _numbered(groups)
    inside = np.zeros(len(residuals))
    for number in np.unique(fold):
        out = fold == number
        distance = conformal_distance(residuals[~out], which[~out].tolist())
        inside[out] = np.abs(residuals[out]) <= distance
    weight = 1.0 / np.bincount(which)[which]
    return {
        "shapes_percent": round(100 * float(np.average(inside, weights=weight)), 1),
        "rows_percent": round(100 * float(inside.mean()), 1),
    }


def family_spread(
    residuals: FloatArray,
    columns: Columns,
    groups: Sequence[Hashable],
    *,
    outside: FloatArray | None,
    outside_groups: Sequence[Hashable] = (),
) -> Spread:
    """Spread of one family from its held-out residuals.

    Parameters
    ----------
    residuals
        Log of measured over predicted, shape ``(rows,)``.
    outside
        Residuals of rows at either end of the work, predicted from the others alone; None where
        that could not be fitted, and twice the distance is taken.
    """
    inside = conformal_distance(residuals, groups)
    beyond = 2 * inside if outside is None else conformal_distance(outside, outside_groups)
    return Spread(inside, max(inside, beyond), _correlation(residuals, columns, groups))


def ends(
    selection: Selection, columns: Columns, target: FloatArray, groups: Sequence[Hashable]
) -> tuple[FloatArray | None, list[Hashable]]:
    """Residuals of the fifth of the shapes with the most work, and of that with the least, each
    predicted by the chosen estimator fitted to all others; and the groups of these rows.

    None where the rest is too little to fit.
    """
    work = columns["flops"] if columns["flops"].any() else columns["bytes_moved"]
    which, count = _numbered(groups)
    mean = np.bincount(which, work) / np.bincount(which)
    size = max(1, round(_END * count))
    order = np.argsort(mean, kind="stable")
    residuals, found = [], []
    for chosen in (order[:size], order[-size:]):
        out = np.isin(which, chosen)
        kept = {name: values[~out] for name, values in columns.items()}
        try:
            estimator = selection.make().fit(
                kept, target[~out], groups=[groups[row] for row in np.flatnonzero(~out).tolist()]
            )
        except FitError:
            return None, []
        predicted = estimator.predict({name: values[out] for name, values in columns.items()})
        residuals.append(np.log(target[out] / predicted))
        found += [groups[row] for row in np.flatnonzero(out).tolist()]
    return np.concatenate(residuals), found


def _correlation(residuals: FloatArray, columns: Columns, groups: Sequence[Hashable]) -> float:
    """Share of the variance that two layers of one network have in common.

    Layers of a network resemble one another more than rows drawn at random. So: the correlation
    (about 0) of each row's residual with those of the nearest rows of other shapes, by operations
    and bytes, plus its standard error, as a correlation that is not seen is not one that is not
    there.
    """
    which, count = _numbered(groups)
    names = ("flops", "bytes_in", "bytes_out", "bytes_weight")
    places = np.log2(np.maximum(np.stack([columns[name] for name in names], axis=1), 1.0))
    rows = np.arange(0, len(residuals), max(1, len(residuals) // _MOST_ROWS))
    products = np.empty(len(rows))
    for index, row in enumerate(rows.tolist()):
        distance = ((places - places[row]) ** 2).sum(axis=1)
        distance[which == which[row]] = np.inf
        near = np.argsort(distance, kind="stable")[:_NEIGHBOURS]
        products[index] = residuals[row] * residuals[near].mean()
    variance = float((residuals**2).mean())
    found = max(float(products.mean()) / variance, 0.0) if variance > 0 else 0.0
    return _rounded(min(found + float(1 / np.sqrt(count)), 1.0))


def _numbered(groups: Sequence[Hashable]) -> tuple[NDArray[np.intp], int]:
    index: dict[Hashable, int] = {}
    return np.array([index.setdefault(group, len(index)) for group in groups]), len(index)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def score_spread(distance: float, coverage: Mapping[str, float]) -> dict[str, Any]:
    """Plain data of one family's interval, for a platform's accuracy."""
    return {"factor": round(float(np.exp(distance)), 3), **coverage}
