"""Predictions by the NeuralPower paper's estimators, beside those by the chosen ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from torch import nn

from pytest_neuralpower import PlatformError, load_platform, predict, trace
from pytest_neuralpower.calibrate.fit.rows import conv_layer
from pytest_neuralpower.estimators import NeuralPowerPolynomial
from pytest_neuralpower.guard.baseline import baseline_of, baseline_text, parse_baseline
from pytest_neuralpower.guard.compare import compare
from pytest_neuralpower.platform.catalog import priced_by
from pytest_neuralpower.platform.price import FittedPlatform, PaperModel
from pytest_neuralpower.report.compare import changes_text
from pytest_neuralpower.report.explain import explain_text

MODEL = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2))
IMAGE = torch.empty(4, 3, 32, 32, device="meta")


@pytest.fixture
def both(platform: FittedPlatform) -> FittedPlatform:
    """The toy, with the paper's estimators of conv: 0.5 ms + 1 ms an output row; 90 W a channel."""
    paper = PaperModel(
        NeuralPowerPolynomial("conv", degree_=1, intercept_=0.5, coefficients_={"oh.1": 1.0}),
        NeuralPowerPolynomial("conv", "power", degree_=1, coefficients_={"cin.4": 90.0}),
        (60.0, 250.0),
    )
    conv = replace(platform.families["conv"], neuralpower=paper)
    return replace(platform, families={**platform.families, "conv": conv})


def test_the_paper_prices_what_it_can_and_notes_say_what(both: FittedPlatform) -> None:
    best = predict(MODEL, IMAGE, platform=both)
    paper = predict(MODEL, IMAGE, platform=both, estimator="neuralpower")
    conv, relu, pool = paper.layers
    assert conv.runtime_ms == 30.5  # 30 output rows
    assert conv.power_w == 250  # three channels, within what was measured
    assert conv.estimator == "neuralpower"
    assert [each.runtime_ms for each in (relu, pool)] == [
        each.runtime_ms for each in best.layers[1:]
    ]
    assert paper.notes[-1] == (
        "estimator neuralpower prices conv; best prices activation, pool; no intervals"
    )
    assert not any("neuralpower" in note for note in best.notes)


def test_such_a_prediction_is_told_from_the_usual_one(both: FittedPlatform) -> None:
    best = predict(MODEL, IMAGE, platform=both, estimator="best")
    paper = predict(MODEL, IMAGE, platform=both, estimator="neuralpower")
    assert (best.estimator, paper.estimator) == ("best", "neuralpower")
    assert best.platform_sha256 == both.sha256 != paper.platform_sha256
    assert best.runtime_interval_ms is not None
    assert paper.runtime_interval_ms is None  # those known are of the chosen estimators
    again = predict(MODEL, IMAGE, platform=both.by_neuralpower())
    assert again.platform_sha256 == paper.platform_sha256


def test_a_layer_of_which_the_polynomial_is_negative_takes_the_floor(both: FittedPlatform) -> None:
    conv = both.families["conv"]
    assert conv.neuralpower is not None
    falling = replace(conv.neuralpower.runtime, coefficients_={"oh.1": -1.0})
    measured = replace(falling, floor_=0.02)
    layer = conv_layer((1, 3, 32, 32), cout=8, kernel=(3, 3), stride=(1, 1), padding=(0, 0))
    for runtime, floor in ((falling, 0.105), (measured, 0.02)):
        paper = replace(conv.neuralpower, runtime=runtime)
        families = {**both.families, "conv": replace(conv, neuralpower=paper)}
        found = replace(both, families=families).by_neuralpower().predict([layer])
        assert found.runtime_ms == floor


def test_power_without_rows_is_that_of_all_layers(both: FittedPlatform) -> None:
    conv = both.families["conv"]
    assert conv.neuralpower is not None
    runtime_alone = PaperModel(conv.neuralpower.runtime)
    families = {**both.families, "conv": replace(conv, neuralpower=runtime_alone)}
    platform = replace(both, families=families).by_neuralpower()
    layer = conv_layer((1, 3, 32, 32), cout=8, kernel=(3, 3), stride=(1, 1), padding=(0, 0))
    assert platform.predict([layer]).power_w == pytest.approx(50, rel=0.01)  # hardly busy


def test_a_platform_without_the_papers_estimators_says_so(platform: FittedPlatform) -> None:
    with pytest.raises(PlatformError, match="toy has no estimators of the NeuralPower paper"):
        priced_by(platform, "neuralpower")
    with pytest.raises(PlatformError, match="eyeriss has no fitted estimators"):
        priced_by(load_platform("eyeriss"), "neuralpower")
    with pytest.raises(PlatformError, match="estimator='lasso': allowed: best, neuralpower"):
        predict(MODEL, IMAGE, platform=platform, estimator="lasso")


def test_the_file_keeps_both_and_nothing_of_the_choice(
    both: FittedPlatform, tmp_path: Path
) -> None:
    saved = both.save(tmp_path / "toy.json")
    loaded = load_platform(tmp_path / "toy.json")
    assert isinstance(loaded, FittedPlatform)
    assert loaded.estimator == saved.estimator == "best"
    values = [
        predict(MODEL, IMAGE, platform=each, estimator="neuralpower").runtime_ms
        for each in (both, loaded, str(tmp_path / "toy.json"))
    ]
    assert values[0] == values[1] == values[2]


def test_explain_shows_both(both: FittedPlatform) -> None:
    text = explain_text(both, "conv")
    assert "runtime_ms, by physical" in text
    chosen, paper = text.split(
        "the NeuralPower paper's, which --estimator=neuralpower predicts by:"
    )
    assert "runtime_ms = 0.5\n             + 1 * oh\n  at least 0.105" in paper
    assert "power_w = 0\n          + 90 * cin\n  power_w, from 60 to 250" in paper
    assert "90 * cin" not in chosen
    assert "90 * cin" in explain_text(both.by_neuralpower(), "conv")


def test_a_baseline_of_one_is_judged_by_the_other_in_the_open(both: FittedPlatform) -> None:
    layers = trace(MODEL, IMAGE)
    best, paper = both.predict(layers), both.by_neuralpower().predict(layers)
    accepted = baseline_of(best, test="t", torch="2")
    assert "estimator" not in baseline_text(accepted)
    found = compare(accepted, paper, both.by_neuralpower())
    assert found.estimators == ("best", "neuralpower")
    assert found.recalibrated
    assert found.runtime is not None
    assert found.runtime.base == found.runtime.head == paper.runtime_ms
    assert found.runtime.stored == pytest.approx(best.runtime_ms, rel=1e-5)
    assert "accepted with estimator best and is predicted again with neuralpower" in changes_text(
        found, top=3
    )


def test_a_baseline_says_what_it_was_accepted_with(both: FittedPlatform) -> None:
    paper = both.by_neuralpower().predict(trace(MODEL, IMAGE))
    text = baseline_text(baseline_of(paper, test="t", torch="2"))
    assert "\nestimator: " in text
    read = parse_baseline(text, "t.yaml")
    assert read.estimator == "neuralpower"
    found = compare(read, both.predict(trace(MODEL, IMAGE)), both)
    assert found.estimators == ("neuralpower", "best")
