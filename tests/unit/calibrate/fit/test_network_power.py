"""Power learnt from whole networks, whose runtime is only judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flat_priors import flat_priors
from msgspec.structs import replace

from pytest_neuralpower.calibrate.fit.power import fit_power, judge_networks, load_networks
from pytest_neuralpower.calibrate.fit.recipe import Power, Recipe
from pytest_neuralpower.calibrate.fit.rows import Row, linear_layer
from pytest_neuralpower.errors import ProfileError
from pytest_neuralpower.estimators import Physical
from pytest_neuralpower.estimators.features import columns
from pytest_neuralpower.estimators.terms import Regime
from pytest_neuralpower.platform.price import FamilyModel, FittedPlatform

HARDWARE = {"peak_gflops": 1000.0, "bandwidth_gbs": 100.0, "limit_w": 300.0}

#: Chains of convolutions of different widths: the wider, the more it computes per byte.
NETWORKS = """\
from typing import NamedTuple
from torch import nn

class Network(NamedTuple):
    name: str
    width: int
    paper_ms: float
    paper_w: float
    paper_j: float = 0.0
    input_shape: tuple = (4, 3, 16, 16)

    def factory(self):
        return nn.Sequential(nn.Conv2d(3, self.width, 3), nn.ReLU(), nn.Conv2d(self.width, 8, 1))

NETWORKS = tuple(
    Network(f"net{width}", width, 1.0, 100.0 + width, (100.0 + width) / 1e3)
    for width in (8, 16, 32, 64, 128)
)
"""


@pytest.fixture
def platform() -> FittedPlatform:
    """Convolutions at 500 GFLOP/s after a launch of 0.05 ms; everything else at the roofline."""
    rates = {"launch": 0.05, "flops": 2.0}
    regime = Regime("all", ("launch", "flops"), rates=rates, time_over_roofline=(0.0, 1e9))
    conv = Physical([regime], 1000.0, 100.0, rescale=False)
    return FittedPlatform(
        "toy", "Toy", "float32", "eager", {}, HARDWARE,
        {"conv": FamilyModel({}, conv)},
        flat_priors(HARDWARE), None, accuracy={"runtime": {}},
    )  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "nets.py").write_text(NETWORKS)
    power = Power(networks="nets.py", fixed={"bandwidth_w": 0})
    return Recipe(
        "toy", "eager", "Toy",
        hardware=HARDWARE, power=power, networks="nets.py", folder=tmp_path,
    )  # fmt: skip


def unused(folder: Path) -> FittedPlatform:
    raise AssertionError(folder)


def test_the_free_terms_follow_the_networks_power(platform: FittedPlatform, recipe: Recipe) -> None:
    fitted = fit_power(platform, recipe, unused)
    found = fitted.accuracy["power"]
    assert found["free_parameters"] == 2
    assert found["fitted"]["rmspe"] < found["mean_of_the_others"]["rmspe"]
    assert list(found["networks"]) == ["net8", "net16", "net32", "net64", "net128"]
    held = [each["held_out_w"] for each in found["networks"].values()]
    assert held != [each["fitted_w"] for each in found["networks"].values()]


def test_the_networks_runtime_changes_no_power_and_no_prediction(
    platform: FittedPlatform, recipe: Recipe
) -> None:
    before = fit_power(platform, recipe, unused)
    path = recipe.folder / "nets.py"
    path.write_text(NETWORKS.replace("width, 1.0,", "width, 77.0,"))
    after = fit_power(platform, recipe, unused)
    assert after.to_json() == before.to_json()


def test_power_may_be_that_of_another_recipe(platform: FittedPlatform, recipe: Recipe) -> None:
    other = fit_power(platform, recipe, unused)
    asked: list[Path] = []

    def fit_other(folder: Path) -> FittedPlatform:
        asked.append(folder)
        return other

    borrowed = fit_power(platform, replace(recipe, power=Power(other="other")), fit_other)
    assert asked == [recipe.folder.parent / "other"]
    assert borrowed.power is other.power
    assert borrowed.accuracy["power"] == other.accuracy["power"]


def test_networks_are_judged_on_runtime_and_energy(
    platform: FittedPlatform, recipe: Recipe
) -> None:
    found = judge_networks(fit_power(platform, recipe, unused), recipe).accuracy["networks"]
    assert set(found) == {"runtime", "energy", "networks"}
    first = found["networks"]["net8"]
    assert (first["measured_ms"], first["measured_j"]) == (1.0, 0.108)
    assert 0.1 <= first["predicted_ms"] < 0.3
    alone = judge_networks(platform, recipe).accuracy["networks"]
    assert set(alone) == {"runtime", "networks"}


def test_a_recipe_without_networks_leaves_the_platform_alone(
    platform: FittedPlatform, recipe: Recipe
) -> None:
    bare = replace(recipe, power=None, networks="")
    assert fit_power(platform, bare, unused) is platform
    assert judge_networks(platform, bare) is platform


@pytest.mark.parametrize("text", [None, "x = 1"])
def test_a_file_without_networks_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "nets.py").write_text(text)
    with pytest.raises(ProfileError, match=r"nets\.py: "):
        load_networks(tmp_path / "nets.py")


def test_rows_that_have_power_teach_it_where_they_are_long(
    platform: FittedPlatform, recipe: Recipe
) -> None:
    # Loops over short kernels paused: they drew a third of what long ones did at like work.
    rows = [
        Row(linear_layer(count, 512, width), runtime_ms, power_w=watts)
        for width in (384, 512, 640, 768)
        for count in (100, 400)
        for runtime_ms, watts in ((0.019, 70.0), (0.021, 210.0))
    ]
    resting = replace(recipe, power=None, hardware={**HARDWARE, "idle_w": 20.0})
    found = fit_power(platform, resting, unused, rows=rows)
    assert found.power is not None
    values = {**columns("linear", [rows[-1].layer]), "runtime_ms": np.array([0.021])}
    assert found.power.predict(values)[0] == pytest.approx(210, rel=0.01)
    assert found.accuracy["power"]["rows"] == len(rows) / 2
    assert fit_power(platform, replace(recipe, power=None), unused, rows=rows) is platform
