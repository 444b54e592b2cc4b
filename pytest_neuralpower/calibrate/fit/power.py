"""Whole measured networks: they judge a platform's runtime and teach it power.

Their runtimes are never fitted. Their mean powers are, where no layer's power was measured: a
network's power is what its layers draw, weighted by their predicted time.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
from msgspec.structs import replace

from pytest_neuralpower.calibrate.fit.designs import energy_makers, power_makers
from pytest_neuralpower.calibrate.fit.recipe import Recipe, read_recipe
from pytest_neuralpower.errors import FitError, ProfileError
from pytest_neuralpower.estimators import Utilization
from pytest_neuralpower.estimators.features import FloatArray, columns, family
from pytest_neuralpower.estimators.selection import Score, Selection, grouped_folds, select
from pytest_neuralpower.platform.catalog import load_fitted

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.fit.rows import NetworkRow, Row
    from pytest_neuralpower.estimators.features import Columns, FloatArray
    from pytest_neuralpower.layers import Trace
    from pytest_neuralpower.platform.price import FittedPlatform

__all__ = [
    "metered_power",
]


def fit_power(
    platform: FittedPlatform, recipe: Recipe, fit_other: Callable[[Path], FittedPlatform]
) -> FittedPlatform:
    """The platform with a power model, as the recipe's ``power`` says.

    ``{networks: FILE, fixed: {base_w: 15}}`` fits the other terms to the networks' measured power
    and states the leave-one-network-out error; ``{from: PLATFORM}`` takes what ``fit_other`` finds
    for that platform's calibration folder, beside this one.

    Raises
    ------
    FitError
        The power terms do not suit the networks.
    """
    if "from" in recipe.power:
        other = fit_other(recipe.folder.parent / str(recipe.power["from"]))
        accuracy = {**platform.accuracy, "power": other.accuracy.get("power")}
        return replace(platform, power=other.power, accuracy=accuracy)
    if "networks" not in recipe.power:
        return platform
    networks = load_networks(recipe.folder / recipe.power["networks"])
    measured = np.array([network.paper_w for network in networks])
    model = Utilization(
        peak_gflops=float(recipe.hardware["peak_gflops"]),
        bandwidth_gbs=float(recipe.hardware["bandwidth_gbs"]),
        limit_w=float(recipe.hardware["limit_w"]),
        fixed={
            name.removesuffix("_w"): float(watts)
            for name, watts in recipe.power.get("fixed", {}).items()
        },
    )
    traced = [trace_network(network) for network in networks]
    means = np.array([_mean_utilization(platform, model, trace) for trace in traced])
    held_out = np.zeros(len(networks))
    for index in range(len(networks)):
        rest = np.arange(len(networks)) != index
        model.fit_utilization(means[rest, 0], means[rest, 1], measured[rest])
        held_out[index] = network_power(replace(platform, power=model), traced[index])
    model.fit_utilization(means[:, 0], means[:, 1], measured)
    fitted = replace(platform, power=model)
    inside = np.array([network_power(fitted, trace) for trace in traced])
    # The yardstick: every network draws the mean power of the four others.
    mean = (measured.sum() - measured) / (len(measured) - 1)
    accuracy = {
        "free_parameters": len(model.load_) - len(model.fixed),
        "effective_layers": round(float(np.mean([_layers(fitted, trace) for trace in traced])), 2),
        "leave_one_network_out": Score.of(held_out, measured).to_json(),
        "fitted": Score.of(inside, measured).to_json(),
        "mean_of_the_others": Score.of(mean, measured).to_json(),
        "networks": {
            network.name: {
                "measured_w": network.paper_w,
                "held_out_w": round(float(held), 2),
                "fitted_w": round(float(fit), 2),
            }
            for network, held, fit in zip(networks, held_out, inside, strict=True)
        },
    }
    return replace(fitted, accuracy={**platform.accuracy, "power": accuracy})


def judge_networks(platform: FittedPlatform, recipe: Recipe) -> FittedPlatform:
    """The platform with the errors of whole measured networks in its accuracy."""
    if not recipe.networks:
        return platform
    networks = load_networks(recipe.folder / recipe.networks)
    predicted = [platform.predict(trace_network(network)) for network in networks]
    runtime = np.array([each.runtime_ms for each in predicted])
    found: dict[str, Any] = {
        "runtime": Score.of(runtime, np.array([each.paper_ms for each in networks])).to_json(),
        "networks": {
            network.name: {
                "measured_ms": network.paper_ms,
                "predicted_ms": round(each.runtime_ms or np.nan, 2),
            }
            for network, each in zip(networks, predicted, strict=True)
        },
    }
    if platform.power is not None:
        energy = np.array([each.energy_mj or np.nan for each in predicted]) / 1000
        found["energy"] = Score.of(energy, np.array([each.paper_j for each in networks])).to_json()
        for network, each in zip(networks, predicted, strict=True):
            found["networks"][network.name] |= {
                "measured_j": network.paper_j,
                "predicted_j": round((each.energy_mj or np.nan) / 1000, 3),
            }
    return replace(platform, accuracy={**platform.accuracy, "networks": found})


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


def network_power(platform: FittedPlatform, trace: Trace) -> float:
    """Predicted mean power of one call, W."""
    power = platform.predict(trace).power_w
    if power is None:
        raise FitError(f"{platform.name} has no power model")
    return power


def _layers(platform: FittedPlatform, trace: Trace) -> float:
    """Number of equally long layers over which errors would average out as over these."""
    time = np.array([layer.runtime_ms for layer in platform.predict(trace).layers])
    return float(time.sum() ** 2 / (time**2).sum())


def _mean_utilization(
    platform: FittedPlatform, model: Utilization, trace: Trace
) -> tuple[float, float]:
    """Compute and bandwidth share of one call: its layers', weighted by predicted runtime."""
    time: list[FloatArray] = []
    shares: list[tuple[FloatArray, FloatArray]] = []
    groups: dict[str, list[Any]] = {}
    for layer in platform.predict(trace).layers:
        groups.setdefault(family(layer.layer), []).append(layer)
    for name, members in groups.items():
        runtime = np.array([layer.runtime_ms for layer in members])
        values = columns(name, [layer.layer for layer in members])
        time.append(runtime)
        known = platform.families.get(name)
        seen = known.power_columns(values, runtime) if known else {**values, "runtime_ms": runtime}
        shares.append(model.utilization(seen))
    weights = np.concatenate(time)
    compute = np.concatenate([each[0] for each in shares])
    traffic = np.concatenate([each[1] for each in shares])
    return float(np.average(compute, weights=weights)), float(np.average(traffic, weights=weights))


