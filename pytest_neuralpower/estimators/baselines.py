"""Baselines that any estimator has to beat before it ships: operations alone, and the roofline.

Both are fitted as fairly as the others (a launch and one rate, relative weights, the same folds),
so that what beats them is knowledge of the layer and not merely a free constant. They are compared
with and never stored in a platform.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import numpy as np

from pytest_neuralpower.estimators.base import Estimator, need_extra

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_neuralpower.features import Columns, FloatArray

__all__ = ["BASELINES", "FlopsOnly", "Roofline", "baseline_makers"]


class _OneRate(Estimator):
    """``y = launch + rate x work``, both non-negative, least squares on the relative error.

    Attributes
    ----------
    launch_
        ms.
    rate_
        ms per unit of work.
    """

    def __init__(self) -> None:
        self.launch_ = 0.0
        self.rate_ = 0.0

    @abstractmethod
    def _work(self, columns: Columns) -> FloatArray:
        """What one rate prices, shape ``(rows,)``."""

    def _fit(self, columns: Columns, target: FloatArray) -> None:
        try:
            from scipy.optimize import nnls  # noqa: PLC0415 - only fitting needs it
        except ImportError:
            raise need_extra("SciPy") from None
        matrix = np.stack([np.ones_like(target), self._work(columns)], axis=1) / target[:, None]
        size = np.linalg.norm(matrix, axis=0)
        size[size == 0] = 1.0  # no operations at all: only the launch is left
        rates, _ = nnls(matrix / size, np.ones(len(target)))
        self.launch_, self.rate_ = (float(f"{rate:.10g}") for rate in rates / size)

    def predict(self, columns: Columns) -> FloatArray:
        return np.asarray(self.launch_ + self.rate_ * self._work(columns))

    def to_json(self) -> dict[str, Any]:
        return {"estimator": self.name, "launch": self.launch_, "rate": self.rate_}

    def _restore(self, data: dict[str, Any]) -> Self:
        self.launch_, self.rate_ = float(data["launch"]), float(data["rate"])
        return self


class FlopsOnly(_OneRate):
    """Runtime from the number of operations alone, as FLOP counters are commonly read.

    ``rate_`` is in ms per GFLOP.
    """

    name: ClassVar[str] = "flops-only"

    def _work(self, columns: Columns) -> FloatArray:
        return columns["flops"] * 1e-9

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        return cls()._restore(data)


class Roofline(_OneRate):
    """The longer of computing at the peak and moving every tensor once, over one efficiency.

    Williams, Waterman, Patterson, "Roofline: An Insightful Visual Performance Model", CACM 2009.
    ``rate_`` is the inverse of the efficiency: ms per ideal ms.

    Parameters
    ----------
    peak_gflops, bandwidth_gbs
        The device's ceilings.
    """

    name: ClassVar[str] = "roofline"

    def __init__(self, *, peak_gflops: float, bandwidth_gbs: float) -> None:
        super().__init__()
        self.peak_gflops = peak_gflops
        self.bandwidth_gbs = bandwidth_gbs

    def _work(self, columns: Columns) -> FloatArray:
        compute = columns["flops"] / (self.peak_gflops * 1e6)
        traffic = columns["bytes_moved"] / (self.bandwidth_gbs * 1e6)
        return np.asarray(np.maximum(compute, traffic))

    def to_json(self) -> dict[str, Any]:
        ceilings = {"peak_gflops": self.peak_gflops, "bandwidth_gbs": self.bandwidth_gbs}
        return {**super().to_json(), **ceilings}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        estimator = cls(
            peak_gflops=float(data["peak_gflops"]), bandwidth_gbs=float(data["bandwidth_gbs"])
        )
        return estimator._restore(data)


#: Names of the baselines, in the order in which reports show them.
BASELINES: Final = (FlopsOnly.name, Roofline.name)


def baseline_makers(hardware: Mapping[str, float]) -> dict[str, Callable[[], Estimator]]:
    """Makers of the unfitted baselines of runtime, by name.

    Parameters
    ----------
    hardware
        ``peak_gflops`` and ``bandwidth_gbs``.
    """
    return {
        FlopsOnly.name: FlopsOnly,
        Roofline.name: lambda: Roofline(
            peak_gflops=float(hardware["peak_gflops"]),
            bandwidth_gbs=float(hardware["bandwidth_gbs"]),
        ),
    }
