"""The physical estimator: non-negative rates times what the layer makes the device do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Self

import numpy as np

from pytest_neuralpower.errors import FitError
from pytest_neuralpower.estimators.base import Estimator, need_extra
from pytest_neuralpower.estimators.terms import Regime, assign, evaluate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.estimators.features import Columns, FloatArray

#: A rate seen in fewer rows than this is noise: its term is dropped from the regime.
MIN_ACTIVE_ROWS: Final = 12

#: With fewer rows than this a regime is not kept apart; with fewer than the above it has these
#: terms alone.
_FEW_ROWS: Final = 6
_FEW_TERMS: Final = ("launch", "bytes_moved")

#: Fits of a regime whose weights follow from the fit before.
_REWEIGHINGS: Final = 4


class _Fitted(NamedTuple):
    """Rates of one regime, and the range of time over roofline that its rows had."""

    rates: dict[str, float]
    scale: float
    low: float
    high: float


class Physical(Estimator):
    """Non-negative least squares on physical terms, weighted 1/y, one fit per regime.

    Relative weights, because the errors that matter are relative; non-negative rates, because
    more work never takes less time. Relative weights make totals too low: ``rescale`` multiplies
    the rates so that the rows of a regime sum to what was measured. Predictions stay within the
    range of time over roofline that the regime's rows showed, so that a term that was never
    large in calibration cannot blow up elsewhere.

    Parameters
    ----------
    regimes
        In order, the first that holds counts; the last must have no conditions.
    multiprocessors
        Tiles that run at once.
    peak_gflops, bandwidth_gbs
        The device's ceilings, for the roofline.
    rescale
        Make each regime's total right.
    merge
        Rows of a regime that has too few to be fitted go to the next that holds for them, instead
        of refusing them all; the last, where it has hardly any, is fitted to all rows.
    noise_ms
        Where given, rows are weighed so that the error of the logarithm counts, not that relative
        to the row alone, which would make the fit too low; of rows not much longer than this, the
        absolute error does, as they are mostly dispatch.

    Attributes
    ----------
    fitted_
        Rates (ms per unit of the term), scale and clip per regime.
    """

    name: ClassVar[str] = "physical"
    # Non-negative rates of terms that grow with work, between multiples of a roofline that does.
    never_falls_in: ClassVar[tuple[str, ...]] = (
        *("flops", "bytes_in", "bytes_out", "bytes_weight", "bytes_workspace", "bytes_moved"),
    )

    def __init__(
        self,
        regimes: Sequence[Regime],
        *,
        multiprocessors: int = 1,
        peak_gflops: float,
        bandwidth_gbs: float,
        rescale: bool = True,
        merge: bool = False,
        noise_ms: float | None = None,
    ) -> None:
        self.merge = merge
        self.noise_ms = noise_ms
        self.regimes = tuple(regimes)
        self.multiprocessors = multiprocessors
        self.peak_gflops = peak_gflops
        self.bandwidth_gbs = bandwidth_gbs
        self.rescale = rescale
        self.fitted_: tuple[_Fitted, ...] = ()

    def _fit(self, columns: Columns, target: FloatArray) -> None:
        if self.merge:
            self.regimes = _large_enough(self.regimes, columns)
        chosen = assign(self.regimes, columns)
        regimes, fitted = [], []
        for index, regime in enumerate(self.regimes):
            mask = chosen == index
            if self.merge and mask.sum() < _FEW_ROWS:  # the last, for whatever no other holds for
                mask[:] = True
            count = int(mask.sum())
            if count < MIN_ACTIVE_ROWS:
                if not self.merge:
                    raise FitError(
                        f"physical: {count} rows in regime {regime.name!r}, {MIN_ACTIVE_ROWS} are "
                        "needed: measure more, or merge the regime"
                    )
                regime = regime._replace(terms=_FEW_TERMS)  # noqa: PLW2901
            part = {name: values[mask] for name, values in columns.items()}
            regimes.append(regime)
            fitted.append(self._fit_regime(regime, part, target[mask]))
        self.regimes, self.fitted_ = tuple(regimes), tuple(fitted)

    def _fit_regime(self, regime: Regime, columns: Columns, target: FloatArray) -> _Fitted:
        try:
            from scipy.optimize import nnls  # noqa: PLC0415 - only fitting needs it
        except ImportError:
            raise need_extra("SciPy") from None
        values = [evaluate(term, columns, self.multiprocessors) for term in regime.terms]
        needed = min(MIN_ACTIVE_ROWS, len(target))
        active = [index for index, each in enumerate(values) if (each > 0).sum() >= needed]
        matrix = np.stack([values[index] for index in active], axis=1)
        weighed = target
        for _ in range(1 if self.noise_ms is None else _REWEIGHINGS):
            relative = matrix / weighed[:, None]
            size = np.linalg.norm(relative, axis=0)
            rates, _ = nnls(relative / size, target / weighed)
            rates = rates / size
            predicted = matrix @ rates
            if self.noise_ms is not None:
                weighed = np.sqrt(target * np.maximum(predicted, target / 10)) + self.noise_ms
        scale = float(target.sum() / predicted.sum()) if self.rescale else 1.0
        ratio = target / self._roofline(columns)
        return _Fitted(
            {
                regime.terms[index]: _rounded(rate)
                for index, rate in zip(active, rates, strict=True)
                if rate > 0
            },
            _rounded(scale),
            _rounded(float(ratio.min())),
            _rounded(float(ratio.max())),
        )

    def _roofline(self, columns: Columns) -> FloatArray:
        """Ideal time in ms: operations at the peak after bytes at the full bandwidth."""
        compute = columns["flops"] / (self.peak_gflops * 1e6)
        return np.asarray(compute + columns["bytes_moved"] / (self.bandwidth_gbs * 1e6))

    def part(self, columns: Columns) -> NDArray[np.intp]:
        return assign(self.regimes, columns)

    def predict(self, columns: Columns) -> FloatArray:
        chosen = assign(self.regimes, columns)
        roofline = self._roofline(columns)
        result = np.zeros(len(roofline))
        values: dict[str, FloatArray] = {}
        for index, fitted in enumerate(self.fitted_):
            mask = chosen == index
            if not mask.any():
                continue
            total = np.zeros(len(roofline))
            for term, rate in fitted.rates.items():
                if term not in values:
                    values[term] = evaluate(term, columns, self.multiprocessors)
                total += rate * values[term]
            clipped = np.clip(total * fitted.scale, fitted.low * roofline, fitted.high * roofline)
            result[mask] = clipped[mask]
        return result

    def to_json(self) -> dict[str, Any]:
        return {
            "estimator": self.name,
            "multiprocessors": self.multiprocessors,
            "peak_gflops": self.peak_gflops,
            "bandwidth_gbs": self.bandwidth_gbs,
            "rescale": self.rescale,
            "regimes": [
                {
                    **regime.to_json(),
                    "rates": fitted.rates,
                    "scale": fitted.scale,
                    "time_over_roofline": [fitted.low, fitted.high],
                }
                for regime, fitted in zip(self.regimes, self.fitted_, strict=True)
            ],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        estimator = cls(
            [Regime.from_json(each) for each in data["regimes"]],
            multiprocessors=int(data["multiprocessors"]),
            peak_gflops=float(data["peak_gflops"]),
            bandwidth_gbs=float(data["bandwidth_gbs"]),
            rescale=bool(data["rescale"]),
        )
        for regime, each in zip(estimator.regimes, data["regimes"], strict=True):
            for term in each["rates"]:
                if term not in regime.terms:
                    raise ValueError(
                        f"rate of {term!r}, which is no term of regime {regime.name!r}"
                    )
        estimator.fitted_ = tuple(
            _Fitted(
                {str(term): float(rate) for term, rate in each["rates"].items()},
                float(each["scale"]),
                float(each["time_over_roofline"][0]),
                float(each["time_over_roofline"][1]),
            )
            for each in data["regimes"]
        )
        return estimator


def _large_enough(regimes: Sequence[Regime], columns: Columns) -> tuple[Regime, ...]:
    """The regimes without those that have too few rows, dropped one by one from the first, as each
    leaves its rows to a later one. An operation's own is kept with a few rows: the regime that
    would take them is of whatever is left, and has nothing in common with it."""
    kept = list(regimes)
    place = 0
    while place < len(kept) - 1:
        of_one = any(condition.op == "is" for condition in kept[place].when)
        needed = _FEW_ROWS if of_one else MIN_ACTIVE_ROWS
        if (assign(kept, columns) == place).sum() < needed:
            del kept[place]
        else:
            place += 1
    return tuple(kept)


def _rounded(value: float) -> float:
    """Ten digits: what differs beyond is the order in which a library summed."""
    return float(f"{value:.10g}")