# -- Power of a calibrated device, from the layers and networks that ran alone under its meter.
#
# A reading takes seconds, so there are tens of them and not thousands: too few for each kind of
# layer
# to have an estimator of its own. One model learns from all of them how power follows the share of
# the device's compute and of its bandwidth that is in use.

#: Readings for three terms, at least; fewer come of a calibration of less than a minute.
_LEAST: Final = 6


class _Reading(NamedTuple):
    """Power of one layer or network, and the mean shares of compute and bandwidth it had."""

    name: str
    watts: float
    compute: float
    traffic: float


def metered_power(platform: FittedPlatform, networks: Sequence[NetworkRow]) -> FittedPlatform:
    """The platform with a power model of all kinds of layers; none is claimed of too few readings.

    Its accuracy tells each reading's error by a model that was fitted without it.
    """
    model = Utilization(
        peak_gflops=float(platform.hardware["peak_gflops"]),
        bandwidth_gbs=float(platform.hardware["bandwidth_gbs"]),
        limit_w=platform.hardware.get("limit_w"),
    )
    readings = _readings(model, networks)
    if len(readings) < _LEAST:
        tiers = {quantity: tier for quantity, tier in platform.tiers.items() if quantity != "power"}
        return replace(platform, tiers=tiers)
    watts = np.array([each.watts for each in readings])
    shares = np.array([(each.compute, each.traffic) for each in readings])
    held_out = np.empty(len(readings))
    for index in range(len(readings)):
        rest = np.arange(len(readings)) != index
        model.fit_utilization(shares[rest, 0], shares[rest, 1], watts[rest])
        held_out[index] = model.predict_utilization(*shares[index : index + 1].T)[0]
    model.fit_utilization(shares[:, 0], shares[:, 1], watts)
    fitted = model.predict_utilization(shares[:, 0], shares[:, 1])
    accuracy = _accuracy(readings, watts, held_out, fitted)
    return replace(platform, power=model, accuracy={**platform.accuracy, "power": accuracy})


def _accuracy(
    readings: Sequence[_Reading], watts: FloatArray, held_out: FloatArray, fitted: FloatArray
) -> dict[str, Any]:
    mean = (watts.sum() - watts) / (len(watts) - 1)
    return {
        "free_parameters": 3,
        "effective_layers": 1.0,
        "leave_one_network_out": Score.of(held_out, watts).to_json(),
        "fitted": Score.of(fitted, watts).to_json(),
        "mean_of_the_others": Score.of(mean, watts).to_json(),
        "networks": {
            each.name: {
                "measured_w": round(each.watts, 2),
                "held_out_w": round(float(held), 2),
                "fitted_w": round(float(fit), 2),
            }
            for each, held, fit in zip(readings, held_out, fitted, strict=True)
        },
    }


