"""Power between idle and the board's limit, from how busy a layer keeps the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import numpy as np

from pytest_neuralpower.errors import FitError
from pytest_neuralpower.estimators.base import Estimator, need_extra

if TYPE_CHECKING:
    from pytest_neuralpower.features import Columns, FloatArray

_RATES: Final = ("busy", "compute", "bandwidth")

#: Relative errors beyond this count linearly, not squared: power of short kernels is noisy.
_OUTLYING: Final = 0.1


class Saturating(Estimator):
    """``idle + (limit - idle) x (1 - exp(-(busy + a x compute share + b x bandwidth share)))``.

    Smooth, rising in both shares and never outside idle and limit, so that what one board showed
    can be scaled to another's limits. A share is what the layer does per second over what the
    device could, at most 1; of a causal attention only the scores it computes count. Its columns
    need ``runtime_ms`` beside the layers' own.

    Parameters
    ----------
    peak_gflops, bandwidth_gbs
        The device's ceilings.
    idle_w, limit_w
        Power at rest and the most that the board may draw.

    Attributes
    ----------
    rates_
        ``busy``, ``compute`` and ``bandwidth``, each at least 0.
    """

    name: ClassVar[str] = "saturating"

    def __init__(
        self, *, peak_gflops: float, bandwidth_gbs: float, idle_w: float, limit_w: float
    ) -> None:
        if not 0 <= idle_w < limit_w:
            raise ValueError(f"idle {idle_w:g} W is not between 0 and the limit, {limit_w:g} W")
        self.peak_gflops = peak_gflops
        self.bandwidth_gbs = bandwidth_gbs
        self.idle_w = idle_w
        self.limit_w = limit_w
        self.rates_: dict[str, float] = {}

    def shares(self, columns: Columns) -> tuple[FloatArray, FloatArray]:
        """Compute and bandwidth share of each layer, 0..1."""
        done = columns.get("scored_flops", columns["flops"])
        compute = done / (columns["runtime_ms"] * self.peak_gflops * 1e6)
        traffic = columns["bytes_moved"] / (columns["runtime_ms"] * self.bandwidth_gbs * 1e6)
        return np.minimum(compute, 1.0), np.minimum(traffic, 1.0)

    def _fit(self, columns: Columns, target: FloatArray) -> None:
        self.fit_shares(*self.shares(columns), target)

    def fit_shares(self, compute: FloatArray, traffic: FloatArray, target: FloatArray) -> Self:
        """Fit to shares and power in W, relative errors, outliers damped.

        Raises
        ------
        FitError
            Fewer measurements than rates.
        """
        try:
            from scipy.optimize import least_squares  # noqa: PLC0415 - only fitting needs it
        except ImportError:
            raise need_extra("SciPy") from None
        if len(target) < len(_RATES):
            raise FitError(f"saturating: {len(target)} measurements for {len(_RATES)} rates")

        def error(rates: FloatArray) -> FloatArray:
            return self._power(rates, compute, traffic) / target - 1.0

        start = (0.1, 1.0, 1.0)
        found = least_squares(error, start, bounds=(0, 20), loss="soft_l1", f_scale=_OUTLYING).x
        self.rates_ = {
            name: float(f"{rate:.6g}") for name, rate in zip(_RATES, found.tolist(), strict=True)
        }
        return self

    def _power(self, rates: FloatArray, compute: FloatArray, traffic: FloatArray) -> FloatArray:
        load = rates[0] + rates[1] * compute + rates[2] * traffic
        return np.asarray(self.idle_w - (self.limit_w - self.idle_w) * np.expm1(-load))

    def predict(self, columns: Columns) -> FloatArray:
        return self.predict_shares(*self.shares(columns))

    def predict_shares(self, compute: FloatArray, traffic: FloatArray) -> FloatArray:
        """Power in W at these shares."""
        return self._power(np.array([self.rates_[name] for name in _RATES]), compute, traffic)

    def on(
        self, *, peak_gflops: float, bandwidth_gbs: float, idle_w: float, limit_w: float
    ) -> Self:
        """The same dependence on the shares of another board."""
        moved = type(self)(
            peak_gflops=peak_gflops, bandwidth_gbs=bandwidth_gbs, idle_w=idle_w, limit_w=limit_w
        )
        moved.rates_ = dict(self.rates_)
        return moved

    def to_json(self) -> dict[str, Any]:
        return {
            "estimator": self.name,
            "peak_gflops": self.peak_gflops,
            "bandwidth_gbs": self.bandwidth_gbs,
            "idle_w": self.idle_w,
            "limit_w": self.limit_w,
            "rates": self.rates_,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        estimator = cls(
            **{
                name: float(data[name])
                for name in ("peak_gflops", "bandwidth_gbs", "idle_w", "limit_w")
            }
        )
        estimator.rates_ = {name: float(data["rates"][name]) for name in _RATES}
        if min(estimator.rates_.values()) < 0:
            raise ValueError("a rate below 0: power would fall as the device works harder")
        return estimator
