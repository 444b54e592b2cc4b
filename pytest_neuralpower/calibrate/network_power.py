"""Whole measured networks: they judge a platform's runtime and teach it power.

Their runtimes are never fitted. Their mean powers are, where no layer's power was measured: a
network's power is what its layers draw, weighted by their predicted time.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_neuralpower.errors import FitError, ProfileError
from pytest_neuralpower.estimators import Shares
from pytest_neuralpower.estimators.selection import Score
from pytest_neuralpower.features import FloatArray, columns, family
from pytest_neuralpower.platform import FamilyModel, Platform

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.recipe import Recipe
    from pytest_neuralpower.layers import Trace


def fit_power(
    platform: Platform, recipe: Recipe, fit_other: Callable[[Path], Platform]
) -> Platform:
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
    model = Shares(
        peak_gflops=float(recipe.hardware["peak_gflops"]),
        bandwidth_gbs=float(recipe.hardware["bandwidth_gbs"]),
        limit_w=float(recipe.hardware["limit_w"]),
        fixed={name: float(watts) for name, watts in recipe.power.get("fixed", {}).items()},
    )
    traced = [trace_network(network) for network in networks]
    means = np.array([_mean_shares(platform, model, trace) for trace in traced])
    held_out = np.zeros(len(networks))
    for index in range(len(networks)):
        rest = np.arange(len(networks)) != index
        model.fit_shares(means[rest, 0], means[rest, 1], measured[rest])
        held_out[index] = network_power(replace(platform, power=model), traced[index])
    model.fit_shares(means[:, 0], means[:, 1], measured)
    fitted = replace(platform, power=model)
    inside = np.array([network_power(fitted, trace) for trace in traced])
    # The yardstick: every network draws the mean power of the four others.
    mean = (measured.sum() - measured) / (len(measured) - 1)
    accuracy = {
        "free_parameters": len(model.watts_) - len(model.fixed),
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


def judge_networks(platform: Platform, recipe: Recipe) -> Platform:
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


def network_power(platform: Platform, trace: Trace) -> float:
    """Predicted mean power of one call, W."""
    power = platform.predict(trace).power_w
    if power is None:
        raise FitError(f"{platform.name} has no power model")
    return power


def _layers(platform: Platform, trace: Trace) -> float:
    """Number of equally long layers over which errors would average out as over these."""
    time = np.array([layer.runtime_ms for layer in platform.predict(trace).layers])
    return float(time.sum() ** 2 / (time**2).sum())


def _mean_shares(platform: Platform, model: Shares, trace: Trace) -> tuple[float, float]:
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
        known = platform.families.get(name, FamilyModel({}, {}))
        shares.append(model.shares(known.power_columns(values, runtime)))
    weights = np.concatenate(time)
    compute = np.concatenate([each[0] for each in shares])
    traffic = np.concatenate([each[1] for each in shares])
    return float(np.average(compute, weights=weights)), float(np.average(traffic, weights=weights))