def _readings(model: Utilization, networks: Sequence[NetworkRow]) -> list[_Reading]:
    found = []
    for network in networks:
        for number, (row, _) in enumerate(network.layers):
            if row.power_w is not None and not row.flaw:
                shares = _utilization(model, [(row, 1)])
                found.append(
                    _Reading(f"{network.network}.{number} {row.layer.op}", row.power_w, *shares)
                )
        if network.power_w is not None:
            found.append(
                _Reading(network.network, network.power_w, *_utilization(model, network.layers))
            )
    return found


def _utilization(model: Utilization, layers: Sequence[tuple[Row, int]]) -> tuple[float, float]:
    """Mean share of compute and of bandwidth over the layers' measured time."""
    total = compute = traffic = 0.0
    for row, count in layers:
        values = columns(family(row.layer), [row.layer])
        first, second = model.utilization({**values, "runtime_ms": np.array([row.runtime_ms])})
        time = row.runtime_ms * count
        total, compute, traffic = (
            total + time,
            compute + time * float(first[0]),
            traffic + time * float(second[0]),
        )
    return compute / total, traffic / total


# -- Power of boards that nobody measured, from one whose layers' power was.
#
# How far a board's power rises from idle towards its limit is taken to depend on the shares of its
# peak compute and of its bandwidth that a layer achieves, and on nothing else; that dependence is
# learnt from a board whose rows have both time and power, and scaled to another's idle and limit.
# How wrong that is is judged on whole networks whose power was measured on a third board.

#: Rows shorter than this say more of the pauses between kernels than of the kernels.
LEAST_MS: Final = 0.02

_FOLDS: Final = 5


def transfer_power(
    platform: FittedPlatform, recipe: Recipe, rows_of: Callable[[Path], Sequence[Row]]
) -> FittedPlatform:
    """The platform with the power model that the recipe's ``power`` transfers.

    ``{transfer: h200, idle_w: 25, validate: {...}}``: what the rows of the calibration folder
    ``h200``, beside this one, show; this board's idle power in W (its limit is in ``hardware``);
    and whole networks to judge the transfer by: ``platform`` (a shipped one, for their layers'
    times), ``networks`` (their file) and ``idle_w`` of the board that they ran on.

    Raises
    ------
    FitError
        No row of the other folder has power.
    ProfileError
        A recipe, its rows or the networks cannot be read.
    """
    options = recipe.power
    source = read_recipe(recipe.folder.parent / str(options["transfer"]))
    learnt = _learn(source, rows_of(source.folder))
    model = _scaled(learnt.model, recipe.hardware, float(options["idle_w"]))
    accuracy: dict[str, Any] = {
        "transferred_from": source.name,
        "rows": learnt.rows,
        "free_parameters": len(learnt.model.load_),
        "held_out_rows": learnt.score.to_json(),
    }
    if "validate" in options:
        accuracy |= _validate(learnt.model, recipe)
    return replace(platform, power=model, accuracy={**platform.accuracy, "power": accuracy})


class _Learnt:
    """A fitted model, the number of its rows, and its error on rows held out by shape."""

    def __init__(self, model: Utilization, rows: int, score: Score) -> None:
        self.model = model
        self.rows = rows
        self.score = score


def _learn(source: Recipe, rows: Sequence[Row]) -> _Learnt:
    by_family: dict[str, list[Row]] = {}
    for row in rows:
        if row.power_w is not None and row.runtime_ms >= LEAST_MS:
            by_family.setdefault(family(row.layer), []).append(row)
    if not by_family:
        raise FitError(f"{source.name}: no row with power lasts {LEAST_MS:g} ms or more")
    model = Utilization(
        peak_gflops=float(source.hardware["peak_gflops"]),
        bandwidth_gbs=float(source.hardware["bandwidth_gbs"]),
        idle_w=float(source.power["idle_w"]),
        limit_w=float(source.hardware["limit_w"]),
    )
    shares: list[tuple[FloatArray, FloatArray]] = []
    power, groups = [], []
    for name, members in by_family.items():
        values = columns(name, [row.layer for row in members])
        runtime = np.array([row.runtime_ms for row in members])
        shares.append(model.utilization({**values, "runtime_ms": runtime}))
        power += [row.power_w for row in members]
        groups += [row.shape_group for row in members]
    compute, traffic = (np.concatenate(each) for each in zip(*shares, strict=True))
    target = np.array(power, dtype=np.float64)
    fold = grouped_folds(groups, _FOLDS)
    held_out = np.empty(len(target))
    for number in range(_FOLDS):
        out = fold == number
        model.fit_utilization(compute[~out], traffic[~out], target[~out])
        held_out[out] = model.predict_utilization(compute[out], traffic[out])
    model.fit_utilization(compute, traffic, target)
    return _Learnt(model, len(target), Score.of(held_out, target))


