"""Power between idle and the board's limit, from how busy a layer keeps the device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import numpy as np

from pytest_neuralpower.errors import FitError
from pytest_neuralpower.estimators.base import Estimator, need_extra

if TYPE_CHECKING:
    from pytest_neuralpower.estimators.features import Columns, FloatArray

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


# -- Power from how busy a layer keeps the device: its shares of peak compute and of bandwidth.

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


# -- Power as energy over time, where energy is what was learnt.


class PerEnergy(Estimator):
    """``power = energy / runtime``, within the range of power that was measured.

    Energy grows with what a layer does as its runtime does, so it can be learnt in the same way;
    errors of power and of runtime then do not add up. The range keeps a layer that is far from
    the calibration from drawing more than anything measured, or nothing. Its columns need
    ``runtime_ms`` beside the layers' own.

    Parameters
    ----------
    energy
        Estimator of the energy in mJ.

    Attributes
    ----------
    low_, high_
        Least and largest measured power, W.
    """

    name: ClassVar[str] = "per-energy"

    def __init__(self, energy: Estimator) -> None:
        self.energy = energy
        self.low_ = 0.0
        self.high_ = float("inf")

    def _fit(self, columns: Columns, target: FloatArray) -> None:
        self.energy.fit(columns, target * columns["runtime_ms"])
        self.within(target)

    def within(self, power_w: FloatArray) -> Self:
        """Take the range of these measured powers."""
        self.low_, self.high_ = float(np.min(power_w)), float(np.max(power_w))
        return self

    def predict(self, columns: Columns) -> FloatArray:
        power = self.energy.predict(columns) / columns["runtime_ms"]
        return np.asarray(np.clip(power, self.low_, self.high_))

    def to_json(self) -> dict[str, Any]:
        return {
            "estimator": self.name,
            "range_w": [self.low_, self.high_],
            "energy": self.energy.to_json(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        from pytest_neuralpower.estimators import from_json  # noqa: PLC0415 - it loads this module

        estimator = cls(from_json(data["energy"]))
        low, high = data["range_w"]
        estimator.low_, estimator.high_ = float(low), float(high)
        return estimator
