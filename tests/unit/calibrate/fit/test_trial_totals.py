"""How far whole calls are from the sum of their layers, learnt of measured networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest
from msgspec.structs import replace

from pytest_neuralpower.calibrate.fit.rows import NetworkRow, Row, linear_layer
from pytest_neuralpower.calibrate.fit.uncertainty import learn_totals
from pytest_neuralpower.platform.catalog import load_fitted
from pytest_neuralpower.platform.intervals import Intervals, QuantitySpreads, Spread

if TYPE_CHECKING:
    from pytest_neuralpower.platform.price import FittedPlatform


def networks(platform: FittedPlatform, off: Sequence[float], *, depth: int = 8) -> list[NetworkRow]:
    """Networks whose times lie so far (log) from their layers' sum, one for each of ``off``."""
    random = np.random.default_rng(0)
    found = []
    for number, distance in enumerate(off):
        layers = [linear_layer(64, *map(int, random.integers(256, 2048, 2))) for _ in range(depth)]
        whole = platform.predict(layers).runtime_ms
        assert whole is not None
        rows = tuple((Row(layer, 1.0, None, line), 1) for line, layer in enumerate(layers))
        found.append(NetworkRow(f"network {number}", whole * np.exp(distance), None, rows))
    return found


def correlations(platform: FittedPlatform) -> dict[str, float]:
    assert platform.intervals is not None
    families = platform.intervals.runtime.families
    return {name: spread.correlation for name, spread in families.items()}


@pytest.mark.parametrize("spread", [0.001, 0.5])
def test_errors_of_layers_are_in_common_no_more_than_networks_show(spread: float) -> None:
    platform = load_fitted("titanx")
    off = np.random.default_rng(0).normal(0, spread, 12).tolist()
    learnt = learn_totals(platform, {}, networks(platform, off))
    assert learnt.accuracy["intervals"]["trials"]["networks"] == 12
    before, after = correlations(platform), correlations(learnt)
    if spread < 0.01:
        assert set(after.values()) == {0.0}
    else:
        assert after == before


@pytest.mark.parametrize(("count", "common"), [(12, True), (18, True), (19, False)])
def test_one_network_far_off_counts_until_nine_tenths_of_one_more_are_held(
    count: int, common: bool
) -> None:
    """90% of the networks and one unseen: 11.7 of 12 and 17.1 of 18, but 18 of 19 will do."""
    platform = load_fitted("titanx")
    learnt = learn_totals(platform, {}, networks(platform, [3.0, *[0.0] * (count - 1)]))
    expected = correlations(platform) if common else dict.fromkeys(correlations(platform), 0.0)
    assert correlations(learnt) == expected


@pytest.mark.parametrize(("farthest", "whole", "inside"), [(1.2, 1.162, 9), (0.25, 0.0, 10)])
def test_what_networks_err_by_beyond_their_layers_is_the_error_of_the_whole(
    farthest: float, whole: float, inside: int
) -> None:
    """Ten networks of one layer, each layer 90% sure within a factor of e^0.3.

    Of ten distances the conformal one is the largest: of 1.2, sqrt(1.44 - 0.09) is beyond the
    layers'; of 0.25 nothing is. Made without the farthest, an interval of 1.08 does not hold it;
    one of the layers' own 0.3 does.
    """
    own = Intervals(0.9, QuantitySpreads({"linear": Spread(0.3, 0.3, 0.5)}, None))
    platform = replace(load_fitted("titanx"), intervals=own)
    off = np.linspace(0.1, 1.0, 10) * farthest
    learnt = learn_totals(platform, {}, networks(platform, off.tolist(), depth=1))
    assert learnt.intervals is not None
    assert learnt.intervals.runtime.model_error == pytest.approx(whole, abs=5e-4)
    assert learnt.accuracy["intervals"]["trials"]["inside"] == inside