def _scaled(model: Utilization, hardware: Any, idle_w: float) -> Utilization:
    return model.on(
        peak_gflops=float(hardware["peak_gflops"]),
        bandwidth_gbs=float(hardware["bandwidth_gbs"]),
        limit_w=float(hardware["limit_w"]),
        idle_w=idle_w,
    )


def _validate(model: Utilization, recipe: Recipe) -> dict[str, Any]:
    """The transfer's error on measured networks, beside a fit to these very networks."""
    options = recipe.power["validate"]
    judge = load_fitted(str(options["platform"]))
    networks = load_networks(recipe.folder / options["networks"])
    moved = _scaled(model, judge.hardware, float(options["idle_w"]))
    known = {
        name: replace(each, power=None, energy=None, power_range_w=None)
        for name, each in judge.families.items()
    }
    judged = replace(judge, families=known, power=moved, intervals=None)
    measured = np.array([network.paper_w for network in networks])
    found = np.array([network_power(judged, trace_network(network)) for network in networks])
    fitted = judge.accuracy["power"]
    return {
        "judged_on": judge.name,
        "transferred": Score.of(found, measured).to_json(),
        "fitted_to_networks": {
            name: fitted[name] for name in ("leave_one_network_out", "fitted") if name in fitted
        },
        "networks": {
            network.name: {
                "measured_w": network.paper_w,
                "held_out_w": round(float(watts), 2),
                "fitted_w": fitted["networks"][network.name]["fitted_w"],
            }
            for network, watts in zip(networks, found, strict=True)
        },
    }


# -- Power of a family whose rows have it: learnt as power, or as energy, whichever errs less.


class LayerPower(NamedTuple):
    """What was chosen: an estimator of power or of energy, and the range of measured power (W)."""

    quantity: Literal["power", "energy"]
    selection: Selection
    range_w: tuple[float, float]

    def chosen(self) -> dict[str, Any]:
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
    design: Mapping[str, Any],
    hardware: Mapping[str, float],
) -> LayerPower | None:
    """Power of one family, None where any of its rows has none.

    Candidates compete twice, as estimators of power and as estimators of energy; the winners are
    compared by their held-out energy, which for the former is predicted power times predicted
    runtime, as in use. A design whose ``learn`` is ``energy`` has the latter alone: where energies
    are noisy, the least relative error of power comes with sums that are too low.

    Raises
    ------
    FitError
        Bad rows, too few shapes, or no candidate could be fitted.
    """
    if any(row.power_w is None for row in rows):
        return None
    time = np.array([row.runtime_ms for row in rows])
    power = np.array([row.power_w for row in rows], dtype=np.float64)
    groups, lines = [row.shape_group for row in rows], [row.line for row in rows]
    allowed = design.get("candidates")
    makers = {
        name: make
        for name, make in energy_makers(family, design, hardware).items()
        if not allowed or name in allowed
    }
    as_energy = select(makers, values, power * time, groups, lines=lines)
    range_w = (float(power.min()), float(power.max()))
    if design.get("learn") == "energy":
        return LayerPower("energy", as_energy, range_w)
    makers = {
        name: make
        for name, make in power_makers(family, hardware).items()
        if not allowed or name in (*allowed, "utilization")
    }
    as_power = select(makers, {**values, "runtime_ms": time}, power, groups, lines=lines)
    off_power = _mape(as_power.held_out * runtime.held_out, power * time)
    if _mape(as_energy.held_out, power * time) < off_power:
        return LayerPower("energy", as_energy, range_w)
    return LayerPower("power", as_power, range_w)


def _mape(predicted: FloatArray, measured: FloatArray) -> float:
    return float(np.abs(predicted / measured - 1.0).mean())


# -- Power as the user gave it: one wattage for whatever runs, so that energy is an estimate.


def constant_power(platform: FittedPlatform, recipe: Recipe) -> FittedPlatform:
    """The platform where every layer draws the recipe's ``power: {watts: W}``.

    Raises
    ------
    ProfileError
        The recipe does not call it ``tiers: {power: estimated}``, or it is no positive number.
    """
    watts = recipe.power["watts"]
    if recipe.tiers.get("power") != "estimated":
        raise ProfileError(
            f"recipe of {recipe.name}: power of {watts!r} W was not measured; write "
            "tiers: {power: estimated}"
        )
    if isinstance(watts, bool) or not isinstance(watts, int | float) or watts <= 0:
        raise ProfileError(f"recipe of {recipe.name}: power watts {watts!r} must be above 0")
    model = Utilization(
        peak_gflops=float(recipe.hardware["peak_gflops"]),
        bandwidth_gbs=float(recipe.hardware["bandwidth_gbs"]),
        fixed={"base": float(watts), "compute": 0.0, "bandwidth": 0.0},
    )
    model.load_ = dict(model.fixed)
    return replace(platform, power=model)
