"""Power of a platform: of each kind of layer, of whole networks or readings, transferred, or given.

Whole measured networks judge a platform's runtime, which is never fitted to them; their mean power
is, where no layer's power was measured.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec.structs import replace

from pytest_neuralpower.calibrate.fit.designs import (
    Design,
    power_makers,
    runtime_makers,
    utilization_model,
)
from pytest_neuralpower.calibrate.fit.rows import Row
from pytest_neuralpower.errors import FitError, ProfileError
from pytest_neuralpower.estimators import Utilization
from pytest_neuralpower.estimators.base import some_rows
from pytest_neuralpower.estimators.features import columns, family, is_float8
from pytest_neuralpower.estimators.physics import Ceilings
from pytest_neuralpower.estimators.selection import (
    Score,
    Selection,
    grouped_folds,
    select,
)

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.fit.recipe import Power, Recipe
    from pytest_neuralpower.calibrate.fit.rows import NetworkRow
    from pytest_neuralpower.estimators.features import Columns, FloatArray
    from pytest_neuralpower.layers import Layer, Trace
    from pytest_neuralpower.platform.prediction import Prediction
    from pytest_neuralpower.platform.price import FittedPlatform


def fit_power(
    platform: FittedPlatform,
    recipe: Recipe,
    fit_other: Callable[[Path], FittedPlatform],
    *,
    transfer: Callable[[FittedPlatform], FittedPlatform] | None = None,
    rows: Sequence[Row] = (),
    networks: Sequence[NetworkRow] = (),
) -> FittedPlatform:
    """The platform with power for whatever has none of its own: as the recipe says, by its own rows
    that have power, or by other boards that were metered.

    Parameters
    ----------
    fit_other
        Fits the calibration folder whose power model is taken.
    transfer
        Gives a GPU the power that other boards draw; by default none is.
    rows
        Measured rows of the platform, with power or without.
    networks
        Whole networks of a calibration, whose readings teach power where the recipe says nothing.

    Raises
    ------
    FitError
        The power terms do not suit the networks, or no row with power is long enough.
    ProfileError
        A recipe, its rows or the networks cannot be read.
    """
    if recipe.power is not None:
        return _as_recipe_says(platform, recipe, recipe.power, fit_other)
    if networks:
        return metered_power(platform, networks)
    if _rests(recipe):
        if any(row.power_w is not None for row in rows):
            return _of_rows(platform, recipe, rows)
        if transfer is not None and Ceilings.of(recipe.hardware).gpu:
            return transfer(platform)
    return platform


def _rests(recipe: Recipe) -> bool:
    """Whether what its device draws at rest and at most is known, and no recipe says more."""
    known = {"idle_w", "limit_w"} <= set(recipe.hardware)
    return recipe.power is None and not recipe.plan and known


def _as_recipe_says(
    platform: FittedPlatform,
    recipe: Recipe,
    power: Power,
    fit_other: Callable[[Path], FittedPlatform],
) -> FittedPlatform:
    if power.watts is not None:
        return constant_power(platform, recipe)
    if power.other:
        other = fit_other(recipe.folder.parent / power.other)
        return _with_power(platform, other.power, other.accuracy.get("power"))
    return _of_networks(platform, recipe, power) if power.networks else platform


def _with_power(
    platform: FittedPlatform, model: Utilization | None, accuracy: object
) -> FittedPlatform:
    known = msgspec.to_builtins(accuracy)
    return replace(platform, power=model, accuracy={**platform.accuracy, "power": known})


# -- Power that follows the utilization of compute and of bandwidth, by networks or by readings.


class NetworkPower(msgspec.Struct, frozen=True):
    """Mean power of a network or reading, W: measured, predicted without it, and with it."""

    measured_w: float
    held_out_w: float
    fitted_w: float


class FittedPower(msgspec.Struct, frozen=True):
    """Errors of one model of power; ``effective_layers`` is the number of equally long layers over
    which errors average out in a network, ``mean_of_the_others`` the score of no model at all."""

    free_parameters: int
    effective_layers: float
    leave_one_network_out: Score
    fitted: Score
    mean_of_the_others: Score
    networks: Mapping[str, NetworkPower]


def _fit_utilization(
    model: Utilization,
    shares: Sequence[tuple[float, float]],
    watts: Mapping[str, float],
    predict: Callable[[int], float],
    *,
    layers: float = 1.0,
    groups: Sequence[Hashable] = (),
) -> FittedPower:
    """Fit the model, after each network or reading was left out in turn, or each group of them.

    Parameters
    ----------
    shares
        Mean share of compute and of bandwidth of each.
    watts
        Its measured power by name.
    predict
        Power of the one at an index by the model as it is.
    layers
        ``effective_layers``.
    groups
        Of each; by default each is one.
    """
    measured = np.array(list(watts.values()), dtype=np.float64)
    compute, traffic = (np.array(each) for each in zip(*shares, strict=True))
    alone = np.empty(len(measured))
    members: dict[Hashable, list[int]] = {}
    for index in range(len(measured)):
        members.setdefault(groups[index] if groups else index, []).append(index)
    for left_out in members.values():
        rest = np.delete(np.arange(len(measured)), left_out)
        model.fit_utilization(compute[rest], traffic[rest], measured[rest])
        alone[left_out] = [predict(index) for index in left_out]
    model.fit_utilization(compute, traffic, measured)
    fitted = np.array([predict(index) for index in range(len(measured))])
    mean = (measured.sum() - measured) / (len(measured) - 1)
    return FittedPower(
        len(model.load_) - len(model.fixed),
        layers,
        Score.of(alone, measured),
        Score.of(fitted, measured),
        Score.of(mean, measured),
        {
            name: NetworkPower(round(known, 2), round(float(held), 2), round(float(fit), 2))
            for (name, known), held, fit in zip(watts.items(), alone, fitted, strict=True)
        },
    )


def _of_networks(platform: FittedPlatform, recipe: Recipe, power: Power) -> FittedPlatform:
    """Power fitted to the mean power of whole networks, each weighted by its predicted time."""
    networks = load_networks(recipe.folder / str(power.networks))
    fixed = {name.removesuffix("_w"): watts for name, watts in power.fixed.items()}
    model = utilization_model(recipe.hardware, fixed=fixed)
    traced = [trace_network(network) for network in networks]
    timed = [platform.predict(trace).layers for trace in traced]
    times = [np.array([layer.runtime_ms for layer in layers]) for layers in timed]
    layers = [float(time.sum() ** 2 / (time**2).sum()) for time in times]
    accuracy = _fit_utilization(
        model,
        [_predicted_utilization(platform, model, each) for each in timed],
        {network.name: network.paper_w for network in networks},
        lambda index: _network_power(replace(platform, power=model), traced[index]),
        layers=round(float(np.mean(layers)), 2),
    )
    return _with_power(platform, model, accuracy)


def power_of_calls(
    platform: FittedPlatform,
    calls: Sequence[Sequence[Layer]],
    watts: Sequence[float | None],
    groups: Sequence[Hashable],
) -> FittedPlatform:
    """The platform with power by the mean power of whole calls, where enough were metered.

    Parameters
    ----------
    calls
        Layers of each.
    watts
        Its measured power; None of a call that was not metered.
    groups
        What is left out together to judge it.
    """
    metered = [place for place, known in enumerate(watts) if known]
    if len(metered) < _LEAST:
        return platform
    model = utilization_model(platform.hardware)
    shares = [
        _predicted_utilization(platform, model, platform.predict(calls[place]).layers)
        for place in metered
    ]

    def predict(index: int) -> float:
        compute, traffic = np.array([shares[index]]).T
        return float(model.predict_utilization(compute, traffic)[0])

    known = {f"call {place + 1}": watts[place] or 0.0 for place in metered}
    accuracy = _fit_utilization(
        model, shares, known, predict, groups=[groups[place] for place in metered]
    )
    return _with_power(platform, model, accuracy)


def _predicted_utilization(
    platform: FittedPlatform, model: Utilization, layers: Sequence[Any]
) -> tuple[float, float]:
    """Mean share of compute and of bandwidth of a call, weighted by its layers' predicted time."""
    groups: dict[str, list[Any]] = {}
    for layer in layers:
        groups.setdefault(family(layer.layer), []).append(layer)
    times, shares = [], []
    for name, members in groups.items():
        times.append(np.array([layer.runtime_ms for layer in members]))
        values = columns(name, [layer.layer for layer in members])
        known = platform.families.get(name)
        seen = (
            known.power_columns(values, times[-1]) if known else {**values, "runtime_ms": times[-1]}
        )
        shares.append(model.utilization(seen))
    weights = np.concatenate(times)
    compute, traffic = (np.concatenate(each) for each in zip(*shares, strict=True))
    return float(np.average(compute, weights=weights)), float(np.average(traffic, weights=weights))


