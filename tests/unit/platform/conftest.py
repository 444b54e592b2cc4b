"""A small platform with round numbers."""

from __future__ import annotations

import math

import pytest
from flat_priors import flat_priors

from pytest_neuralpower.estimators import Physical, Utilization
from pytest_neuralpower.estimators.terms import Regime
from pytest_neuralpower.platform.intervals import Intervals, QuantitySpreads, Spread
from pytest_neuralpower.platform.price import FamilyModel, FittedPlatform

CEILINGS = {"peak_gflops": 1000.0, "bandwidth_gbs": 100.0}
HARDWARE = {**CEILINGS, "launch_ms": 0.005}


def physical(rates: dict[str, float]) -> Physical:
    """A fitted physical estimator: ms per unit of each term, without clipping."""
    regime = Regime("all", tuple(rates), rates=rates, time_over_roofline=(0.0, 1e9))
    return Physical([regime], multiprocessors=4, rescale=False, **CEILINGS)


@pytest.fixture
def platform() -> FittedPlatform:
    """conv 1 ms + 2 ms/GFLOP, activation 0.1 ms/MB, power 50 W + shares; else twice the roofline.

    A launch takes 5 us, so that no layer without rows takes less than 0.01 ms.
    """
    load = {"base": 50.0, "compute": 100.0, "bandwidth": 60.0}
    power = Utilization(**CEILINGS, limit_w=200.0, load_=load)
    conv = FamilyModel(
        {"k": (9.0, 600.0), "groups": (1.0, 1.0)}, physical({"launch": 1.0, "flops": 2.0})
    )
    activation = FamilyModel({"bytes_moved": (1.0, 1e9)}, physical({"bytes_moved": 0.1}))
    return FittedPlatform(
        name="toy",
        device="Toy",
        dtype="float32",
        mode="as a toy runs",
        tiers={"runtime": "measured", "power": "measured"},
        hardware=HARDWARE,
        families={"conv": conv, "activation": activation},
        inferred=flat_priors(HARDWARE, log_factor=math.log(2)),
        power=power,
        intervals=Intervals(
            0.9,
            QuantitySpreads({"conv": Spread(0.1, 0.2, 0.5)}, Spread(0.7, 0.7, 1.0), 0.15),
            QuantitySpreads({}, Spread(0.3, 0.3, 0.25)),
        ),
        sha256="0" * 64,
    )
