"""Power from the utilization of compute and bandwidth."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_neuralpower.errors import FitError
from pytest_neuralpower.estimators import Utilization

HARDWARE = {"peak_gflops": 1000.0, "bandwidth_gbs": 100.0}


def columns(compute: float, traffic: float) -> dict[str, np.ndarray]:
    """One layer of 1 ms that keeps these shares of the device busy."""
    return {
        "flops": np.array([compute * 1e9]),
        "bytes_moved": np.array([traffic * 1e8]),
        "runtime_ms": np.ones(1),
    }


def test_recovers_the_watts_of_each_share() -> None:
    random = np.random.default_rng(0)
    compute, traffic = random.uniform(0, 1, 30), random.uniform(0, 1, 30)
    model = Utilization(**HARDWARE, limit_w=300.0)
    model.fit_utilization(compute, traffic, 40 + 150 * compute + 30 * traffic)
    assert model.load_ == pytest.approx({"base": 40, "compute": 150, "bandwidth": 30})
    assert model.predict(columns(0.5, 0.2))[0] == pytest.approx(40 + 75 + 6)


def test_no_term_is_negative_or_above_what_the_board_may_draw() -> None:
    compute = np.array([0.1, 0.2, 0.3, 0.4])
    traffic = np.array([0.4, 0.3, 0.2, 0.05])
    model = Utilization(**HARDWARE, limit_w=250.0, fixed={"base": 15.0})
    model.fit_utilization(compute, traffic, 10 + 2000 * traffic)
    assert model.load_["base"] == 15.0
    assert 0 <= model.load_["compute"] <= 235.0
    assert model.load_["bandwidth"] == pytest.approx(235.0, rel=1e-6)


def test_the_board_s_limit_and_a_full_share_bound_the_power() -> None:
    load = {"base": 60.0, "compute": 150.0, "bandwidth": 100.0}
    model = Utilization(**HARDWARE, limit_w=250.0, load_=load)
    # Winograd and FFT are credited with more operations than they do: above the peak is the peak.
    assert model.predict(columns(1.5, 0.0)).tolist() == [210.0]
    assert model.predict(columns(1.0, 1.0)).tolist() == [250.0]


def test_a_causal_attention_keeps_the_device_busy_with_the_scores_it_computes() -> None:
    model = Utilization(**HARDWARE, idle_w=20.0, limit_w=250.0)
    model.load_ = {"base": 0.0, "compute": 2 * np.log(2), "bandwidth": 0.0}
    whole = columns(1.0, 0.0)
    # 230 W x (1 - 1/4) above idle at a full share, x (1 - 1/2) at half of it.
    assert model.predict(whole) == pytest.approx([192.5])
    assert model.predict({**whole, "scored_flops": whole["flops"] / 2}) == pytest.approx([135.0])


def test_fewer_measurements_than_free_terms_are_refused() -> None:
    with pytest.raises(FitError, match="2 measurements for 3 free terms"):
        Utilization(**HARDWARE).fit_utilization(
            np.array([0.1, 0.2]), np.array([0.1, 0.3]), np.ones(2)
        )


def test_an_unknown_term_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown power term 'idle'; there are base"):
        Utilization(**HARDWARE, fixed={"idle": 15.0})