#: Readings for three terms, at least; fewer come of a calibration of less than a minute.
_LEAST: Final = 6


def metered_power(platform: FittedPlatform, networks: Sequence[NetworkRow]) -> FittedPlatform:
    """The platform with one power model of all kinds of layers, from the layers and networks that
    ran alone under its meter; none is claimed of too few readings.

    A reading takes seconds, so there are tens of them: too few for an estimator of each kind. The
    accuracy has each reading's error by a model that was fitted without it.
    """
    model = utilization_model(platform.hardware)
    watts: dict[str, float] = {}
    shares = []
    for network in networks:
        for number, (row, _) in enumerate(network.layers):
            if row.power_w is not None and not row.flaw:
                watts[f"{network.network}.{number} {row.layer.op}"] = row.power_w
                shares.append(_measured_utilization(model, [(row, 1)]))
        if network.power_w is not None:
            watts[network.network] = network.power_w
            shares.append(_measured_utilization(model, network.layers))
    if len(shares) < _LEAST:
        tiers = {quantity: tier for quantity, tier in platform.tiers.items() if quantity != "power"}
        return replace(platform, tiers=tiers)

    def predict(index: int) -> float:
        compute, traffic = np.array([shares[index]]).T
        return float(model.predict_utilization(compute, traffic)[0])

    return _with_power(platform, model, _fit_utilization(model, shares, watts, predict))


