"""NeuralPower's own estimator: polynomials and special terms, chosen by Lasso.

Cai, Juan, Stamoulis, Marculescu, "NeuralPower: Predict and Deploy Energy-Efficient Convolutional
Neural Networks", ACML 2017, section 3, with the regressors that the authors' published training
scripts use: runtime of conv and pool of degree 3, of fully connected layers of degree 2; power of
degree 2 over the sizes and their logarithms.
"""

from __future__ import annotations

import warnings
from functools import cache
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np
from msgspec import field

from pytest_neuralpower.estimators.base import Estimator, need_extra

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_neuralpower.estimators.features import Columns, FloatArray

#: The authors' predictor never answers less than this, ms.
FLOOR_MS: Final = 0.105

#: Sizes that the polynomial runs over, under the authors' names, and the columns that hold them.
SIZES: Final[dict[str, tuple[str, ...]]] = {
    "conv": ("batch", "oh", "ow", "kw", "cin", "cout", "h"),
    "linear": ("m", "n", "one", "one", "k"),  # N, Cout, inH, inW, Cin: inH = inW = 1 here
    "pool": ("batch", "oh", "ow", "channels", "kh", "h"),
}

#: Degree of the runtime polynomial.
DEGREE: Final = {"conv": 3, "linear": 2, "pool": 3}

#: Products with a physical meaning, for the families that have any.
SPECIAL: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "conv": (
        ("oh", "ow", "cout", "kh", "kw", "cin"),
        ("batch", "oh", "ow", "cout", "kh", "kw", "cin"),  # multiply-accumulates
        ("batch", "oh", "ow", "kh", "kw", "cin"),  # unfolded input
        ("batch", "oh", "ow", "cout"),
        ("kh", "kw", "cin", "cout"),
        ("batch", "h", "w", "cin"),
        ("batch", "w", "cin"),
        ("batch", "h", "cin"),
    ),
    "linear": (("m", "n", "one", "one", "k"),),
    "pool": (
        ("batch", "oh", "ow", "channels", "kh", "kw"),
        ("batch", "oh", "ow", "channels"),
        ("batch", "h", "w", "channels"),
    ),
}


@cache
def _factors(family: str, quantity: str) -> dict[str, tuple[str, ...]]:
    """The sizes whose product each of the authors' regressors is, by its name."""
    # inH and inW of a fully connected layer are two regressors although both are 1.
    sizes = SIZES[family]
    if quantity == "power":
        sizes += tuple(f"log2({name})" for name in sizes)
    degree = 2 if quantity == "power" else DEGREE[family]
    products = {}
    for order in range(1, degree + 1):
        for places in combinations_with_replacement(range(len(sizes)), order):
            label = "*".join(f"{sizes[place]}.{place}" for place in places)
            products[label] = tuple(sizes[place] for place in places)
    if family != "linear" or quantity != "power":  # power of a fully connected layer has none
        for number, names in enumerate(SPECIAL[family], start=1):
            products[f"special{number}:{'*'.join(names)}"] = names
    return products


def regressors(
    family: str, quantity: str, columns: Columns, names: Iterable[str] | None = None
) -> dict[str, FloatArray]:
    """The authors' regressors without the intercept, by name, each of shape ``(rows,)``.

    Parameters
    ----------
    family
        ``conv``, ``linear`` or ``pool``.
    quantity
        ``runtime``, ``power``, or ``energy``, which the authors do not model and which gets the
        regressors of runtime.
    columns
        What :func:`pytest_neuralpower.estimators.features.columns` made of the layers.
    names
        Those wanted; by default all: 127 of conv, 21 (runtime) and 65 (power) of linear, 86 and 93
        of pool.
    """
    factors = _factors(family, quantity)
    base = {**columns, "one": np.ones_like(columns["flops"])}
    if quantity == "power":
        base |= {f"log2({name})": np.log2(base[name]) for name in SIZES[family]}
    return {
        name: np.prod([base[size] for size in factors[name]], axis=0)
        for name in (factors if names is None else names)
    }


class NeuralPowerPolynomial(Estimator, tag="neuralpower"):
    """The paper's model: Lasso on absolute error, penalty by 10-fold cross-validation.

    Parameters
    ----------
    family
        ``conv``, ``linear`` or ``pool``: the paper models no other layer.
    quantity
        ``runtime`` (floored at 0.105 ms as the authors' predictor does), ``power`` or ``energy``.

    Attributes
    ----------
    coefficients_
        Non-zero coefficients by regressor.
    intercept_
        ms or W.
    """

    name: ClassVar[str] = "neuralpower"

    family: str
    quantity: str = "runtime"
    intercept_: float = 0.0
    coefficients_: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.family not in SIZES:
            raise ValueError(f"neuralpower models {', '.join(SIZES)}, not {self.family!r}")
        for name in self.coefficients_:
            if name not in _factors(self.family, self.quantity):
                raise ValueError(f"unknown regressor {name!r}")

    def _fit(self, columns: Columns, target: FloatArray) -> None:
        try:
            import sklearn  # noqa: PLC0415 - only fitting
            import threadpoolctl  # type: ignore[import-untyped]  # noqa: PLC0415
            from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415
            from sklearn.linear_model import LassoCV  # noqa: PLC0415
            from sklearn.model_selection import KFold  # noqa: PLC0415
        except ImportError:
            raise need_extra("scikit-learn") from None
        terms = regressors(self.family, self.quantity, columns)
        matrix = np.stack(list(terms.values()), axis=1)
        mean, spread = matrix.mean(axis=0), matrix.std(axis=0)
        spread[spread == 0] = 1.0  # a constant regressor gets no coefficient
        folds = KFold(min(10, len(target)), shuffle=True, random_state=0)
        # MATLAB's lasso: 100 penalties down to 1e-4 of the largest, regressors standardised.
        lasso = LassoCV(eps=1e-4, alphas=100, cv=folds, precompute=True, max_iter=500, tol=1e-3)
        # One thread, so that the penalties that do not converge stop at the same place wherever
        # they are fitted. Rows are finite (refuse_bad_rows): checking them for each penalty again
        # would take a sixth of the time.
        with (
            threadpoolctl.threadpool_limits(1),
            sklearn.config_context(assume_finite=True, skip_parameter_validation=True),
            warnings.catch_warnings(),
        ):
            # The smallest penalties of collinear polynomials never converge fully; they are
            # compared on held-out folds like the others.
            warnings.simplefilter("ignore", ConvergenceWarning)
            lasso.fit((matrix - mean) / spread, target)
        weights = lasso.coef_ / spread
        self.intercept_ = float(f"{float(lasso.intercept_ - mean @ weights):.10g}")
        self.coefficients_ = {
            name: float(f"{float(weight):.10g}")
            for name, weight in zip(terms, weights, strict=True)
            if weight != 0
        }

    def predict(self, columns: Columns) -> FloatArray:
        total = self._line(columns)
        return total if self.floor is None else np.maximum(total, self.floor)

    @property
    def floor(self) -> float | None:
        """Smallest prediction; None without one."""
        return FLOOR_MS if self.quantity == "runtime" else None

    def _line(self, columns: Columns) -> FloatArray:
        terms = regressors(self.family, self.quantity, columns, self.coefficients_)
        total = np.full(len(columns["flops"]), self.intercept_)
        for name, weight in self.coefficients_.items():
            total += weight * terms[name]
        return total


# -- NeuralPower's regressors with the two changes that make them usable outside the paper.


class NeuralPowerRelative(NeuralPowerPolynomial, tag="neuralpower-relative"):
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
