"""NeuralPower's regressors with the two changes that make them usable outside the paper."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pytest_neuralpower.estimators.base import need_extra
from pytest_neuralpower.estimators.neuralpower import NeuralPower, regressors

if TYPE_CHECKING:
    from pytest_neuralpower.features import Columns, FloatArray


class NeuralPowerRelative(NeuralPower):
    """The paper's regressors, weighted 1/y, with non-negative coefficients.

    Absolute errors let the largest layers decide and leave small ones off by multiples; free signs
    predict negative energies outside the calibrated range. Non-negative least squares selects
    terms by itself (most coefficients are exactly 0), so there is no penalty to choose. Nothing
    is floored.

    Parameters
    ----------
    family
        ``conv``, ``linear`` or ``pool``.
    quantity
        ``runtime``, ``power`` or ``energy``.

    Attributes
    ----------
    coefficients_
        Positive coefficients by regressor.
    intercept_
        ms, W or mJ.
    """

    name: ClassVar[str] = "neuralpower-relative"
    # Products of sizes, and of their logarithms, which are not negative for sizes from 1.
    never_falls_in: ClassVar[tuple[str, ...]] = (
        *("batch", "cin", "cout", "channels", "h", "w", "oh", "ow", "kh", "kw", "m", "n", "k"),
    )

    def _fit(self, columns: Columns, target: FloatArray) -> None:
        try:
            from scipy.optimize import nnls  # noqa: PLC0415 - only fitting needs it
        except ImportError:
            raise need_extra("SciPy") from None
        terms = regressors(self.family, self.quantity, columns)
        matrix = np.stack([np.ones_like(target), *terms.values()], axis=1) / target[:, None]
        size = np.linalg.norm(matrix, axis=0)
        size[size == 0] = 1.0
        found, _ = nnls(matrix / size, np.ones(len(target)), maxiter=30 * matrix.shape[1])
        weights = [float(f"{weight:.10g}") for weight in (found / size).tolist()]
        self.intercept_ = weights[0]
        self.coefficients_ = {
            name: weight for name, weight in zip(terms, weights[1:], strict=True) if weight > 0
        }

    @property
    def floor(self) -> float | None:
        return None
