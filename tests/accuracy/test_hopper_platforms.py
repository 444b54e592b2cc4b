"""The two Hopper platforms: what their files claim, and that every prediction makes sense."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pytest_neuralpower import Layer, load_platform
from pytest_neuralpower.calibrate.fit.card import card_text
from pytest_neuralpower.calibrate.fit.readers import attention_layer
from pytest_neuralpower.calibrate.fit.rows import linear_layer, matmul_layer
from pytest_neuralpower.estimators.features import columns, family
from pytest_neuralpower.estimators.physics import Ceilings, least_ms

REPOSITORY = Path(__file__).parents[2]
NAMES = ["h200", "h100"]


def layers() -> list[Layer]:
    """Products and attention of sizes inside and far outside what was measured."""
    random = np.random.default_rng(0)
    found: list[Layer] = []
    for _ in range(500):
        m, n, k = (int(size) for size in np.exp2(random.uniform(0, 18, 3)))
        found.append(linear_layer(m, k, n, dtype="bfloat16"))
        found.append(matmul_layer((m, k), (k, n), dtype="bfloat16"))
        batch, heads, length = (int(size) for size in np.exp2(random.uniform(0, (9, 7, 18))))
        width = int(random.choice([32, 64, 80, 128, 256, 512]))
        causal = bool(random.integers(2))
        found.append(attention_layer((batch, heads, length, width), heads, causal=causal))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_card_is_of_the_shipped_file(name: str) -> None:
    card = (REPOSITORY / "calibration" / name / "README.md").read_text(encoding="utf-8")
    assert card == card_text(load_platform(name))


@pytest.mark.parametrize("name", NAMES)
def test_every_family_beats_its_baselines_on_held_out_shapes(name: str) -> None:
    found = load_platform(name).accuracy["runtime"]
    assert {"linear", "matmul", "attention"} <= set(found)
    for each in found.values():
        held_out = each["held_out"][each["chosen"]]["mape"]
        assert held_out < 6
        assert all(held_out < score["mape"] / 2 for score in each["baselines"].values())


@pytest.mark.parametrize("name", NAMES)
def test_the_intervals_hold_what_they_promise_of_unseen_shapes(name: str) -> None:
    found = load_platform(name).accuracy["intervals"]
    for quantity in ("runtime", "power", "energy"):
        for each in found.get(quantity, {}).values():
            assert 85 <= each["shapes_percent"] <= 95


def test_the_h200_learns_power_from_its_rows_and_the_h100_has_none() -> None:
    h200, h100 = map(load_platform, NAMES)
    assert h200.tiers["power"] == "public"
    assert h100.tiers["power"] == "transferred"
    assert all(each.power or each.energy for each in h200.families.values())
    # Its energy errs less than power times runtime.
    assert h200.families["linear"].energy is not None
    assert not any(each.power or each.energy for each in h100.families.values())


@pytest.mark.parametrize("name", NAMES)
def test_no_prediction_is_negative_nor_beyond_what_the_board_does(name: str) -> None:
    platform = load_platform(name)
    peak, limit = platform.hardware["peak_gflops"] * 1e6, platform.hardware["limit_w"]
    for each in platform.predict(layers()).layers:
        assert each.runtime_ms is not None
        assert each.energy_mj is not None
        assert each.power_w is not None
        name = family(each.layer)
        least = least_ms(name, columns(name, [each.layer]), Ceilings.of(platform.hardware))
        assert each.runtime_ms >= least[0] * (1 - 1e-9)
        # A causal mask skips half of the operations that are counted.
        counted = each.layer.cost.flops / (2 if each.layer.param("causal", False) else 1)
        assert counted / each.runtime_ms <= 1.001 * peak
        assert 60 < each.power_w <= 1.01 * limit
        assert each.energy_mj == pytest.approx(each.power_w * each.runtime_ms)


@pytest.mark.parametrize("name", NAMES)
def test_transformers_get_joules_that_rest_mostly_on_measured_kinds(name: str) -> None:
    pytest.importorskip("transformers")
    from hopper_transformers import CALLS, predicted

    for call in CALLS:
        small, large = (predicted(call, batch, name) for batch in call.batches)
        assert small.energy_mj is not None
        assert large.energy_mj is not None
        more = call.batches[1] / call.batches[0]
        assert small.energy_mj < large.energy_mj < 1.1 * more * small.energy_mj
        assert large.share("inferred", "uncovered") < 0.35
        assert not large.share("uncovered") > 0.01
