"""The physical estimator: non-negative rates times what the layer makes the device do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np
from msgspec.structs import replace

from pytest_neuralpower.errors import FitError
from pytest_neuralpower.estimators.base import Count, Estimator, Positive, need_extra, some_rows
from pytest_neuralpower.estimators.terms import Regime, assign, evaluate

if TYPE_CHECKING:
    from pytest_neuralpower.estimators.features import Columns, FloatArray

#: A rate seen in fewer rows than this is noise: its term is dropped from the regime.
MIN_ACTIVE_ROWS: Final = 12

#: With fewer rows than this a regime is not kept apart; with fewer than the above it has these
#: terms alone.
_FEW_ROWS: Final = 6
_FEW_TERMS: Final = ("launch", "bytes_moved")

#: Fits of a regime whose weights follow from the fit before.
_REWEIGHINGS: Final = 4


class Physical(Estimator, tag="physical", omit_defaults=True):
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

    Once fitted, ``regimes`` hold their rates (ms, or mJ, per unit of the term).
    """

    name: ClassVar[str] = "physical"

    regimes: list[Regime]
    peak_gflops: Positive
    bandwidth_gbs: Positive
    multiprocessors: Count = 1
    rescale: bool = True
    merge: bool = False
    noise_ms: float | None = None

    def _fit(self, columns: Columns, target: FloatArray) -> None:
        if self.merge:
            self.regimes = _large_enough(self.regimes, columns)
        chosen = assign(self.regimes, columns)
        fitted = []
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
                regime = replace(regime, terms=_FEW_TERMS, rates={})  # noqa: PLW2901
            fitted.append(self._fit_regime(regime, some_rows(columns, mask), target[mask]))
        self.regimes = fitted

    def _fit_regime(self, regime: Regime, columns: Columns, target: FloatArray) -> Regime:
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
            found, _ = nnls(relative / size, target / weighed)
            found = found / size
            predicted = matrix @ found
            if self.noise_ms is not None:
                weighed = np.sqrt(target * np.maximum(predicted, target / 10)) + self.noise_ms
        scale = float(target.sum() / predicted.sum()) if self.rescale else 1.0
        ratio = target / self._roofline(columns)
        rates = {
            regime.terms[index]: _rounded(rate)
            for index, rate in zip(active, found, strict=True)
            if rate > 0
        }
        seen = (_rounded(float(ratio.min())), _rounded(float(ratio.max())))
        return replace(regime, rates=rates, scale=_rounded(scale), time_over_roofline=seen)

    def _roofline(self, columns: Columns) -> FloatArray:
        """Ideal time in ms: operations at the peak after bytes at the full bandwidth."""
        compute = columns["flops"] / (self.peak_gflops * 1e6)
        return np.asarray(compute + columns["bytes_moved"] / (self.bandwidth_gbs * 1e6))

    def predict(self, columns: Columns) -> FloatArray:
        chosen = assign(self.regimes, columns)
        roofline = self._roofline(columns)
        result = np.zeros(len(roofline))
        values: dict[str, FloatArray] = {}
        for index, regime in enumerate(self.regimes):
            mask = chosen == index
            if not mask.any():
                continue
            total = np.zeros(len(roofline))
            for term, rate in regime.rates.items():
                if term not in values:
                    values[term] = evaluate(term, columns, self.multiprocessors)
                total += rate * values[term]
            low, high = regime.time_over_roofline
            clipped = np.clip(total * regime.scale, low * roofline, high * roofline)
            result[mask] = clipped[mask]
        return result

    def evaluate_all(self, columns: Columns) -> None:
        self.predict(columns)
        for term in {term for regime in self.regimes for term in regime.rates}:
            evaluate(term, columns, self.multiprocessors)


def _large_enough(regimes: Sequence[Regime], columns: Columns) -> list[Regime]:
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
    return kept


def _rounded(value: float) -> float:
    """Ten digits: what differs beyond is the order in which a library summed."""
    return float(f"{value:.10g}")
