"""A small platform with round numbers."""

from __future__ import annotations

import pytest

from pytest_neuralpower.estimators import Physical, Shares
from pytest_neuralpower.estimators.terms import Regime
from pytest_neuralpower.platform.intervals import Intervals, QuantitySpreads, Spread
from pytest_neuralpower.platform.price import Fallback, FamilyModel, FittedPlatform

HARDWARE = {"peak_gflops": 1000.0, "bandwidth_gbs": 100.0}


def physical(rates: dict[str, float]) -> Physical:
    """A fitted physical estimator: ms per unit of each term, without clipping."""
    return Physical.from_json(
        {
            "multiprocessors": 4,
            **HARDWARE,
            "rescale": False,
            "regimes": [
                {
                    **Regime("all", tuple(rates)).to_json(),
                    "rates": rates,
                    "scale": 1.0,
                    "time_over_roofline": [0.0, 1e9],
                }
            ],
        }
    )


@pytest.fixture
def platform() -> FittedPlatform:
    """conv 1 ms + 2 ms/GFLOP, activation 0.1 ms/MB, power 50 W + shares; nothing else."""
    power = Shares(**HARDWARE, limit_w=200.0)
    power.watts_ = {"base_w": 50.0, "compute_w": 100.0, "bandwidth_w": 60.0}
    conv = FamilyModel(
        {"runtime": physical({"launch": 1.0, "flops": 2.0})},
        {"k": (9.0, 600.0), "groups": (1.0, 1.0)},
    )
    activation = FamilyModel(
        {"runtime": physical({"bytes_moved": 0.1})}, {"bytes_moved": (1.0, 1e9)}
    )
    return FittedPlatform(
        name="toy",
        device="Toy",
        dtype="float32",
        mode="as a toy runs",
        tiers={"runtime": "measured", "power": "measured"},
        hardware=HARDWARE,
        families={"conv": conv, "activation": activation},
        fallback=Fallback(bandwidth_gbs=50.0, gflops=500.0, floor_ms=0.01),
        power=power,
        intervals=Intervals(
            0.9,
            QuantitySpreads({"conv": Spread(0.1, 0.2, 0.5)}, Spread(0.7, 0.7, 1.0), 0.15),
            QuantitySpreads({}, Spread(0.3, 0.3, 0.25)),
        ),
        sha256="0" * 64,
    )
