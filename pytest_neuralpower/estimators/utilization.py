"""Power from how busy a layer keeps the device: its utilization of peak compute and bandwidth."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Final, Self

import numpy as np
from msgspec import UNSET, UnsetType, field

from pytest_neuralpower.errors import FitError
from pytest_neuralpower.estimators.base import Estimator, NonNegative, Positive, need_extra

if TYPE_CHECKING:
    from pytest_neuralpower.estimators.features import Columns, FloatArray

_TERMS: Final = ("base", "compute", "bandwidth")

#: Relative errors beyond this count linearly, not squared: power of short kernels is noisy.
_OUTLYING: Final = 0.1


class Utilization(Estimator, tag="utilization"):
    """``load = base + a x compute utilization + b x bandwidth utilization``, as power.

    Without ``idle_w`` the load is the power in W, at most ``limit_w``. With it power saturates
    between both, ``idle + (limit - idle) x (1 - exp(-load))``: what boards showed can then be
    scaled to another's limits.

    A utilization is what the layer does per second over what the device could: FLOP/s over the
    peak, bytes/s over the bandwidth, at most 1 each (Winograd and FFT do with fewer operations than
    they are credited with). Where power saturates, only the scores that a causal attention computes
    count. Its columns need ``runtime_ms`` as well as the layers' own.

    Parameters
    ----------
    peak_gflops, bandwidth_gbs
        The device's ceilings.
    limit_w
        The most that the board may draw; None for no limit.
    idle_w
        Power at rest, where it is to saturate.
    waiting
        Load while calls wait for the host between kernels; that of ``base`` by default.
    fixed
        Values (W) of those of ``base``, ``compute``, ``bandwidth`` that are not fitted.

    Attributes
    ----------
    load_
        All three, fitted and fixed, each at least 0: in W, or without a unit where power saturates.
    """

    name: ClassVar[str] = "utilization"

    peak_gflops: Positive
    bandwidth_gbs: Positive
    limit_w: Positive | None = None
    idle_w: NonNegative | None = None
    waiting: NonNegative | UnsetType = UNSET
    fixed: dict[str, NonNegative] = field(default_factory=dict)
    load_: dict[str, NonNegative] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*self.fixed, *self.load_):
            if name not in _TERMS:
                raise ValueError(f"unknown power term {name!r}; there are {', '.join(_TERMS)}")
        if self.load_ and len(self.load_) < len(_TERMS):
            raise ValueError(f"load needs {', '.join(_TERMS)}, not {', '.join(self.load_)} alone")
        if self.idle_w is not None and (self.limit_w is None or self.idle_w >= self.limit_w):
            raise ValueError(f"idle_w {self.idle_w:g} is not below limit_w, {self.limit_w}")

    def utilization(self, columns: Columns) -> tuple[FloatArray, FloatArray]:
        """Compute and bandwidth utilization of each layer, 0..1."""
        done = columns["flops"]
        if self.idle_w is not None:
            done = columns.get("scored_flops", done)
        compute = done / (columns["runtime_ms"] * self.peak_gflops * 1e6)
        traffic = columns["bytes_moved"] / (columns["runtime_ms"] * self.bandwidth_gbs * 1e6)
        return np.minimum(compute, 1.0), np.minimum(traffic, 1.0)

    def _fit(self, columns: Columns, target: FloatArray) -> None:
        self.fit_utilization(*self.utilization(columns), target)

    def fit_utilization(self, compute: FloatArray, traffic: FloatArray, target: FloatArray) -> Self:
        """Fit to power in W at these utilizations, of layers or (time-weighted) of networks.

        Relative errors count, outliers by their size where power saturates.

        Raises
        ------
        FitError
            Fewer measurements than free terms.
        """
        free = [name for name in _TERMS if name not in self.fixed]
        if len(target) < len(free):
            raise FitError(f"utilization: {len(target)} measurements for {len(free)} free terms")
        if self.idle_w is None:
            found, digits = self._fitted_line(free, compute, traffic, target), 8
        else:
            found, digits = self._fitted_saturation(compute, traffic, target), 6
        fitted = {
            name: float(f"{value:.{digits}g}")
            for name, value in zip(free, found.tolist(), strict=True)
        }
        self.load_ = {name: {**fitted, **self.fixed}[name] for name in _TERMS}
        return self

    def _fitted_line(
        self, free: list[str], compute: FloatArray, traffic: FloatArray, target: FloatArray
    ) -> FloatArray:
        try:
            from scipy.optimize import lsq_linear  # noqa: PLC0415 - only fitting needs it
        except ImportError:
            raise need_extra("SciPy") from None
        values = {"base": np.ones_like(target), "compute": compute, "bandwidth": traffic}
        rest = target - sum(
            (watts * values[name] for name, watts in self.fixed.items()), np.zeros_like(target)
        )
        matrix = np.stack([values[name] for name in free], axis=1) / target[:, None]
        # No one cause can draw more than what the board may draw beyond the fixed part.
        limit = math.inf if self.limit_w is None else self.limit_w
        most = limit - sum(self.fixed.values())
        return np.asarray(lsq_linear(matrix, rest / target, bounds=(0.0, most), tol=1e-12).x)

    def _fitted_saturation(
        self, compute: FloatArray, traffic: FloatArray, target: FloatArray
    ) -> FloatArray:
        try:
            from scipy.optimize import least_squares  # noqa: PLC0415 - only fitting needs it
        except ImportError:
            raise need_extra("SciPy") from None

        def error(load: FloatArray) -> FloatArray:
            found = self._power(load[0] + load[1] * compute + load[2] * traffic)
            return np.asarray(found / target - 1.0)

        start = (0.1, 1.0, 1.0)
        found = least_squares(error, start, bounds=(0, 20), loss="soft_l1", f_scale=_OUTLYING)
        return np.asarray(found.x)

    def _power(self, load: FloatArray) -> FloatArray:
        """Power in W at a load."""
        if self.idle_w is not None and self.limit_w is not None:
            return np.asarray(self.idle_w - (self.limit_w - self.idle_w) * np.expm1(-load))
        return load if self.limit_w is None else np.minimum(load, self.limit_w)

    def predict(self, columns: Columns) -> FloatArray:
        return self.predict_utilization(*self.utilization(columns))

    def evaluate_all(self, columns: Columns) -> None:
        if not self.load_:
            raise ValueError(f"load needs {', '.join(_TERMS)}, and is empty")
        super().evaluate_all(columns)

    def predict_utilization(
        self, compute: FloatArray, traffic: FloatArray, *, more: FloatArray | float = 0.0
    ) -> FloatArray:
        """Power in W at these utilizations, and at so much more load; by default none."""
        base, by_compute, by_traffic = (self.load_[name] for name in _TERMS)
        return self._power(base + by_compute * compute + by_traffic * traffic + more)

    @property
    def waiting_w(self) -> float:
        """Power in W while no kernel runs."""
        load = self.load_["base"] if self.waiting is UNSET else self.waiting
        return float(self._power(np.array([load]))[0])