def _measured_utilization(
    model: Utilization, layers: Sequence[tuple[Row, int]]
) -> tuple[float, float]:
    """Mean share of compute and of bandwidth over the layers' measured time."""
    total = compute = traffic = 0.0
    for row, count in layers:
        values = columns(family(row.layer), [row.layer])
        first, second = model.utilization({**values, "runtime_ms": np.array([row.runtime_ms])})
        time = row.runtime_ms * count
        total += time
        compute += time * float(first[0])
        traffic += time * float(second[0])
    return compute / total, traffic / total


# -- Power of kinds without rows, on a device whose other rows have it.
#
# How far its power rises from idle towards its limit is taken to depend on the shares of its peak
# compute and of its bandwidth that a layer achieves, and on nothing else.

_FOLDS: Final = 5

#: Shorter rows say more of the pauses between kernels than of the kernels.
_LEAST_MS: Final = 0.02


class PowerOfRows(msgspec.Struct, frozen=True):
    """Error of one model for the rows of all kinds, held out by shape."""

    rows: int
    free_parameters: int
    held_out_rows: Score


def _of_rows(platform: FittedPlatform, recipe: Recipe, rows: Sequence[Row]) -> FittedPlatform:
    tables = _metered(rows)
    if not tables:
        raise FitError(f"{recipe.name}: no row with power lasts {_LEAST_MS:g} ms or more")
    values, watts = _joined(tables.values())
    groups = [row.shape_group for members, _ in tables.values() for row in members]
    fold = grouped_folds(groups, _FOLDS)
    predicted = np.empty(len(watts))
    for number in range(int(fold.max()) + 1):
        out = fold == number
        model = _taught(recipe, some_rows(values, ~out), watts[~out])
        predicted[out] = model.predict(some_rows(values, out))
    model = _taught(recipe, values, watts)
    score = Score.of(predicted, watts)
    return _with_power(platform, model, PowerOfRows(len(watts), len(model.load_), score))


def _metered(rows: Iterable[Row]) -> dict[str, tuple[list[Row], Columns]]:
    """By family, rows with power that are long enough, and what tells how busy they keep it."""
    by_family: dict[str, list[Row]] = {}
    for row in rows:
        metered = row.power_w is not None and row.runtime_ms >= _LEAST_MS
        if metered and not is_float8(row.layer):  # shares are of the peak in the recipe's dtype
            by_family.setdefault(family(row.layer), []).append(row)
    found: dict[str, tuple[list[Row], Columns]] = {}
    for name, members in by_family.items():
        table = columns(name, [row.layer for row in members])
        found[name] = (
            members,
            {
                "flops": table.get("scored_flops", table["flops"]),
                "bytes_moved": table["bytes_moved"],
                "runtime_ms": np.array([row.runtime_ms for row in members]),
            },
        )
    return found


