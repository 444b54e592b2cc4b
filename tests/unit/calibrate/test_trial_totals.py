"""How far whole calls are from the sum of their layers, learnt of measured networks."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_neuralpower.calibrate.measured_rows import NetworkRow
from pytest_neuralpower.calibrate.rows import Row, linear_layer
from pytest_neuralpower.calibrate.trial_totals import learn_totals
from pytest_neuralpower.platform import Platform, load_fitted


def networks(platform: Platform, *, spread: float) -> list[NetworkRow]:
    """Twelve networks whose times lie so far (log) from their layers' sum."""
    random = np.random.default_rng(0)
    found = []
    for number in range(12):
        layers = [linear_layer(64, *map(int, random.integers(256, 2048, 2))) for _ in range(8)]
        whole = platform.predict(layers).runtime_ms
        assert whole is not None
        rows = tuple((Row(layer, 1.0, None, line), 1) for line, layer in enumerate(layers))
        time = whole * float(np.exp(random.normal(0, spread)))
        found.append(NetworkRow(f"network {number}", time, None, rows))
    return found


def correlations(platform: Platform) -> dict[str, float]:
    assert platform.intervals is not None
    families = platform.intervals.runtime.families
    return {name: spread.correlation for name, spread in families.items()}


@pytest.mark.parametrize("spread", [0.001, 0.5])
def test_errors_of_layers_are_in_common_no_more_than_networks_show(spread: float) -> None:
    platform = load_fitted("titanx")
    learnt = learn_totals(platform, {}, networks(platform, spread=spread))
    assert learnt.accuracy["intervals"]["trials"]["networks"] == 12
    before, after = correlations(platform), correlations(learnt)
    if spread < 0.01:
        assert set(after.values()) == {0.0}
    else:
        assert after == before
