"""A platform's intervals, from its held-out rows and from whole measured networks.

Layers: split-conformal, per family. Calls: what the layers' errors add up to, and what no layer
knows of, the *whole*: how far a call is from the sum of its layers. Where whole networks were
measured in the platform's own mode, it is what their errors show beyond their layers'; with few of
them Student's t takes the quantile's place. Where none were, it is what one experiment found of
rows timed in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pytest_neuralpower.calibrate.network_power import load_networks, trace_network
from pytest_neuralpower.calibrate.spreads import (
    COVERAGE,
    conformal_distance,
    cross_coverage,
    ends,
    family_spread,
    few_distance,
    score_spread,
)
from pytest_neuralpower.errors import ProfileError
from pytest_neuralpower.intervals import Intervals, QuantitySpreads, Spread

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.recipe import Recipe
    from pytest_neuralpower.calibrate.rows import Row
    from pytest_neuralpower.estimators.selection import Selection
    from pytest_neuralpower.features import Columns, FloatArray
    from pytest_neuralpower.platform import Fallback, Platform

#: Mean error, of the whole network, of the sum of its *measured* layers, by how these were timed:
#: the project's experiment on a CPU with 18 networks, at batch 1 and 4. A half-normal error's 90%
#: quantile is 2.06 times its mean.
SUM_OF_LAYERS: Final[Mapping[str, float]] = {"in place": 2.06 * 0.053, "alone": 2.06 * 0.145}

#: Least distance of a power model that was not learnt on the device itself.
TRANSFERRED: Final = float(np.log(1.5))

#: W; an estimator that predicts no power at all is off by a large factor, not by an infinite one.
_LEAST_POWER: Final = 1e-3

_FOREIGN_TIERS: Final = ("transferred", "datasheet")


@dataclass(frozen=True, slots=True)
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


def with_intervals(
    platform: Platform,
    recipe: Recipe,
    fits: Mapping[str, FamilyFit],
    left_out: Mapping[str, Fallback],
) -> Platform:
    """The platform with intervals, and with their held-out coverage in its accuracy.

    Parameters
    ----------
    fits
        By family.
    left_out
        By family, the fallback that the other families' rows give.

    Raises
    ------
    ProfileError
        The recipe's ``totals`` is none of the known.
    """
    runtime, found = _runtime_spreads(fits)
    accuracy: dict[str, Any] = {"runtime": found, "totals": _totals(recipe)}
    intervals = Intervals(
        COVERAGE, QuantitySpreads(runtime, _fallback_spread(fits, left_out), _whole(recipe))
    )
    power, joint, scores = _power_spreads(fits)
    if power:
        accuracy |= scores
        intervals = replace(
            intervals,
            power=QuantitySpreads(power, None),
            energy=QuantitySpreads(joint, None, intervals.runtime.whole),
        )
    elif platform.power is not None:
        intervals = replace(intervals, power=QuantitySpreads({}, _power_of_networks(platform)))
    if _totals(recipe) == "networks":
        intervals, accuracy["networks"] = _learn_whole(platform, intervals, recipe)
    return replace(
        platform,
        intervals=intervals,
        accuracy={**platform.accuracy, "intervals": {"coverage": COVERAGE, **accuracy}},
    )


def _totals(recipe: Recipe) -> str:
    """How the whole is known: as the recipe says; by networks where there are any."""
    known = (*SUM_OF_LAYERS, "networks")
    totals = recipe.totals or ("networks" if recipe.networks else "alone")
    if totals not in known or (totals == "networks" and not recipe.networks):
        raise ProfileError(
            f"recipe of {recipe.name}: totals is {totals!r}; write one of {', '.join(known)} "
            "(the last needs a file of measured networks)"
        )
    return totals


def _whole(recipe: Recipe) -> float:
    """Distance of the whole before any network is looked at."""
    return round(SUM_OF_LAYERS.get(_totals(recipe), SUM_OF_LAYERS["alone"]), 4)


# -- layers ----------------------------------------------------------------------------------


def _runtime_spreads(
    fits: Mapping[str, FamilyFit],
) -> tuple[dict[str, Spread], dict[str, Any]]:
    spreads, scores = {}, {}
    for name, fit in fits.items():
        residuals = np.log(fit.runtime_ms / fit.runtime.held_out)
        outside, groups = ends(fit.runtime, fit.columns, fit.runtime_ms, fit.groups)
        spreads[name] = family_spread(
            residuals, fit.columns, fit.groups, outside=outside, outside_groups=groups
        )
        coverage = cross_coverage(residuals, fit.groups, fit.runtime.fold)
        scores[name] = score_spread(spreads[name].inside, coverage)
    return spreads, scores


def _power_spreads(
    fits: Mapping[str, FamilyFit],
) -> tuple[dict[str, Spread], dict[str, Spread], dict[str, Any]]:
    """Spreads of power, and of energy from both, of the families whose rows have power."""
    power: dict[str, Spread] = {}
    energy: dict[str, Spread] = {}
    scores: dict[str, dict[str, Any]] = {"power": {}, "energy": {}}
    for name, fit in fits.items():
        if fit.power is None and fit.energy is None:
            continue
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


def _fallback_spread(
    fits: Mapping[str, FamilyFit], left_out: Mapping[str, Fallback]
) -> Spread | None:
    """How far the fallback is off for a family it has not seen: each family in turn."""
    if len(fits) < 2:
        return None
    residuals, groups = [], []
    for name, fit in fits.items():
        predicted = np.maximum(left_out[name].predict(fit.columns), left_out[name].floor_ms)
        residuals.append(np.log(fit.runtime_ms / predicted))
        groups += [name] * len(predicted)
    distance = conformal_distance(np.concatenate(residuals), groups)
    return Spread(distance, distance, 1.0)  # one wrong rate: off for all layers alike


def _power_of_networks(platform: Platform) -> Spread:
    """Spread of a power model that knows mean powers of whole networks alone.

    Of a network it is what each was off by when left out. A layer's may be larger, as errors of
    layers average out: at most by the root of the number of layers that share a network's time,
    if they are independent. Power from another device is never surer than a factor of 1.5.
    """
    found = platform.accuracy.get("power") or {}
    least = TRANSFERRED if platform.tiers.get("power") in _FOREIGN_TIERS else 0.0
    if not found.get("networks"):
        return Spread(max(least, TRANSFERRED), max(least, TRANSFERRED), 1.0)
    off = [np.log(each["measured_w"] / each["held_out_w"]) for each in found["networks"].values()]
    network = max(few_distance(np.array(off)), least)
    layers = max(float(found.get("effective_layers", 1.0)), 1.0)
    layer = float(f"{network * layers**0.5:.4g}")
    return Spread(layer, layer, float(f"{1 / layers:.4g}"))


# -- calls -----------------------------------------------------------------------------------


def _learn_whole(
    platform: Platform, intervals: Intervals, recipe: Recipe
) -> tuple[Intervals, dict[str, Any]]:
    """The whole from measured networks, and how often intervals made without a network hold it."""
    networks = load_networks(recipe.folder / recipe.networks)
    traced = [trace_network(network) for network in networks]
    measured = {"runtime": np.array([network.paper_ms for network in networks])}
    if intervals.power is not None:
        measured["energy"] = np.array([network.paper_j * 1e3 for network in networks])
    bare = replace(platform, intervals=_with_whole(intervals, dict.fromkeys(measured, 0.0)))
    predicted = [bare.predict(trace) for trace in traced]
    scores: dict[str, Any] = {}
    wholes: dict[str, float] = {}
    errors: dict[str, tuple[FloatArray, FloatArray]] = {}
    for quantity, values in measured.items():
        points = np.array([each.errors.amounts(quantity).sum() for each in predicted])  # type: ignore[union-attr,arg-type]
        layers = np.array([each.errors.total(quantity)[1] for each in predicted])  # type: ignore[union-attr,arg-type]
        errors[quantity] = np.log(values / points), np.log(layers / points)
        wholes[quantity] = _beyond(*errors[quantity])
    for quantity, values in measured.items():
        inside = 0
        for index, trace in enumerate(traced):
            rest = np.arange(len(networks)) != index
            without = {name: _beyond(off[rest], own[rest]) for name, (off, own) in errors.items()}
            alone = replace(platform, intervals=_with_whole(intervals, without)).predict(trace)
            low, high = alone.errors.total(quantity)  # type: ignore[union-attr,arg-type]
            inside += bool(low <= values[index] <= high)
        scores[quantity] = {"inside": inside, "networks": len(networks)}
    return _with_whole(intervals, wholes), scores


def _beyond(off: FloatArray, layers: FloatArray) -> float:
    """What the networks' errors show beyond what their layers' errors add up to."""
    squared = few_distance(off) ** 2 - float((layers**2).mean())
    return float(f"{max(squared, 0.0) ** 0.5:.4g}")


def _with_whole(intervals: Intervals, wholes: Mapping[str, float]) -> Intervals:
    intervals = replace(intervals, runtime=replace(intervals.runtime, whole=wholes["runtime"]))
    if "energy" in wholes:
        energy = intervals.energy or QuantitySpreads({}, None)
        intervals = replace(intervals, energy=replace(energy, whole=wholes["energy"]))
    return intervals
