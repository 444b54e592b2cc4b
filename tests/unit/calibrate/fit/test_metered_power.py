"""Power of all kinds of layers, learnt from the few that ran alone under a meter."""

from __future__ import annotations

from dataclasses import replace

import pytest
from flat_priors import flat_priors

from pytest_neuralpower.calibrate.fit.power import metered_power
from pytest_neuralpower.calibrate.fit.rows import NetworkRow, Row, matmul_layer, streaming_layer
from pytest_neuralpower.platform.price import FittedPlatform

PEAK, BANDWIDTH = 1000.0, 100.0
HARDWARE = {"peak_gflops": PEAK, "bandwidth_gbs": BANDWIDTH}
BARE = FittedPlatform(
    "toy", "Toy", "float32", "eager", {"runtime": "measured", "power": "measured"},
    HARDWARE, {}, flat_priors(HARDWARE), None,
)  # fmt: skip


def watts(compute: float, traffic: float) -> float:
    """A device that draws 50 W, and up to 200 W and 100 W more."""
    return 50 + 200 * compute + 100 * traffic


def row(size: int, share: float, *, known: bool = True) -> Row:
    """A product that keeps ``share`` of the compute busy, and what else follows from it."""
    layer = matmul_layer((size, size), (size, size))
    runtime_ms = layer.cost.flops / (share * PEAK * 1e6)
    traffic = layer.cost.bytes_moved / (runtime_ms * BANDWIDTH * 1e6)
    return Row(layer, runtime_ms, watts(share, traffic) if known else None)


def copy(count: int, share: float) -> Row:
    layer = streaming_layer("activation", "relu", [(count,)], (count,))
    runtime_ms = layer.cost.bytes_moved / (share * BANDWIDTH * 1e6)
    compute = layer.cost.flops / (runtime_ms * PEAK * 1e6)
    return Row(layer, runtime_ms, watts(compute, share))


ROWS = [row(256 * n, 0.1 * n) for n in range(2, 8)] + [copy(10**n, 0.12 * n) for n in range(5, 8)]


def network(name: str, *rows: Row, power_w: float | None = None) -> NetworkRow:
    return NetworkRow(
        name, sum(each.runtime_ms for each in rows), power_w, tuple((r, 1) for r in rows)
    )


def test_the_law_that_the_readings_follow_is_found() -> None:
    found = metered_power(BARE, [network(f"n{i}", each) for i, each in enumerate(ROWS)])
    unseen = row(900, 0.45)
    prediction = found.predict([unseen.layer])
    assert found.power.load_ == pytest.approx(
        {"base": 50, "compute": 200, "bandwidth": 100}, rel=1e-3
    )
    assert prediction.power_w is not None
    assert found.accuracy["power"]["leave_one_network_out"]["mape"] < 0.5
    assert len(found.accuracy["power"]["networks"]) == len(ROWS)


def test_a_whole_network_draws_what_its_layers_do_weighted_by_time() -> None:
    long, short = row(1024, 0.6), copy(10**5, 0.6)
    total = long.runtime_ms + short.runtime_ms
    mean = (long.power_w * long.runtime_ms + short.power_w * short.runtime_ms) / total
    pair = network("pair", replace(long, power_w=None), replace(short, power_w=None), power_w=mean)
    found = metered_power(BARE, [*(network(f"n{i}", each) for i, each in enumerate(ROWS)), pair])
    reading = found.accuracy["power"]["networks"]["pair"]
    assert reading["held_out_w"] == pytest.approx(reading["measured_w"], rel=1e-3)


@pytest.mark.parametrize("known", [False, True])
def test_of_too_few_readings_no_power_is_claimed(known: bool) -> None:
    found = metered_power(BARE, [network("n0", row(512, 0.5, known=known))])
    assert found.power is None
    assert dict(found.tiers) == {"runtime": "measured"}
