"""What ships is what its recipe makes, and its errors are those it claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_neuralpower.calibrate.fit.designs import Design, power_makers, runtime_makers
from pytest_neuralpower.calibrate.fit.fit import bounded, fit_directory, read_rows
from pytest_neuralpower.calibrate.fit.prior import priors_for
from pytest_neuralpower.calibrate.fit.readers import data_root
from pytest_neuralpower.calibrate.fit.recipe import read_recipe
from pytest_neuralpower.errors import ProfileError
from pytest_neuralpower.estimators.features import columns, family
from pytest_neuralpower.platform.catalog import load_fitted

REPOSITORY = Path(__file__).parents[2]


def tables() -> Path:
    try:
        return data_root(REPOSITORY)
    except ProfileError as error:
        pytest.skip(str(error))


def assert_alike(found: Any, expected: Any, where: str = "platform") -> None:
    """Equal, numbers to a part in a million: another machine may sum in another order."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_alike(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for index, value in enumerate(expected):
            assert_alike(found[index], value, f"{where}[{index}]")
    elif isinstance(expected, float):
        # Scores are rounded to a hundredth of a percent, so the last digit may differ.
        close = 0.011 if ".accuracy." in where else 1e-9
        assert found == pytest.approx(expected, rel=1e-6, abs=close), where
    else:
        assert found == expected, where


@pytest.mark.parametrize("name", ["titanx-tf"])
def test_a_refit_gives_the_shipped_file(name: str) -> None:
    fitted = fit_directory(REPOSITORY / "calibration" / name, data_root=tables())
    assert_alike(fitted.to_json(), load_fitted(name).to_json())


@pytest.mark.parametrize(
    "name", ["titanx", "titanx-pascal", "gtx1080ti", "cpu-broadwell", "cpu-raptorlake"]
)
def test_the_chosen_estimators_fitted_anew_are_the_shipped_ones(name: str) -> None:
    # Holding out each shape for each candidate takes minutes: `make platforms` does all of it.
    shipped, folder = load_fitted(name), REPOSITORY / "calibration" / name
    rows, recipe = read_rows(read_recipe(folder), tables())
    priors = priors_for(
        recipe.device, recipe.hardware, recipe.dtype, calibration=folder.parent, data_root=tables()
    )
    assert_alike(
        {kind: each.to_json() for kind, each in shipped.inferred.items()},
        {kind: bounded(kind, recipe, priors[kind]).to_json() for kind in shipped.inferred},
    )
    for kind, model in shipped.families.items():
        members = [row for row in rows if family(row.layer) == kind]
        values = columns(kind, [row.layer for row in members])
        runtime = np.array([row.runtime_ms for row in members])
        groups = [row.shape_group for row in members]
        design, accuracy = recipe.designs.get(kind, Design()), shipped.accuracy
        make = runtime_makers(kind, design, recipe.hardware)[accuracy["runtime"][kind]["chosen"]]
        fitted = bounded(kind, recipe, priors[kind], make()).fit(values, runtime, groups=groups)
        assert_alike(fitted.to_json(), model.runtime.to_json())
        if model.power is None and model.energy is None:  # the platform has one for all kinds
            continue
        power = np.array([row.power_w for row in members])
        if model.energy is not None:
            makers = runtime_makers(kind, design, recipe.hardware, quantity="energy")
            fitted = makers[accuracy["layer_energy"][kind]["chosen"]]()
            fitted.fit(values, runtime * power, groups=groups)
            assert model.power_range_w == pytest.approx([power.min(), power.max()])
            assert_alike(fitted.to_json(), model.energy.to_json())
        elif model.power is not None:
            makers = power_makers(kind, recipe.hardware)
            fitted = makers[accuracy["layer_power"][kind]["chosen"]]()
            fitted.fit({**values, "runtime_ms": runtime}, power, groups=groups)
            assert_alike(fitted.to_json(), model.power.to_json())


@pytest.mark.parametrize(
    ("name", "family", "most"),
    [
        ("titanx", "conv", 14),
        ("titanx", "linear", 18),
        ("titanx", "matmul", 16),
        ("titanx-tf", "conv", 14),
        ("titanx-tf", "linear", 16),
        ("titanx-tf", "matmul", 16),
        ("titanx-pascal", "conv", 14),
        # Twice the rows are never cheaper, though these libraries ran some of them so.
        ("titanx-pascal", "linear", 26),
        ("titanx-pascal", "matmul", 20),
        ("gtx1080ti", "conv", 14),
        ("gtx1080ti", "linear", 17),
        ("gtx1080ti", "matmul", 16),
        ("cpu-broadwell", "conv", 9),
        ("cpu-broadwell", "linear", 12),
        ("cpu-raptorlake", "conv", 9),
        ("cpu-raptorlake", "linear", 12),
    ],
)
def test_the_chosen_estimator_holds_out_shapes_well(name: str, family: str, most: float) -> None:
    found = load_fitted(name).accuracy["runtime"][family]
    held_out = found["held_out"][found["chosen"]]["mape"]
    assert held_out < most
    for baseline in ("flops-only", "roofline"):
        assert held_out < found["baselines"][baseline]["mape"]


@pytest.mark.parametrize(
    ("name", "reaches"),
    [
        ("cpu-broadwell", {"conv": 9, "linear": 12, "pool": 3}),
        ("cpu-raptorlake", {"linear": 40, "pool": 4}),  # of conv it is learnt as power
    ],
)
def test_the_energy_of_processors_is_near_and_right_in_sum(
    name: str, reaches: dict[str, float]
) -> None:
    learnt = load_fitted(name).accuracy["layer_energy"]
    for kind, most in reaches.items():
        score = learnt[kind]["held_out"][learnt[kind]["chosen"]]
        assert score["mape"] < most
        assert abs(score["total"]) < 3


@pytest.mark.parametrize("name", ["titanx", "titanx-tf"])
def test_the_intervals_hold_what_they_promise_of_unseen_shapes(name: str) -> None:
    found = load_fitted(name).accuracy["intervals"]
    for each in found["runtime"].values():
        assert 85 <= each["shapes_percent"] <= 96
        assert each["factor"] < 2


def test_the_intervals_of_titanx_tf_hold_most_networks_that_they_have_not_seen() -> None:
    found = load_fitted("titanx-tf").accuracy["intervals"]["networks"]
    for quantity in ("runtime", "energy"):
        assert found[quantity]["inside"] >= 4
        assert found[quantity]["networks"] == 5


def test_the_networks_are_nearer_than_paleo_s_and_power_than_their_mean() -> None:
    accuracy = load_fitted("titanx-tf").accuracy
    assert accuracy["networks"]["runtime"]["rmspe"] < 28
    power = accuracy["power"]
    assert power["leave_one_network_out"]["rmspe"] < power["mean_of_the_others"]["rmspe"]
    assert power["free_parameters"] <= 2
