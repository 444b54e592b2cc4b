"""What ships from NeuSight's tables claims no more than its held-out rows show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pytest_neuralpower import load_platform, trace
from pytest_neuralpower.calibrate.fit.card import card_text
from pytest_neuralpower.calibrate.fit.designs import Design, runtime_makers
from pytest_neuralpower.calibrate.fit.fit import bounded, read_rows
from pytest_neuralpower.calibrate.fit.judging import beats
from pytest_neuralpower.calibrate.fit.prior import priors_for
from pytest_neuralpower.calibrate.fit.readers import data_root
from pytest_neuralpower.calibrate.fit.recipe import read_recipe
from pytest_neuralpower.errors import ProfileError
from pytest_neuralpower.estimators.features import columns, family
from pytest_neuralpower.estimators.selection import Score
from pytest_neuralpower.platform.catalog import list_platforms
from pytest_neuralpower.platform.price import FittedPlatform

REPOSITORY = Path(__file__).parents[2]
NAMES = ("v100", "p100", "t4", "a100")


def shipped(name: str) -> FittedPlatform:
    platform = load_platform(name)
    assert isinstance(platform, FittedPlatform)
    return platform


@pytest.mark.parametrize("name", NAMES)
def test_the_card_is_of_the_shipped_file(name: str) -> None:
    card = (REPOSITORY / "calibration" / name / "README.md").read_text(encoding="utf-8")
    assert card == card_text(shipped(name))


@pytest.mark.parametrize("name", ["v100"])
def test_the_chosen_estimators_refitted_are_the_shipped_ones(name: str) -> None:
    # Of one platform, and without the cross-validation that chose them: `make platforms` refits
    # all, in minutes.
    try:
        data = data_root(REPOSITORY)
    except ProfileError as error:
        pytest.skip(str(error))
    rows, recipe = read_rows(read_recipe(REPOSITORY / "calibration" / name), data)
    priors = priors_for(
        recipe.device,
        recipe.hardware,
        recipe.dtype,
        calibration=REPOSITORY / "calibration",
        data_root=data,
    )
    platform = shipped(name)
    for each, model in platform.families.items():
        members = [row for row in rows if family(row.layer) == each]
        makers = runtime_makers(each, recipe.designs.get(each, Design()), recipe.hardware)
        inner = makers[platform.accuracy["runtime"][each]["chosen"]]()
        fitted = bounded(each, recipe, priors[each], inner).fit(
            columns(each, [row.layer for row in members]),
            np.array([row.runtime_ms for row in members]),
            groups=[row.shape_group for row in members],
        )
        assert fitted.to_json() == model.runtime.to_json(), each


@pytest.mark.parametrize("name", NAMES)
def test_every_family_beats_its_baselines(name: str) -> None:
    for each in shipped(name).accuracy["runtime"].values():
        baselines = {name: Score(**score) for name, score in each["baselines"].items()}
        assert beats(each["held_out"][each["chosen"]]["mape"], baselines)


@pytest.mark.parametrize(
    ("family", "most"), [("elementwise", 1), ("activation", 1), ("norm", 10), ("softmax", 10)]
)
@pytest.mark.parametrize("name", NAMES)
def test_layers_that_stream_are_near(name: str, family: str, most: float) -> None:
    found = shipped(name).accuracy["runtime"][family]
    assert found["held_out"][found["chosen"]]["mape"] <= most


@pytest.mark.parametrize(("name", "most"), [("v100", 12), ("p100", 16), ("t4", 12), ("a100", 16)])
def test_convolutions_are_near_once_the_overhead_of_their_place_is_known(
    name: str, most: float
) -> None:
    found = shipped(name).accuracy["runtime"]["conv"]["overhead"]
    for how in ("added", "removed"):
        assert found["scores"][how]["mape"] <= most
    # What the recipe takes off is what the training folds find without the rows they judge.
    for fold in found["removed_ms"]["folds"]:
        assert fold == pytest.approx(found["removed_ms"]["recipe"], rel=0.05)


@pytest.mark.parametrize(("name", "most"), [("v100", 11), ("p100", 15), ("a100", 6)])
def test_fully_connected_layers_of_another_session_are_near(name: str, most: float) -> None:
    split = shipped(name).accuracy["runtime"]["linear"]["split"]
    assert split["scores"][split["chosen"]]["mape"] <= most


@pytest.mark.parametrize("name", NAMES)
def test_the_intervals_hold_what_they_promise_of_unseen_shapes(name: str) -> None:
    for each in shipped(name).accuracy["intervals"]["runtime"].values():
        assert 85 <= each["shapes_percent"] <= 95


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("model", ["resnet50", "mobilenetv2_w1", "densenet121"])
def test_networks_have_finite_costs_below_the_board_s_limit(model: str, batch: int) -> None:
    torch = pytest.importorskip("torch")
    provider = pytest.importorskip("pytorchcv.model_provider")
    with torch.device("meta"):
        network = provider.get_model(model)
    traced = trace(network, torch.empty(batch, 3, 224, 224, device="meta"))
    for name in NAMES:
        platform = shipped(name)
        found = platform.predict(traced)
        assert "transferred from 4 other devices, off by 14% in the mean" in " ".join(found.notes)
        for layer in found.layers:
            assert layer.runtime_ms is not None
            assert layer.power_w is not None
            assert 0 < layer.runtime_ms < 1e3
            assert 0 < layer.power_w <= platform.hardware["limit_w"]
        low, high, _ = found.energy_interval_mj or (0.0, 0.0, 0.0)
        assert high > 1.3**2 * low > 0  # power from other devices is never sure


def test_a_platform_whose_rows_contradict_each_other_is_not_shipped() -> None:
    assert "p4" not in list_platforms()
    assert (REPOSITORY / "calibration" / "p4" / "README.md").is_file()
