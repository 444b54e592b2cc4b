"""What ships is what its recipe makes, and its errors are those it claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_neuralpower import load_platform
from pytest_neuralpower.calibrate.card import card_text
from pytest_neuralpower.calibrate.fit import fit_directory
from pytest_neuralpower.calibrate.readers import data_root
from pytest_neuralpower.errors import ProfileError
from pytest_neuralpower.estimators import ESTIMATORS

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


@pytest.mark.parametrize("name", ["titanx", "titanx-tf"])
def test_a_refit_gives_the_shipped_file(name: str) -> None:
    # The paper's estimator is chosen for no family, and its Lasso would take most of the time.
    shipped = load_platform(name).to_json()
    for each in shipped["accuracy"]["runtime"].values():
        assert each["chosen"] != "neuralpower"
        each["held_out"].pop("neuralpower", None)
    folder = REPOSITORY / "calibration" / name
    others = [each for each in ESTIMATORS if each != "neuralpower"]
    fitted = fit_directory(folder, data_root=tables(), candidates=others)
    assert_alike(fitted.to_json(), shipped)


@pytest.mark.parametrize("name", ["titanx", "titanx-tf"])
def test_the_card_is_of_the_shipped_file(name: str) -> None:
    card = (REPOSITORY / "calibration" / name / "README.md").read_text(encoding="utf-8")
    assert card == card_text(load_platform(name))


@pytest.mark.parametrize(
    ("name", "family", "most"),
    [
        ("titanx", "conv", 14),
        ("titanx", "linear", 18),
        ("titanx", "matmul", 16),
        ("titanx-tf", "conv", 14),
        ("titanx-tf", "linear", 16),
        ("titanx-tf", "matmul", 16),
    ],
)
def test_the_chosen_estimator_holds_out_shapes_well(name: str, family: str, most: float) -> None:
    found = load_platform(name).accuracy["runtime"][family]
    held_out = found["held_out"][found["chosen"]]["mape"]
    assert held_out < most
    for baseline in ("flops-only", "roofline"):
        assert held_out < found["baselines"][baseline]["mape"]


@pytest.mark.parametrize("name", ["titanx", "titanx-tf"])
def test_the_intervals_hold_what_they_promise_of_unseen_shapes(name: str) -> None:
    found = load_platform(name).accuracy["intervals"]
    for each in found["runtime"].values():
        assert 85 <= each["shapes_percent"] <= 96
        assert each["factor"] < 2


def test_the_intervals_of_titanx_tf_hold_most_networks_that_they_have_not_seen() -> None:
    found = load_platform("titanx-tf").accuracy["intervals"]["networks"]
    for quantity in ("runtime", "energy"):
        assert found[quantity]["inside"] >= 4
        assert found[quantity]["networks"] == 5


def test_the_networks_are_nearer_than_paleo_s_and_power_than_their_mean() -> None:
    accuracy = load_platform("titanx-tf").accuracy
    assert accuracy["networks"]["runtime"]["rmspe"] < 28
    power = accuracy["power"]
    assert power["leave_one_network_out"]["rmspe"] < power["mean_of_the_others"]["rmspe"]
    assert power["free_parameters"] <= 2
