"""Whatever ships: a sound file, a card that agrees with it, and sane predictions of real models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from pytorchcv.model_provider import get_model
from transformers import BertConfig, BertModel

from pytest_neuralpower import load_platform, trace
from pytest_neuralpower.calibrate.fit.card import card_text
from pytest_neuralpower.platform.catalog import list_platforms, load_fitted
from pytest_neuralpower.platform.price import FittedPlatform

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Trace
    from pytest_neuralpower.platform.prediction import LayerPrediction, Prediction

REPOSITORY = Path(__file__).parents[2]
SHIPPED = REPOSITORY / "pytest_neuralpower" / "platforms"

FITTED = [name for name in list_platforms() if isinstance(load_platform(name), FittedPlatform)]

#: Beside what processors were calibrated with, real networks have far more channels; of one image
#: their layers are small for a graphics board.
NETWORKS = ("alexnet", "vgg16", "resnet50", "mobilenet_w1", "densenet121", "efficientnet_b0")
BATCHES = (1, 32)


@pytest.fixture(scope="module")
def calls() -> list[Trace]:
    """One call of each real model, traced on the meta device."""
    with torch.device("meta"):
        found = [
            trace(get_model(name).eval(), torch.empty(batch, 3, 224, 224))
            for name in NETWORKS
            for batch in BATCHES
        ]
        bert: torch.nn.Module = BertModel(BertConfig(num_hidden_layers=2))
        return [*found, trace(bert.eval(), torch.zeros(1, 128, dtype=torch.int64))]


def runtime(found: LayerPrediction | Prediction) -> float:
    """ms; a fitted platform always knows it."""
    assert found.runtime_ms is not None
    return found.runtime_ms


@pytest.mark.parametrize("name", FITTED)
def test_no_layer_of_a_real_model_is_free_or_negative(name: str, calls: list[Trace]) -> None:
    platform = load_fitted(name)
    limit = platform.hardware.get("limit_w", math.inf)
    for call in calls:
        found = platform.predict(call)
        for layer in found.layers:
            assert 0 < runtime(layer) < math.inf, (call.model, layer)
            if layer.power_w is not None and layer.energy_mj is not None:
                assert 0 < layer.power_w <= limit * (1 + 1e-9), (call.model, layer)
                assert 0 < layer.energy_mj < math.inf, (call.model, layer)
        low, high, _ = found.runtime_interval_ms or (0.0, math.inf, 0.0)
        assert 0 <= low <= runtime(found) <= high


@pytest.mark.parametrize("name", FITTED)
def test_more_images_take_longer_and_no_more_than_as_many_calls(
    name: str, calls: list[Trace]
) -> None:
    platform = load_fitted(name)
    for one, many in zip(calls[0:-1:2], calls[1:-1:2], strict=True):
        # Of the device: small calls of both sizes may wait for the host's launches alike.
        single, batch = (platform.predict(call).device_ms or 0.0 for call in (one, many))
        assert single < batch < 1.5 * BATCHES[1] * single, one.model


@pytest.mark.parametrize("name", FITTED)
def test_the_card_is_of_the_shipped_file(name: str) -> None:
    card = (REPOSITORY / "calibration" / name / "README.md").read_text(encoding="utf-8")
    assert card == card_text(load_fitted(name))


@pytest.mark.parametrize("name", FITTED)
def test_a_file_says_its_own_name(name: str) -> None:
    assert f'\n "name": "{name}",\n' in (SHIPPED / f"{name}.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", list_platforms())
def test_a_file_is_small_and_has_no_line_that_a_diff_would_choke_on(name: str) -> None:
    text = (SHIPPED / f"{name}.json").read_text(encoding="utf-8")
    assert len(text) < 750_000
    assert max(map(len, text.splitlines())) < 2_000


@pytest.mark.parametrize("name", FITTED)
def test_what_ships_beats_both_baselines_on_what_it_has_not_seen(name: str) -> None:
    for family, found in load_fitted(name).accuracy["runtime"].items():
        error = found["held_out"][found["chosen"]]["mape"]
        tie = 0.05 if error < 1 else 0.0  # tensors that are only streamed take what it says
        for baseline in found["baselines"].values():
            assert error < baseline["mape"] + tie, family


@pytest.mark.parametrize(("name", "mixed"), [("v100", True), ("titanx-pascal", False)])
def test_a_card_says_by_how_much_the_stacks_of_its_rows_differ(name: str, mixed: bool) -> None:
    found = load_fitted(name).accuracy["intervals"]["runtime"]["conv"]
    factor = found.get("stacks_factor", 0.0)
    text = f"differ: conv by a factor of up to {factor:.2f}"
    assert (text in card_text(load_fitted(name))) is mixed
    assert (factor > 1.1) is mixed
