"""Power of boards without a meter, by those that had one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pytest_neuralpower.calibrate.fit.datasheet import datasheet_platform
from pytest_neuralpower.calibrate.fit.devices import find_device
from pytest_neuralpower.calibrate.fit.power_prior import (
    _PAUSES_MS,
    MeteredBoard,
    PowerPrior,
    _Metered,
    fit_power_prior,
    read_metered,
)
from pytest_neuralpower.calibrate.fit.prior import power_prior_for

TRUE = PowerPrior(base=0.6, tensor_pj=1.5, byte_pj=30.0)


def board(name: str, prior: PowerPrior = TRUE) -> MeteredBoard:
    """A board whose layers draw what a prior says."""
    device = find_device(name)
    hardware = device.hardware("bfloat16")
    random = np.random.default_rng(0)
    compute, traffic = random.uniform(0, 1, (2, 200))
    runtime = random.uniform(0.5, 5, 200)
    model = prior.on(hardware, device.peaks_gflops, "bfloat16")
    asleep = -prior.base * _PAUSES_MS / (runtime + _PAUSES_MS)
    watts = model.predict_utilization(compute, traffic, more=asleep)
    table = _Metered(compute, traffic, runtime, watts)
    return MeteredBoard(device.device, "bfloat16", hardware, device.peaks_gflops, (table,))


def test_finds_what_boards_draw_and_predicts_the_one_left_out() -> None:
    found = fit_power_prior([board("h200"), board("b200"), board("l40s")])
    assert (found.base, found.tensor_pj, found.byte_pj) == pytest.approx((0.6, 1.5, 30), rel=0.01)
    assert max(found.left_out.values()) < 2
    assert found.factor < 1.05


def test_a_board_that_draws_more_than_the_others_shows_where_it_is_left_out() -> None:
    greedy = board("l40s", PowerPrior(base=1.2, tensor_pj=3.0, byte_pj=60.0))
    boards = [board("h200"), board("b200"), greedy]
    found = fit_power_prior(boards)
    assert found.left_out[greedy.device] > 15
    assert found.factor > 1.2
    assert greedy.device not in fit_power_prior(boards, without=greedy.device).left_out


@pytest.mark.parametrize("name", ["rtx4090", "t4", "gb200", "a10"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_no_board_draws_less_than_at_rest_nor_more_than_its_limit(name: str, dtype: str) -> None:
    device = find_device(name)
    prior = power_prior_for("", calibration=Path("calibration"), data_root=None)
    model = prior.on(device.hardware(dtype), device.peaks_gflops, dtype)
    busy = np.array([0.0, 0.5, 1.0])
    watts = model.predict_utilization(busy, busy)
    assert device.hardware(dtype)["idle_w"] < model.waiting_w < watts[0]
    assert watts[0] < watts[1] < watts[2] <= device.limit_w


def test_a_datasheet_has_the_power_of_other_boards() -> None:
    platform = datasheet_platform("rtx4090", dtype="float16")
    assert platform.tiers == {"runtime": "datasheet", "power": "transferred"}
    assert platform.accuracy["power"]["mape"] <= 15
    assert platform.intervals is not None
    assert platform.intervals.power is not None


def test_the_shipped_prior_is_what_the_public_tables_say() -> None:
    data = Path("../shared/data")
    if not data.is_dir():
        pytest.skip("the public tables are not at ../shared/data")
    found = fit_power_prior(read_metered(Path("calibration"), data))
    shipped = power_prior_for("", calibration=Path("calibration"), data_root=None)
    assert found.byte_pj == pytest.approx(shipped.byte_pj, rel=0.01)
    assert found.left_out == pytest.approx(shipped.left_out, rel=0.02)
    assert float(np.mean(list(found.left_out.values()))) <= 15
