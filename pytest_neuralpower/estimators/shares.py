"""Power from how busy a layer keeps the device: its shares of peak compute and of bandwidth."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import numpy as np

from pytest_neuralpower.errors import FitError
from pytest_neuralpower.estimators.base import Estimator, need_extra

if TYPE_CHECKING:
    from pytest_neuralpower.features import Columns, FloatArray

_FREE: Final = ("base_w", "compute_w", "bandwidth_w")


class Shares(Estimator):
    """``power = base + a x compute share + b x bandwidth share``, at most the board's limit.

    A share is what the layer does per second over what the device could: FLOP/s over the peak,
    bytes/s over the bandwidth, at most 1 each (Winograd and FFT do with fewer operations than
    they are credited with). Its columns need ``runtime_ms`` beside the layers' own.

    Parameters
    ----------
    peak_gflops, bandwidth_gbs
        The device's ceilings.
    limit_w
        No prediction exceeds it; None for no limit.
    fixed
        Values (W) of those of ``base_w``, ``compute_w``, ``bandwidth_w`` that are not fitted.

    Attributes
    ----------
    watts_
        All three, fitted and fixed.
    """

    name: ClassVar[str] = "shares"
    # Of layers that take equally long, the one that does more draws more.
    never_falls_in: ClassVar[tuple[str, ...]] = ("flops", "bytes_moved")

    def __init__(
        self,
        *,
        peak_gflops: float,
        bandwidth_gbs: float,
        limit_w: float | None = None,
        fixed: dict[str, float] | None = None,
    ) -> None:
        self.peak_gflops = peak_gflops
        self.bandwidth_gbs = bandwidth_gbs
        self.limit_w = None if limit_w is None else float(limit_w)
        self.fixed = dict(fixed or {})
        self.watts_: dict[str, float] = {}
        unknown = set(self.fixed) - set(_FREE)
        if unknown:
            raise ValueError(f"unknown power terms {sorted(unknown)}; there are {', '.join(_FREE)}")

    def shares(self, columns: Columns) -> tuple[FloatArray, FloatArray]:
        """Compute and bandwidth share of each layer, 0..1."""
        compute = columns["flops"] / (columns["runtime_ms"] * self.peak_gflops * 1e6)
        traffic = columns["bytes_moved"] / (columns["runtime_ms"] * self.bandwidth_gbs * 1e6)
        return np.minimum(compute, 1.0), np.minimum(traffic, 1.0)

    def _fit(self, columns: Columns, target: FloatArray) -> None:
        compute, traffic = self.shares(columns)
        self.fit_shares(compute, traffic, target)

    def fit_shares(self, compute: FloatArray, traffic: FloatArray, target: FloatArray) -> Self:
        """Fit to mean shares, of layers or of whole networks (time-weighted), weighted 1/y.

        Raises
        ------
        FitError
            Fewer measurements than free terms.
        """
        try:
            from scipy.optimize import lsq_linear  # noqa: PLC0415 - only fitting needs it
        except ImportError:
            raise need_extra("SciPy") from None
        values = {"base_w": np.ones_like(target), "compute_w": compute, "bandwidth_w": traffic}
        free = [name for name in _FREE if name not in self.fixed]
        if len(target) < len(free):
            raise FitError(f"shares: {len(target)} measurements for {len(free)} free terms")
        rest = target - sum(
            (watts * values[name] for name, watts in self.fixed.items()), np.zeros_like(target)
        )
        matrix = np.stack([values[name] for name in free], axis=1) / target[:, None]
        # No one cause can draw more than what the board may draw beyond the fixed part.
        limit = math.inf if self.limit_w is None else self.limit_w
        most = limit - sum(self.fixed.values())
        found = lsq_linear(matrix, rest / target, bounds=(0.0, most), tol=1e-12).x
        fitted = {
            name: float(f"{watts:.8g}") for name, watts in zip(free, found.tolist(), strict=True)
        }
        self.watts_ = {name: {**fitted, **self.fixed}[name] for name in _FREE}
        return self

    def predict(self, columns: Columns) -> FloatArray:
        return self.predict_shares(*self.shares(columns))

    def predict_shares(self, compute: FloatArray, traffic: FloatArray) -> FloatArray:
        """Power in W at these shares."""
        watts = (
            self.watts_["base_w"]
            + self.watts_["compute_w"] * compute
            + self.watts_["bandwidth_w"] * traffic
        )
        return watts if self.limit_w is None else np.minimum(watts, self.limit_w)

    def to_json(self) -> dict[str, Any]:
        return {
            "estimator": self.name,
            "peak_gflops": self.peak_gflops,
            "bandwidth_gbs": self.bandwidth_gbs,
            "limit_w": self.limit_w,
            "fixed": self.fixed,
            "watts": self.watts_,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        estimator = cls(
            peak_gflops=float(data["peak_gflops"]),
            bandwidth_gbs=float(data["bandwidth_gbs"]),
            limit_w=None if data["limit_w"] is None else float(data["limit_w"]),
            fixed={str(name): float(watts) for name, watts in data["fixed"].items()},
        )
        estimator.watts_ = {name: float(data["watts"][name]) for name in _FREE}
        return estimator