def _joined(
    tables: Iterable[tuple[Sequence[Row], Columns]],
) -> tuple[dict[str, FloatArray], FloatArray]:
    """Columns and power (W) of the rows of several families."""
    parts = list(tables)
    names = parts[0][1]
    values = {name: np.concatenate([each[name] for _, each in parts]) for name in names}
    watts = [row.power_w for members, _ in parts for row in members]
    return values, np.array(watts, dtype=np.float64)


def _taught(recipe: Recipe, seen: Columns, power_w: FloatArray) -> Utilization:
    model = utilization_model(recipe.hardware, idle_w=float(recipe.hardware["idle_w"]))
    # Not `fit`, which refuses a constant: a package may draw the same whatever it does.
    return model.fit_utilization(*model.utilization(seen), power_w)


def distance_of_unseen_kinds(recipe: Recipe, rows: Sequence[Row]) -> float | None:
    """Log factor that holds 90% of the power of a kind of layer that taught nothing of it: of the
    worst kind, each left out in turn; None with fewer than two kinds, or power from elsewhere."""
    tables = _metered(rows)
    if not _rests(recipe) or len(tables) < 2:
        return None
    found = []
    for name, table in tables.items():
        model = _taught(recipe, *_joined(each for other, each in tables.items() if other != name))
        seen, watts = _joined([table])
        found.append(float(np.quantile(np.abs(np.log(watts / model.predict(seen))), 0.9)))
    return float(f"{max(found):.4g}")


# -- Whole measured networks.


def judge_networks(
    platform: FittedPlatform, recipe: Recipe, rows: Iterable[Row] = ()
) -> FittedPlatform:
    """The platform with the errors of whole measured networks in its accuracy.

    ``rows`` are those it was fitted to: a network whose time goes to layers that have a row of
    their shape is no test of a layer that nobody measured, and the accuracy says how much does.
    """
    if not recipe.networks:
        return platform
    networks = load_networks(recipe.folder / recipe.networks)
    predicted = [platform.predict(trace_network(network)) for network in networks]
    runtime = np.array([each.runtime_ms for each in predicted])
    score = Score.of(runtime, np.array([each.paper_ms for each in networks]))
    shapes = {row.shape_group for row in rows}
    known = {
        network.name: {
            "measured_ms": network.paper_ms,
            "predicted_ms": round(each.runtime_ms or np.nan, 2),
            "seen_percent": round(100 * _seen_share(each, shapes), 1),
        }
        for network, each in zip(networks, predicted, strict=True)
    }
    found: dict[str, object] = {"runtime": score, "networks": known}
    if any(model.neuralpower is not None for model in platform.families.values()):
        paper = platform.by_neuralpower()
        for network in networks:
            runtime_ms = paper.predict(trace_network(network)).runtime_ms
            known[network.name]["neuralpower_ms"] = round(runtime_ms or np.nan, 2)
        predicted_ms = np.array([known[network.name]["neuralpower_ms"] for network in networks])
        measured_ms = np.array([network.paper_ms for network in networks])
        found["neuralpower"] = Score.of(predicted_ms, measured_ms)
    if platform.power is not None:
        energy = np.array([each.energy_mj or np.nan for each in predicted]) / 1000
        found["energy"] = Score.of(energy, np.array([each.paper_j for each in networks]))
        for network, joules in zip(networks, energy.tolist(), strict=True):
            known[network.name] |= {"measured_j": network.paper_j, "predicted_j": round(joules, 3)}
    accuracy = {**platform.accuracy, "networks": msgspec.to_builtins(found)}
    return replace(platform, accuracy=accuracy)


def _seen_share(prediction: Prediction, shapes: Set[Hashable]) -> float:
    """Share of the runtime that goes to layers with a row of their shape, whatever its batch."""
    seen = [
        each.runtime_ms or 0.0
        for each in prediction.layers
        if Row(each.layer, 0.0).shape_group in shapes
    ]
    return sum(seen) / (prediction.runtime_ms or np.nan)


