"""Spreads: how far held-out rows and networks lay from what was predicted without them.

Residuals are logs of measured over predicted, each row's prediction made without its shape. One
distance per family, up and down alike: with tens of shapes the two tails are not known apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from msgspec.structs import replace

from pytest_neuralpower.calibrate.fit.power import (
    distance_of_unseen_kinds,
    load_networks,
    trace_network,
)
from pytest_neuralpower.calibrate.fit.prior import FARTHEST, places_of, stack_deviation, variogram
from pytest_neuralpower.errors import FitError, ProfileError
from pytest_neuralpower.estimators import Bounded
from pytest_neuralpower.estimators.base import need_extra, some_rows
from pytest_neuralpower.estimators.selection import Score
from pytest_neuralpower.platform.intervals import Intervals, QuantitySpreads, Spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.calibrate.fit.recipe import Recipe
    from pytest_neuralpower.calibrate.fit.rows import NetworkRow, Row
    from pytest_neuralpower.estimators import Prior
    from pytest_neuralpower.estimators.features import Columns, FloatArray
    from pytest_neuralpower.estimators.selection import Selection
    from pytest_neuralpower.layers import Layer
    from pytest_neuralpower.platform.price import FittedPlatform


#: What the intervals are made to hold.
COVERAGE: Final = 0.9

#: Fewer independent errors than this have no 90% quantile: ceil(0.9 (n + 1)) > n.
_LEAST_FOR_QUANTILE: Final = 9

#: 90% of a normal error lie within so many deviations.
_NORMAL: Final = 1.645

#: Share of the groups at each end of the work that tells how far extrapolation is off.
_END: Final = 0.2

#: Rows whose neighbours are looked for, at most.
_MOST_ROWS: Final = 2000

#: Neighbours of a row whose errors are compared with its own.
_NEIGHBOURS: Final = 3

#: Doublings that the common part of errors reaches at least.
_LEAST_REACH: Final = 0.25


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
    correlation, reach = _correlation(residuals, columns, groups)
    return Spread(inside, max(inside, beyond), correlation, correlation, reach)


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


def _correlation(
    residuals: FloatArray, columns: Columns, groups: Sequence[Hashable]
) -> tuple[float, float]:
    """Share of the variance that two layers of one network have in common, and its reach.

    Layers of a network resemble one another more than rows drawn at random. So: the correlation
    (about 0) of each row's residual with those of the nearest rows of other shapes, by operations
    and bytes, plus its standard error, as a correlation that is not seen is not one that is not
    there. It reaches as many doublings as pairs of rows show, and at least to the nearest rows.
    """
    which, count = _numbered(groups)
    places = places_of(columns)
    error = float(1 / np.sqrt(count))
    variance = float((residuals**2).mean())
    if variance <= 0 or count == 1:
        return _rounded(min(error, 1.0)), _LEAST_REACH
    rows = np.arange(0, len(residuals), max(1, len(residuals) // _MOST_ROWS))
    products, nearest = np.empty(len(rows)), np.empty(len(rows))
    for index, row in enumerate(rows.tolist()):
        distance = ((places - places[row]) ** 2).sum(axis=1)
        distance[which == which[row]] = np.inf
        near = np.argsort(distance, kind="stable")[:_NEIGHBOURS]
        products[index] = residuals[row] * residuals[near].mean()
        nearest[index] = np.sqrt(distance[near[0]])
    found = max(float(products.mean()) / variance, 0.0)
    seen = np.maximum(np.nan_to_num(variogram(residuals, places, which)), 0.0)
    # The area under exp(-distance / reach) is its reach.
    reach = float(seen.sum()) / found if found > error else 0.0
    reach = min(max(reach, float(np.median(nearest)), _LEAST_REACH), float(FARTHEST))
    return _rounded(min(found + error, 1.0)), _rounded(reach)


def _numbered(groups: Sequence[Hashable]) -> tuple[NDArray[np.intp], int]:
    index: dict[Hashable, int] = {}
    return np.array([index.setdefault(group, len(index)) for group in groups]), len(index)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def score_spread(distance: float, coverage: Mapping[str, float]) -> dict[str, float]:
    """Plain data of one family's interval, for a platform's accuracy."""
    return {"factor": round(float(np.exp(distance)), 3), **coverage}


# -- A platform's intervals, from its held-out rows and from whole measured networks.
#
# Layers: split-conformal, per family. Calls: what the layers' errors add up to, and what no layer
# knows of, the model error: how far a call is from the sum of its layers. Where whole networks were
# measured in the platform's own mode, it is what their errors show beyond their layers'; with few
# of them Student's t takes the quantile's place. Where none were, it is what one experiment found
# of rows timed in the same way.

#: Mean error, of the whole network, of the sum of its *measured* layers, by how these were timed:
#: the project's experiment on a CPU with 18 networks, at batch 1 and 4. A half-normal error's 90%
#: quantile is 2.06 times its mean.
SUM_OF_LAYERS: Final[Mapping[str, float]] = {"in place": 2.06 * 0.053, "alone": 2.06 * 0.145}

#: Distance of a power model of which nothing measured tells how wrong it is.
_UNKNOWN_POWER: Final = float(np.log(1.5))

#: W; an estimator that predicts no power at all is off by a large factor, not by an infinite one.
_LEAST_POWER: Final = 1e-3


@dataclasses.dataclass(frozen=True, slots=True)
class FamilyFit:
    """One family's rows and what was chosen for them.

    ``power`` (fitted with the measured runtime among its columns) and ``energy`` are None where
    nothing was chosen; at most one of them is there.
    """

    rows: Sequence[Row]
    columns: Columns
    runtime_ms: FloatArray
    runtime: Selection
    power: Selection | None = None
    energy: Selection | None = None

    @property
    def groups(self) -> list[Any]:
        """Shape of each row: what is held out together."""
        return [row.shape_group for row in self.rows]

    def metered(self) -> FamilyFit:
        """The same of the rows whose power is known; what was chosen for it was fitted to these."""
        known = np.flatnonzero([row.power_w is not None for row in self.rows])
        if len(known) == len(self.rows):
            return self
        rows = [self.rows[place] for place in known.tolist()]
        runtime = replace(
            self.runtime,
            rows=len(rows),
            groups=len({row.shape_group for row in rows}),
            fold=self.runtime.fold[known],
            predicted={name: each[known] for name, each in self.runtime.predicted.items()},
            held_out=self.runtime.held_out[known],
        )
        return dataclasses.replace(
            self,
            rows=rows,
            columns=some_rows(self.columns, known),
            runtime_ms=self.runtime_ms[known],
            runtime=runtime,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Fitted:
    """A platform, and by family the rows and the held-out predictions it was chosen by."""

    platform: FittedPlatform
    families: Mapping[str, FamilyFit]


def with_intervals(
    platform: FittedPlatform,
    recipe: Recipe,
    fits: Mapping[str, FamilyFit],
) -> FittedPlatform:
    """The platform with intervals, and with their held-out coverage in its accuracy.

    Parameters
    ----------
    fits
        By family.

    Raises
    ------
    ProfileError
        The recipe's ``totals`` is none of the known.
    """
    totals = _totals(recipe)
    measured, found = _runtime_spreads(fits)
    accuracy: dict[str, object] = {"runtime": found, "totals": totals}
    # Before any network is looked at.
    model_error = round(SUM_OF_LAYERS.get(totals, SUM_OF_LAYERS["alone"]), 4)
    priors = {name: _prior_spread(each.prior) for name, each in platform.inferred.items()}
    intervals = Intervals(COVERAGE, QuantitySpreads(priors | measured, None, model_error))
    power, joint, scores = _power_spreads(fits)
    if power:
        accuracy |= scores
        rows = [row for fit in fits.values() for row in fit.rows]
        unseen = distance_of_unseen_kinds(recipe, rows)
        other = None if unseen is None else Spread(unseen, unseen, 1.0)
        intervals = replace(
            intervals,
            power=QuantitySpreads(power, other),
            energy=QuantitySpreads(joint, None, intervals.runtime.model_error),
        )
    elif platform.power is not None:
        intervals = replace(intervals, power=QuantitySpreads({}, _power_of_networks(platform)))
    if totals == "networks":
        intervals, accuracy["networks"] = _learn_model_error(platform, intervals, recipe)
    return replace(
        platform,
        intervals=intervals,
        accuracy={**platform.accuracy, "intervals": {"coverage": COVERAGE, **accuracy}},
    )


def _totals(recipe: Recipe) -> str:
    """How the model error is known: as the recipe says; by networks where there are any."""
    totals = recipe.totals or ("networks" if recipe.networks else "alone")
    if totals == "networks" and not recipe.networks:
        raise ProfileError(
            f"recipe of {recipe.name}: totals is 'networks', which needs a file of measured "
            f"networks; add it, or write one of {', '.join(SUM_OF_LAYERS)}"
        )
    return totals


# -- layers ----------------------------------------------------------------------------------


def _runtime_spreads(
    fits: Mapping[str, FamilyFit],
) -> tuple[dict[str, Spread], dict[str, dict[str, float]]]:
    spreads, scores = {}, {}
    for name, fit in fits.items():
        residuals = np.log(fit.runtime_ms / fit.runtime.held_out)
        outside, groups = ends(fit.runtime, fit.columns, fit.runtime_ms, fit.groups)
        spreads[name] = family_spread(
            residuals, fit.columns, fit.groups, outside=outside, outside_groups=groups
        )
        coverage = cross_coverage(residuals, fit.groups, fit.runtime.fold)
        scores[name] = score_spread(spreads[name].inside, coverage)
        apart = _between_stacks(fit)
        if apart:
            spreads[name] = _wider(spreads[name], apart)
            scores[name]["stacks_factor"] = round(float(np.exp(apart)), 3)
    return spreads, scores


def _between_stacks(fit: FamilyFit) -> float:
    """Log factor that holds 90% of the differences between stacks, where the rows are of several;
    else 0: a prediction is then of the one that they are of.

    At least what stacks differ by on other devices: two of them here tell little of a third.
    """
    estimator = fit.runtime.estimator
    if not isinstance(estimator, Bounded):
        return 0.0
    stack = np.array([row.stack for row in fit.rows])
    error = np.log(fit.runtime_ms / estimator.prior_ms(fit.columns))
    here = stack_deviation({name: error[stack == name] for name in np.unique(stack).tolist()})
    return 0.0 if here is None else _rounded(_NORMAL * max(here, estimator.prior.stacks))


def _wider(spread: Spread, apart: float) -> Spread:
    """The spread with what stacks differ by, which all layers of the family have in common."""
    shared = spread.correlation * spread.inside**2 + apart**2
    inside = float(np.hypot(spread.inside, apart))
    outside = float(np.hypot(spread.outside, apart))
    correlation = _rounded(min(shared / inside**2, 1.0))
    fading = _rounded(spread.fading * spread.inside**2 / inside**2)
    return Spread(
        _rounded(inside), _rounded(outside), correlation, min(fading, correlation), spread.reach
    )


def _power_spreads(
    fits: Mapping[str, FamilyFit],
) -> tuple[dict[str, Spread], dict[str, Spread], dict[str, dict[str, dict[str, float]]]]:
    """Spreads of power, and of energy from both, of the families whose rows have power."""
    power: dict[str, Spread] = {}
    energy: dict[str, Spread] = {}
    scores: dict[str, dict[str, dict[str, float]]] = {"power": {}, "energy": {}}
    for name, fit in fits.items():
        if fit.power is None and fit.energy is None:
            continue
        fit = fit.metered()  # noqa: PLW2901
        watts = np.array([row.power_w for row in fit.rows], dtype=np.float64)
        # As in use: power from the *predicted* runtime, neither having seen the row's shape.
        late = np.log(fit.runtime_ms / fit.runtime.held_out)
        if fit.energy is not None:
            both = np.log(watts * fit.runtime_ms / fit.energy.held_out)
            off = both - late
        else:
            off = np.log(watts / np.maximum(_held_out_power(fit, watts), _LEAST_POWER))
            both = off + late
        for found, residuals, quantity in ((power, off, "power"), (energy, both, "energy")):
            found[name] = family_spread(residuals, fit.columns, fit.groups, outside=None)
            coverage = cross_coverage(residuals, fit.groups, fit.runtime.fold)
            scores[quantity][name] = score_spread(found[name].inside, coverage)
    return power, energy, scores


def _held_out_power(fit: FamilyFit, watts: FloatArray) -> FloatArray:
    assert fit.power is not None  # the caller has looked
    measured = {**fit.columns, "runtime_ms": fit.runtime_ms}
    predicted = {**fit.columns, "runtime_ms": fit.runtime.held_out}
    found = np.empty(len(watts))
    for number in np.unique(fit.power.fold):
        out = fit.power.fold == number
        estimator = fit.power.make().fit(
            {name: values[~out] for name, values in measured.items()},
            watts[~out],
            groups=[group for group, held in zip(fit.groups, out, strict=True) if not held],
        )
        found[out] = estimator.predict({name: values[out] for name, values in predicted.items()})
    return found


def _prior_spread(prior: Prior) -> Spread:
    """How far layers of a device lie from a prior that has not seen it."""
    shared = prior.correlation
    near = min(shared + prior.fading, 1.0)
    return Spread(prior.distance, prior.distance, near, near - shared, prior.reach)


def _power_of_networks(platform: FittedPlatform) -> Spread:
    """Spread of a power model that knows mean powers of whole networks alone, or other boards'.

    Of a network it is what each was off by when left out. A layer's may be larger, as errors of
    layers average out: at most by the root of the number of layers that share a network's time,
    if they are independent. Of other boards' it is what the worst of them was off by.
    """
    found = platform.accuracy.get("power") or {}
    if "devices" in found:
        distance = float(f"{np.log(found['factor']):.4g}")
        return Spread(distance, distance, found["alike"])
    if not found.get("networks"):
        return Spread(_UNKNOWN_POWER, _UNKNOWN_POWER, 1.0)
    off = [np.log(each["measured_w"] / each["held_out_w"]) for each in found["networks"].values()]
    layers = max(float(found.get("effective_layers", 1.0)), 1.0)
    layer = float(f"{few_distance(np.array(off)) * layers**0.5:.4g}")
    return Spread(layer, layer, float(f"{1 / layers:.4g}"))


# -- calls -----------------------------------------------------------------------------------


def _learn_model_error(
    platform: FittedPlatform, intervals: Intervals, recipe: Recipe
) -> tuple[Intervals, dict[str, dict[str, int]]]:
    """The model error that measured networks show, and how often intervals made without a network
    hold it."""
    networks = load_networks(recipe.folder / recipe.networks)
    measured = {"runtime": np.array([network.paper_ms for network in networks])}
    if intervals.power is not None:
        measured["energy"] = np.array([network.paper_j * 1e3 for network in networks])
    bare = replace(platform, intervals=_with_model_error(intervals, dict.fromkeys(measured, 0.0)))
    errors = [bare.predict(trace_network(network)).errors for network in networks]
    scores = {}
    model_errors = {}
    for quantity, values in measured.items():
        points = np.array([each.amounts(quantity).sum() for each in errors])  # type: ignore[union-attr,arg-type]
        layers = np.array([each.total(quantity)[1] for each in errors])  # type: ignore[union-attr,arg-type]
        off, own = np.log(values / points), np.log(layers / points)
        model_errors[quantity] = _beyond(few_distance(off), own)
        inside = 0
        for index in range(len(networks)):
            rest = np.arange(len(networks)) != index
            without = _beyond(few_distance(off[rest]), own[rest])
            # As a prediction's interval is made of both: LayerErrors.total.
            width = np.log1p(np.hypot(np.expm1(own[index]), np.expm1(without)))
            inside += bool(abs(off[index]) <= width)
        scores[quantity] = {"inside": inside, "networks": len(networks)}
    return _with_model_error(intervals, model_errors), scores


def _beyond(distance: float, layers: FloatArray) -> float:
    """What the networks' errors show beyond what their layers' errors add up to."""
    squared = distance**2 - float((layers**2).mean())
    return float(f"{max(squared, 0.0) ** 0.5:.4g}")


def _with_model_error(intervals: Intervals, model_errors: Mapping[str, float]) -> Intervals:
    intervals = replace(
        intervals, runtime=replace(intervals.runtime, model_error=model_errors["runtime"])
    )
    if "energy" in model_errors:
        energy = intervals.energy or QuantitySpreads({}, None)
        intervals = replace(intervals, energy=replace(energy, model_error=model_errors["energy"]))
    return intervals


# -- Totals of calls, from the whole random networks that a calibration timed with their layers.
#
# A network's time is predicted as the sum of its layers, each by an estimator that saw no layer of
# its shape; what the whole network took tells how far a call is from that sum.

#: Calls whose intervals are made to judge them, at most.
_MOST_CALLS: Final = 200

#: Shares of the rows' correlation that are tried.
_SHARES: Final = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)


def learn_totals(
    platform: FittedPlatform, fits: Mapping[str, FamilyFit], networks: Sequence[NetworkRow]
) -> FittedPlatform:
    """The platform with the error of whole calls that its networks show, and their score."""
    if not networks or platform.intervals is None:
        return platform
    held_out: dict[Row, float] = {
        row: predicted
        for fit in fits.values()
        for row, predicted in zip(fit.rows, fit.runtime.held_out.tolist(), strict=True)
    }
    measured = np.array([network.runtime_ms for network in networks])
    points = np.array([_held_out_ms(platform, network, held_out) for network in networks])
    layers = [[row.layer for row, count in each.layers for _ in range(count)] for each in networks]
    return with_totals(platform, layers, measured, points, range(len(networks)))


def with_totals(
    platform: FittedPlatform,
    calls: Sequence[Sequence[Layer]],
    measured_ms: FloatArray,
    held_out_ms: FloatArray,
    groups: Sequence[Hashable],
    *,
    correlated: bool = True,
) -> FittedPlatform:
    """The platform with the error of whole calls that measured ones show, and their score.

    Parameters
    ----------
    calls
        Layers of each call.
    measured_ms, held_out_ms
        Runtime of each call, and as it was predicted without those of its group.
    groups
        Of each call.
    correlated
        Whether the calls tell how much the errors of layers have in common (default).
    """
    off = np.abs(np.log(measured_ms / held_out_ms))
    which, count = _numbered(groups)
    some = np.arange(0, len(off), max(1, len(off) // _MOST_CALLS))
    calls = [calls[place] for place in some.tolist()]
    if correlated:
        platform = _correlated(platform, calls, off[some])
    platform = _platform_with_error(platform, 0.0)
    own = _layers_parts(platform, calls)
    # Families differ in size as what people run does, so each call counts once.
    whole = _beyond(conformal_distance(off, range(len(off))), own)
    without = np.empty(count)
    for group in range(count):
        rest = off[which != group]
        without[group] = _beyond(conformal_distance(rest, range(len(rest))), own)
    half = np.hypot(own, without[which[some]])
    found: dict[str, object] = {
        "runtime": Score.of(held_out_ms, measured_ms).to_json(),
        "inside": int((off[some] <= half).sum()),
        "networks": len(some),
        "half_width_percent": round(100 * float(np.median(np.expm1(half))), 1),
        "measured_ms": [float(f"{each:.4g}") for each in measured_ms[some]],
        "predicted_ms": [float(f"{each:.4g}") for each in held_out_ms[some]],
    }
    intervals = {**platform.accuracy.get("intervals", {}), "totals": "trials", "trials": found}
    accuracy = {**platform.accuracy, "intervals": intervals}
    return replace(_platform_with_error(platform, whole), accuracy=accuracy)


def with_total_error(platform: FittedPlatform, distance: float) -> FittedPlatform:
    """The platform whose calls are off by ``distance`` (log), however their layers err: it was
    adapted to calls, so what layers of a family have in common is in their factor."""
    if platform.intervals is None:
        return platform
    return _platform_with_error(_with_correlation(platform, 0.0), distance)


def _held_out_ms(
    platform: FittedPlatform, network: NetworkRow, held_out: Mapping[Row, float]
) -> float:
    """Sum of the network's layers, each predicted without its shape where it is of a family that
    is fitted."""
    rest = [row for row, _ in network.layers if row not in held_out]
    others = platform.predict([row.layer for row in rest]).layers if rest else ()
    fallback = {row: each.runtime_ms or 0.0 for row, each in zip(rest, others, strict=True)}
    return sum((held_out.get(row) or fallback[row]) * count for row, count in network.layers)


def _layers_parts(platform: FittedPlatform, calls: Sequence[Sequence[Layer]]) -> FloatArray:
    """Log half-width of each call's interval as its layers' errors alone make it."""
    found = np.empty(len(calls))
    for index, layers in enumerate(calls):
        predicted = platform.predict(layers)
        assert predicted.errors is not None  # the platform has intervals
        total = float(predicted.errors.amounts("runtime").sum())
        found[index] = np.log(predicted.errors.total("runtime")[1] / total)
    return found


def _correlated(
    platform: FittedPlatform, calls: Sequence[Sequence[Layer]], off: FloatArray
) -> FittedPlatform:
    """The platform whose layers' errors have so much in common as its networks' errors show.

    How much rows of one family have in common cannot be told well from the rows: networks of many
    layers tell it. The least share of the rows' correlation is kept with which intervals made of
    layers alone hold their part of the networks; all of it where none does.
    """
    level = min(COVERAGE * (len(off) + 1) / len(off), 1.0)
    for share in _SHARES:
        less = _with_correlation(platform, share)
        if np.mean(off <= _layers_parts(_platform_with_error(less, 0.0), calls)) >= level:
            return less
    return platform


def _with_correlation(platform: FittedPlatform, share: float) -> FittedPlatform:
    assert platform.intervals is not None
    intervals = platform.intervals
    families = {
        name: replace(
            spread,
            correlation=float(f"{spread.correlation * share:.4g}"),
            fading=float(f"{spread.fading * share:.4g}"),
        )
        for name, spread in intervals.runtime.families.items()
    }
    runtime = replace(intervals.runtime, families=families)
    return replace(platform, intervals=replace(intervals, runtime=runtime))


def _platform_with_error(platform: FittedPlatform, whole: float) -> FittedPlatform:
    assert platform.intervals is not None
    model_errors = dict.fromkeys(
        ("runtime", "energy") if platform.intervals.energy else ("runtime",), whole
    )
    return replace(platform, intervals=_with_model_error(platform.intervals, model_errors))
