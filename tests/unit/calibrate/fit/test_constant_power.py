"""Energy from a wattage that the user gave is called estimated wherever it is shown."""

from __future__ import annotations

import pytest
from flat_priors import flat_priors
from msgspec import structs

from pytest_neuralpower.calibrate.fit.power import constant_power
from pytest_neuralpower.calibrate.fit.recipe import Power, Recipe
from pytest_neuralpower.calibrate.fit.rows import conv_layer
from pytest_neuralpower.errors import ProfileError
from pytest_neuralpower.guard.finding import Finding
from pytest_neuralpower.platform.price import FittedPlatform
from pytest_neuralpower.report.terminal import prediction_text, summary_lines

CONV = conv_layer((1, 3, 32, 32), cout=8, kernel=(3, 3), stride=(1, 1), padding=(1, 1))
TIERS = {"runtime": "measured", "power": "estimated"}
HARDWARE = {"peak_gflops": 100.0, "bandwidth_gbs": 10.0}
RECIPE = Recipe("toy", "eager", "Toy", hardware=HARDWARE, tiers=TIERS, power=Power(watts=65))
BARE = FittedPlatform(
    "toy", "Toy", "float32", "eager", TIERS, HARDWARE, {}, flat_priors(HARDWARE), None
)


def test_every_layer_draws_the_watts() -> None:
    found = constant_power(BARE, RECIPE).predict([CONV, CONV])
    assert found.power_w == pytest.approx(65)
    assert found.energy_mj == pytest.approx(65 * found.runtime_ms)


def test_the_text_of_a_prediction_says_estimated() -> None:
    text = prediction_text(constant_power(BARE, RECIPE).predict([CONV]), top=1)
    assert "estimated energy: the watts that the user gave, times the runtime" in text
    assert "power and energy: estimated from the watts that the user gave, not measured" in text


def test_a_line_of_the_summary_says_estimated() -> None:
    finding = Finding(
        name="t", test="t.py::test", platform="toy", platform_sha256="", model="Toy", batch=1,
        energy_mj=65.0, runtime_ms=1.0, power_w=65.0,
    )  # fmt: skip
    (measured,) = summary_lines([finding])
    (estimated,) = summary_lines([structs.replace(finding, estimated_power=True)])
    assert "estimated" not in measured
    assert "65.0 mJ estimated" in estimated
    assert "65.0 W estimated" in estimated


def test_a_recipe_cannot_call_it_measured() -> None:
    recipe = structs.replace(RECIPE, tiers={"power": "measured"})
    with pytest.raises(ProfileError, match="65 W was not measured; write tiers"):
        constant_power(BARE, recipe)