def load_networks(path: Path) -> Sequence[Any]:
    """``NETWORKS`` of a Python file, each with a factory, an input shape and measured values.

    Raises
    ------
    ProfileError
        The file cannot be imported or has no such name.
    """
    spec = importlib.util.spec_from_file_location(f"_networks_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ProfileError(f"{path}: no file of measured networks")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # what a NamedTuple's annotations are looked up in
    spec.loader.exec_module(module)
    if not hasattr(module, "NETWORKS"):
        raise ProfileError(f"{path}: it defines no NETWORKS")
    networks: Sequence[Any] = module.NETWORKS
    return networks


def trace_network(network: Any) -> Trace:
    """Layers of one call of a measured network, traced on the meta device."""
    import torch  # noqa: PLC0415 - only whole networks need it

    from pytest_neuralpower.tracing import trace  # noqa: PLC0415

    with torch.device("meta"):
        return trace(network.factory(), torch.empty(network.input_shape))


def _network_power(platform: FittedPlatform, trace: Trace) -> float:
    """Predicted mean power of one call, W."""
    power = platform.predict(trace).power_w
    if power is None:
        raise FitError(f"{platform.name} has no power model")
    return power


# -- Power of a family whose rows have it: learnt as power or as energy, whichever is more accurate.


class LayerPower(NamedTuple):
    """What was chosen: an estimator of power or of energy, and the range of measured power (W)."""

    quantity: Literal["power", "energy"]
    selection: Selection
    range_w: tuple[float, float]

    def chosen(self) -> Mapping[str, Any]:
        """Fields of the family's model."""
        if self.quantity == "power":
            return {"power": self.selection.estimator}
        return {"energy": self.selection.estimator, "power_range_w": self.range_w}


def fit_layer_power(
    family: str,
    rows: Sequence[Row],
    values: Columns,
    runtime: Selection,
    *,
    design: Design,
    hardware: Mapping[str, float],
) -> LayerPower | None:
    """Power of one family, None where any of its rows has none, or all where its design's ``learn``
    is ``utilization``: what some rows tell then holds for the others.

    Candidates compete twice, as estimators of power and as estimators of energy; the winners are
    compared by their held-out energy, which for the former is predicted power times predicted
    runtime, as in use. A design whose ``learn`` is ``energy`` has the latter alone: where energies
    are noisy, the least relative error of power comes with sums that are too low.

    Raises
    ------
    FitError
        Bad rows, too few shapes, or no candidate could be fitted.
    """
    metered = [place for place, row in enumerate(rows) if row.power_w is not None]
    alone = design.learn == "utilization" and bool(metered)
    if len(metered) < len(rows) and not alone:
        return None
    rows, values = [rows[place] for place in metered], some_rows(values, np.array(metered))
    time = np.array([row.runtime_ms for row in rows])
    power = np.array([row.power_w for row in rows], dtype=np.float64)
    groups, lines = [row.shape_group for row in rows], [row.line for row in rows]

    def mape(predicted: FloatArray) -> float:
        return float(np.abs(predicted / (power * time) - 1.0).mean())

    range_w = (float(power.min()), float(power.max()))
    if alone:
        busy = {"utilization": power_makers(family, hardware)["utilization"]}
        seen = {**values, "runtime_ms": time}
        return LayerPower("power", select(busy, seen, power, groups, lines=lines), range_w)
    makers = runtime_makers(family, design, hardware, quantity="energy")
    makers = {name: makers[name] for name in makers if name in (design.candidates or makers)}
    as_energy = select(makers, values, power * time, groups, lines=lines)
    if design.learn != "energy":
        makers = power_makers(family, hardware)
        allowed = (*(design.candidates or makers), "utilization")
        makers = {name: makers[name] for name in makers if name in allowed}
        as_power = select(makers, {**values, "runtime_ms": time}, power, groups, lines=lines)
        if mape(as_power.held_out * runtime.held_out) <= mape(as_energy.held_out):
            return LayerPower("power", as_power, range_w)
    return LayerPower("energy", as_energy, range_w)


def constant_power(platform: FittedPlatform, recipe: Recipe) -> FittedPlatform:
    """The platform where every layer draws the recipe's ``power: {watts: W}``.

    Raises
    ------
    ProfileError
        The recipe does not call it ``tiers: {power: estimated}``.
    """
    watts = recipe.power.watts if recipe.power else None
    if watts is None or recipe.tiers.get("power") != "estimated":
        raise ProfileError(
            f"recipe of {recipe.name}: power of {watts or 0:g} W was not measured; write "
            "tiers: {power: estimated}"
        )
    load = {"base": float(watts), "compute": 0.0, "bandwidth": 0.0}
    model = Utilization(
        peak_gflops=float(recipe.hardware["peak_gflops"]),
        bandwidth_gbs=float(recipe.hardware["bandwidth_gbs"]),
        fixed=load,
        load_=dict(load),
    )
    return replace(platform, power=model)
