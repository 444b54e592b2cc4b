"""Power of boards that nobody measured, from one whose layers' power was.

How far a board's power rises from idle towards its limit is taken to depend on the shares of its
peak compute and of its bandwidth that a layer achieves, and on nothing else; that dependence is
learnt from a board whose rows have both time and power, and scaled to another's idle and limit.
How wrong that is is judged on whole networks whose power was measured on a third board.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pytest_neuralpower.calibrate.network_power import load_networks, network_power, trace_network
from pytest_neuralpower.calibrate.recipe import Recipe, read_recipe
from pytest_neuralpower.errors import FitError
from pytest_neuralpower.estimators import Saturating
from pytest_neuralpower.estimators.folds import grouped_folds
from pytest_neuralpower.estimators.selection import Score
from pytest_neuralpower.features import FloatArray, columns, family
from pytest_neuralpower.platform import FamilyModel, Platform, load_fitted

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.rows import Row

#: Rows shorter than this say more of the pauses between kernels than of the kernels.
LEAST_MS: Final = 0.02

_FOLDS: Final = 5


def transfer_power(
    platform: Platform, recipe: Recipe, rows_of: Callable[[Path], Sequence[Row]]
) -> Platform:
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
        "free_parameters": len(learnt.model.rates_),
        "held_out_rows": learnt.score.to_json(),
    }
    if "validate" in options:
        accuracy |= _validate(learnt.model, recipe)
    return replace(platform, power=model, accuracy={**platform.accuracy, "power": accuracy})


class _Learnt:
    """A fitted model, the number of its rows, and its error on rows held out by shape."""

    def __init__(self, model: Saturating, rows: int, score: Score) -> None:
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
    model = Saturating(
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
        shares.append(model.shares({**values, "runtime_ms": runtime}))
        power += [row.power_w for row in members]
        groups += [row.shape_group for row in members]
    compute, traffic = (np.concatenate(each) for each in zip(*shares, strict=True))
    target = np.array(power, dtype=np.float64)
    fold = grouped_folds(groups, _FOLDS)
    held_out = np.empty(len(target))
    for number in range(_FOLDS):
        out = fold == number
        model.fit_shares(compute[~out], traffic[~out], target[~out])
        held_out[out] = model.predict_shares(compute[out], traffic[out])
    model.fit_shares(compute, traffic, target)
    return _Learnt(model, len(target), Score.of(held_out, target))


def _scaled(model: Saturating, hardware: Any, idle_w: float) -> Saturating:
    return model.on(
        peak_gflops=float(hardware["peak_gflops"]),
        bandwidth_gbs=float(hardware["bandwidth_gbs"]),
        limit_w=float(hardware["limit_w"]),
        idle_w=idle_w,
    )


def _validate(model: Saturating, recipe: Recipe) -> dict[str, Any]:
    """The transfer's error on measured networks, beside a fit to these very networks."""
    options = recipe.power["validate"]
    judge = load_fitted(str(options["platform"]))
    networks = load_networks(recipe.folder / options["networks"])
    moved = _scaled(model, judge.hardware, float(options["idle_w"]))
    known = {
        name: FamilyModel({"runtime": each.estimators["runtime"]}, each.ranges, each.surcharges)
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
