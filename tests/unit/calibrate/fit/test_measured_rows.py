"""Rows of trials: passes merged at one speed, and what timing adds to every call taken off."""

from __future__ import annotations

import pytest

from pytest_neuralpower.calibrate.fit.rows import (
    Measurement,
    Row,
    layer_rows,
    linear_layer,
    network_rows,
    streaming_layer,
)

SHAPE = (1, 8)
WHOLE = streaming_layer("network", "plain", [SHAPE], SHAPE)


def measured(
    network: str,
    index: int,
    runtime_ms: float,
    *,
    calls: int = 1,
    pass_: int = 1,
    probe: float = 1.0,
) -> Measurement:
    """A layer, or with the index -1 the whole."""
    layer = WHOLE if index < 0 else linear_layer(4 + index, 8, 8)
    return Measurement(
        row=Row(layer, runtime_ms), trial=f"{network}/{pass_}", what="network", network=network,
        seed=0, index=index, calls=calls, pass_=pass_, probe_ms=probe,
    )  # fmt: skip


def network(name: str, layers: list[float], *, added: float) -> list[Measurement]:
    """A network of these layers, each timed ``added`` ms too long."""
    rows = [measured(name, index, each + added) for index, each in enumerate(layers)]
    return [*rows, measured(name, -1, sum(layers), calls=len(layers))]


@pytest.mark.parametrize("added", [0.05, 0.0, -0.02])
def test_layers_sum_to_their_networks(added: float) -> None:
    measurements = [
        *network("n1", [1.0, 2.0, 3.0], added=added),
        *network("n2", [0.5] * 8, added=added),
        *network("n3", [10.0], added=added),
    ]
    for found in network_rows(measurements):
        assert sum(row.runtime_ms for row, _ in found.layers) == pytest.approx(found.runtime_ms)


def test_one_network_that_is_off_does_not_change_the_others() -> None:
    measurements = [
        *network("n1", [1.0, 2.0, 3.0], added=0.05),
        *network("n2", [0.5] * 8, added=0.05),
        *network("n3", [0.7] * 4, added=0.05),
        *network("off", [1.0], added=0.9),
    ]
    assert layer_rows(measurements)[0].runtime_ms == pytest.approx(1.0)


def test_a_short_layer_keeps_half_of_its_time() -> None:
    measurements = [*network("n1", [0.01, 5.0], added=0.2), *network("n2", [1.0] * 4, added=0.2)]
    assert layer_rows(measurements)[0].runtime_ms == pytest.approx(0.21 / 2)


def test_passes_count_at_the_usual_speed() -> None:
    """The processor was twice as slow in the second pass, and said so."""
    passes = [(1, 1.0, 4.0), (2, 2.0, 8.0), (3, 1.0, 4.0)]
    measurements = [
        measured("n1", index, runtime_ms, pass_=number, probe=probe)
        for number, probe, runtime_ms in passes
        for index in (0, -1)
    ]
    (found,) = network_rows(measurements)
    assert found.runtime_ms == pytest.approx(4.0)
    assert found.layers[0][0].runtime_ms == pytest.approx(4.0)
