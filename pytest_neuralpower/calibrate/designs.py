"""Designs: which estimators compete for a family, and the physical terms they may use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from pytest_neuralpower.estimators import Estimator, NeuralPower, Physical, Shares
from pytest_neuralpower.estimators.neuralpower import SIZES
from pytest_neuralpower.estimators.regimes import Regime

Makers = dict[str, Callable[[], Estimator]]

_GEMM: Final = {
    "name": "gemm",
    "when": [],
    "terms": ["launch", "tile_flops[128x32]", "bytes_in", "bytes_out", "bytes_weight"],
}
_STREAM: Final = {"name": "stream", "when": [], "terms": ["launch", "bytes_moved", "flops"]}

#: Regimes of the physical estimator by family; every other family streams its tensors.
DEFAULT_REGIMES: Final[Mapping[str, list[dict[str, Any]]]] = {
    "conv": [_GEMM],
    "linear": [_GEMM],
    "matmul": [_GEMM],
    "attention": [
        {**_STREAM, "terms": ["launch", "flops", "bytes_moved", "bytes_workspace"]},
    ],
    "rnn": [_STREAM],
}


def runtime_makers(family: str, design: Mapping[str, Any], hardware: Mapping[str, float]) -> Makers:
    """Candidates for a family's runtime.

    Parameters
    ----------
    design
        ``regimes`` and ``rescale`` of the physical estimator, where not the defaults.
    hardware
        ``peak_gflops``, ``bandwidth_gbs`` and, for tile terms, ``multiprocessors``.
    """
    regimes = [
        Regime.from_json({"when": [], **regime})
        for regime in design.get("regimes") or DEFAULT_REGIMES.get(family, [_STREAM])
    ]
    makers: Makers = {
        "physical": lambda: Physical(
            regimes,
            multiprocessors=int(hardware.get("multiprocessors", 1)),
            peak_gflops=float(hardware["peak_gflops"]),
            bandwidth_gbs=float(hardware["bandwidth_gbs"]),
            rescale=bool(design.get("rescale", True)),
        )
    }
    if family in SIZES:
        makers["neuralpower"] = lambda: NeuralPower(family)
    return makers


def power_makers(family: str, hardware: Mapping[str, float]) -> Makers:
    """Candidates for a family's power, where its rows have one."""
    makers: Makers = {
        "shares": lambda: Shares(
            peak_gflops=float(hardware["peak_gflops"]),
            bandwidth_gbs=float(hardware["bandwidth_gbs"]),
            limit_w=hardware.get("limit_w"),
        )
    }
    if family in SIZES:
        makers["neuralpower"] = lambda: NeuralPower(family, "power")
    return makers
