"""Calls that wait for their host: what launching layers takes, and what that does to intervals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from msgspec.structs import replace
from torch import nn

from pytest_neuralpower import trace
from pytest_neuralpower.calibrate.fit.datasheet import EAGER, datasheet_platform
from pytest_neuralpower.calibrate.fit.recipe import read_recipe
from pytest_neuralpower.estimators import Utilization
from pytest_neuralpower.guard.baseline import baseline_of, baseline_text, parse_baseline
from pytest_neuralpower.guard.compare import compare
from pytest_neuralpower.platform.catalog import load_fitted
from pytest_neuralpower.platform.differences import difference_interval, ratio_interval
from pytest_neuralpower.platform.prediction import Host
from pytest_neuralpower.report.records import prediction_record
from pytest_neuralpower.report.terminal import prediction_text

if TYPE_CHECKING:
    from pytest_neuralpower.platform.prediction import Prediction
    from pytest_neuralpower.platform.price import FittedPlatform


@pytest.fixture(scope="module")
def titan() -> FittedPlatform:
    """A Titan RTX with a power model: 80 W at rest."""
    found = datasheet_platform("titan-rtx")
    load = {"base": 80.0, "compute": 120.0, "bandwidth": 60.0}
    ceilings = found.hardware["peak_gflops"], found.hardware["bandwidth_gbs"]
    power = Utilization(*ceilings, limit_w=280.0, load_=load)
    intervals = found.intervals
    assert intervals is not None
    intervals = replace(intervals, power=replace(intervals.runtime, families={}, model_error=0.1))
    return replace(found, power=power, intervals=intervals, sha256="1" * 64)


def call(platform: FittedPlatform, blocks: int, batch: int) -> Prediction:
    layers = [
        nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        for _ in range(blocks)
    ]
    model = nn.Sequential(*layers).eval()
    return platform.predict(trace(model, torch.empty(batch, 32, 32, 32, device="meta")))


def test_a_small_call_takes_what_launching_its_layers_takes(titan: FittedPlatform) -> None:
    one, thirty_two = call(titan, 20, 1), call(titan, 20, 16)
    assert one.device_ms is not None
    assert one.device_ms < thirty_two.device_ms < one.host_ms
    assert one.runtime_ms == thirty_two.runtime_ms == pytest.approx(60 * EAGER.layer_ms)


def test_a_large_call_takes_what_its_device_takes(titan: FittedPlatform) -> None:
    large = call(titan, 20, 2048)
    assert large.runtime_ms == large.device_ms
    assert large.runtime_ms > large.host_ms
    assert not any("host-bound" in note for note in large.notes)


def test_waiting_draws_what_the_board_draws_at_rest(titan: FittedPlatform) -> None:
    small = call(titan, 20, 1)
    layers = sum(layer.energy_mj for layer in small.layers)
    waiting = small.host_ms - small.device_ms
    assert small.energy_mj == pytest.approx(layers + 80.0 * waiting)
    assert 80.0 < small.power_w < layers / small.device_ms


def test_intervals_know_the_factor_of_the_host(titan: FittedPlatform) -> None:
    small = call(titan, 20, 1)
    low, high, _ = small.runtime_interval_ms
    assert low == pytest.approx(small.host_ms / 1.5)
    assert high == pytest.approx(small.host_ms * 1.5)
    for value, interval in (
        (small.energy_mj, small.energy_interval_mj),
        (small.power_w, small.power_interval_w),
    ):
        assert interval.low < value < interval.high


def test_a_host_that_may_or_may_not_bind_widens_the_interval_to_the_slower(
    titan: FittedPlatform,
) -> None:
    near = call(titan, 20, 32)
    device = near.errors.total("runtime")
    assert device[0] < near.host_ms < device[1]
    low, high, _ = near.runtime_interval_ms
    assert (low, high) == (
        max(device[0], near.host_ms / 1.5),
        max(device[1], near.host_ms * 1.5),
    )


@pytest.mark.parametrize("batches", [(1, 2), (64, 96), (64, 512), (2048, 4096)])
@pytest.mark.parametrize("quantity", ["runtime", "energy", "power"])
def test_differences_and_ratios_hold_their_points(
    titan: FittedPlatform, batches: tuple[int, int], quantity: str
) -> None:
    base, head = (call(titan, 20, batch) for batch in batches)
    name = {"runtime": "runtime_ms", "energy": "energy_mj", "power": "power_w"}[quantity]
    before, after = getattr(base, name), getattr(head, name)
    change = difference_interval(base, head, quantity)
    ratio = ratio_interval(base, head, quantity)
    assert change.low <= after - before <= change.high
    assert ratio.low <= after / before * (1 + 1e-12)
    assert after / before <= ratio.high * (1 + 1e-12)


def test_twice_the_layers_take_a_waiting_call_twice_the_time_for_sure(
    titan: FittedPlatform,
) -> None:
    base, head = call(titan, 10, 1), call(titan, 20, 1)
    assert ratio_interval(base, head, "runtime")[:2] == (2.0, 2.0)
    low, high, _ = difference_interval(base, head, "runtime")
    assert (low, high) == pytest.approx((base.host_ms / 1.5, base.host_ms * 1.5))


def test_a_note_says_so_in_one_line_and_json_has_both_times(titan: FittedPlatform) -> None:
    small = call(titan, 20, 1)
    lines = [line for line in prediction_text(small, 3).splitlines() if "host-bound" in line]
    assert len(lines) == 1
    assert "host-bound: launching 60 operations takes 2.28 ms, the device would need" in lines[0]
    record = prediction_record(small)
    assert record["host_ms"] == small.host_ms
    assert record["device_ms"] == small.device_ms
    assert record["runtime_ms"] == small.runtime_ms


def test_a_baseline_keeps_what_the_call_waited_for(titan: FittedPlatform) -> None:
    small = call(titan, 20, 1)
    stored = parse_baseline(baseline_text(baseline_of(small, test="t", torch="2")), "t.yaml")
    assert stored.totals.runtime_ms == pytest.approx(small.runtime_ms)
    assert stored.totals.energy_mj == pytest.approx(small.energy_mj, 1e-5)
    found = compare(stored, call(titan, 20, 2), titan)
    assert found.runtime.base == found.runtime.head == small.runtime_ms
    assert found.layers  # the device does more, the call takes no longer


def test_a_platform_file_keeps_its_host(titan: FittedPlatform, tmp_path: Path) -> None:
    titan.save(tmp_path / "mine.json")
    assert load_fitted(tmp_path / "mine.json").host == EAGER


def test_a_mode_without_a_host_sums_its_layers(titan: FittedPlatform) -> None:
    small = call(replace(titan, host=None), 20, 1)
    assert small.runtime_ms == small.device_ms
    assert small.host_ms is None
    assert "host_ms" not in prediction_record(small)


@pytest.mark.parametrize("name", ["a100", "p100", "v100", "t4", "p4"])
def test_recipes_of_eager_gpus_wait_for_their_host(name: str) -> None:
    recipe = read_recipe(Path("calibration") / name)
    assert recipe.host == EAGER
    assert "calls wait for the host's launches" in recipe.mode


def test_a_host_that_tells_kinds_apart_counts_each_launch_as_its_own(titan: FittedPlatform) -> None:
    host = Host(layer_ms=0.03, kinds={"conv": 2.0, "activation": 0.5})
    platform = replace(titan, host=host)
    base, head = call(platform, 10, 1), call(platform, 20, 1)
    # A convolution, a norm (which is not told apart) and an activation a block.
    assert head.runtime_ms == head.host_ms == pytest.approx(20 * 0.03 * (2.0 + 1.0 + 0.5))
    assert head.runtime_interval_ms[:2] == pytest.approx((head.host_ms / 1.5, head.host_ms * 1.5))
    assert ratio_interval(base, head, "runtime")[:2] == pytest.approx((2.0, 2.0))
    low, high, _ = difference_interval(base, head, "runtime")
    assert (low, high) == pytest.approx((base.host_ms / 1.5, base.host_ms * 1.5))
    stored = parse_baseline(baseline_text(baseline_of(head, test="t", torch="2")), "t.yaml")
    assert stored.host == head.host
    assert stored.totals.runtime_ms == pytest.approx(head.runtime_ms)
    assert stored.totals.energy_mj == pytest.approx(head.energy_mj, 1e-5)
