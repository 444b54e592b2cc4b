"""NeuralPower's own estimator: polynomials and special terms, chosen by Lasso.

Cai, Juan, Stamoulis, Marculescu, "NeuralPower: Predict and Deploy Energy-Efficient Convolutional
Neural Networks", ACML 2017, section 3, with the regressors that the authors' published training
scripts use: polynomials of the sizes, of power also of their logarithms, and products with a
physical meaning. The Lasso's penalty is that of least 10-fold cross-validated squared error, as in
these scripts, and the degree that of least cross-validated RMSPE. (The authors settled on degree 3
for the runtime of conv and pool, 2 for that of fully connected layers, and 2 for power.)
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from functools import cache
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

import numpy as np
from msgspec import field

from pytest_neuralpower.estimators.base import Estimator, Positive, need_extra

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from pytest_neuralpower.estimators.features import Columns, FloatArray

#: The authors' predictor never answers less than this, ms: no layer that they measured was faster.
FLOOR_MS: Final = 0.105

#: Sizes that the polynomial runs over, under the authors' names, and the columns that hold them.
SIZES: Final[dict[str, tuple[str, ...]]] = {
    "conv": ("batch", "oh", "ow", "kw", "cin", "cout", "h"),
    "linear": ("m", "n", "one", "one", "k"),  # N, Cout, inH, inW, Cin: inH = inW = 1 here
    "pool": ("batch", "oh", "ow", "channels", "kh", "h"),
}

#: Degree of the authors' runtime polynomials; those of power have degree 2.
DEGREE: Final = {"conv": 3, "linear": 2, "pool": 3}

#: Degrees that are tried, by quantity.
DEGREES: Final = {"runtime": (1, 2, 3), "power": (1, 2), "energy": (1, 2, 3)}

#: Penalties as MATLAB's ``lasso`` has them: so many, down to this share of the largest.
_PENALTIES: Final = 100
_LEAST_PENALTY: Final = 1e-4

_FOLDS: Final = 10

#: A penalty is solved when the duality gap is at most this share of the targets' squares.
_GAP: Final = 1e-7

#: Corners of the path that are followed, at most, for each regressor.
_CORNERS: Final = 20

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
def _factors(family: str, quantity: str, degree: int) -> dict[str, tuple[str, ...]]:
    """The sizes whose product each of the authors' regressors is, by its name."""
    # inH and inW of a fully connected layer are two regressors although both are 1.
    sizes = SIZES[family]
    if quantity == "power":
        sizes += tuple(f"log2({name})" for name in sizes)
    products = {}
    for order in range(1, degree + 1):
        for places in combinations_with_replacement(range(len(sizes)), order):
            label = "*".join(f"{sizes[place]}.{place}" for place in places)
            products[label] = tuple(sizes[place] for place in places)
    if family != "linear" or quantity != "power":  # power of a fully connected layer has none
        for number, names in enumerate(SPECIAL[family], start=1):
            products[f"special{number}:{'*'.join(names)}"] = names
    return products


def _most(quantity: str) -> int:
    """The highest degree that is tried."""
    return DEGREES[quantity][-1]


def authors_degree(family: str, quantity: str) -> int:
    """Degree of the polynomial that the authors settled on."""
    return 2 if quantity == "power" else DEGREE[family]


def regressors(
    family: str,
    quantity: str,
    columns: Columns,
    names: Iterable[str] | None = None,
    *,
    degree: int | None = None,
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
        Those wanted, of any degree; by default all of ``degree``: with the authors' 127 of conv,
        21 (runtime) and 65 (power) of linear, 86 and 93 of pool.
    degree
        The authors' by default.
    """
    if names is None:
        degree = authors_degree(family, quantity) if degree is None else degree
        names = _factors(family, quantity, degree)
    factors = _factors(family, quantity, _most(quantity))
    base = {**columns, "one": np.ones_like(columns["flops"])}
    if quantity == "power":
        base |= {f"log2({name})": np.log2(np.maximum(base[name], 1)) for name in SIZES[family]}
    return {name: np.prod([base[size] for size in factors[name]], axis=0) for name in names}


class NeuralPowerPolynomial(Estimator, tag="neuralpower", omit_defaults=True):
    """The paper's model: Lasso on absolute error, penalty and degree by 10-fold cross-validation.

    Parameters
    ----------
    family
        ``conv``, ``linear`` or ``pool``: the paper models no other layer.
    quantity
        ``runtime``, ``power`` or ``energy``. Runtimes are floored as the authors' predictor does,
        at 0.105 ms, or at the fastest row where a device has one that is faster.

    Attributes
    ----------
    degree_
        Of the polynomial; 0 before it is fitted.
    floor_
        Least runtime, ms; None for the authors'.
    coefficients_
        Non-zero coefficients by regressor.
    intercept_
        ms or W.
    """

    name: ClassVar[str] = "neuralpower"

    family: str
    quantity: str = "runtime"
    degree_: int = 0
    floor_: Positive | None = None
    intercept_: float = 0.0
    coefficients_: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.family not in SIZES:
            raise ValueError(f"neuralpower models {', '.join(SIZES)}, not {self.family!r}")
        if self.quantity not in DEGREES:
            raise ValueError(f"quantity {self.quantity!r}: one of {', '.join(DEGREES)}")
        for name in self.coefficients_:
            if name not in _factors(self.family, self.quantity, _most(self.quantity)):
                raise ValueError(f"unknown regressor {name!r}")

    def _fit(self, columns: Columns, target: FloatArray) -> None:
        if self.quantity == "runtime":
            self.floor_ = min(FLOOR_MS, float(target.min()))
        found: _Chosen | None = None
        for degree in DEGREES[self.quantity]:
            terms = regressors(self.family, self.quantity, columns, degree=degree)
            tried = _lasso(terms, target, self.floor)
            if found is None or tried.rmspe < found.rmspe:
                self.degree_, found = degree, tried
        assert found is not None  # every quantity has degrees
        if found.unsolved:
            warnings.warn(
                f"neuralpower, {self.quantity} of {self.family}: the Lasso of {found.unsolved} of "
                f"{_PENALTIES} penalties did not converge; they were left out of the choice",
                stacklevel=2,
            )
        self.intercept_ = float(f"{found.intercept:.10g}")
        self.coefficients_ = {
            name: float(f"{weight:.10g}") for name, weight in found.weights.items()
        }

    def predict(self, columns: Columns) -> FloatArray:
        total = self._line(columns)
        return total if self.floor is None else np.maximum(total, self.floor)

    @property
    def floor(self) -> float | None:
        """Smallest prediction; None without one."""
        if self.quantity != "runtime":
            return None
        return FLOOR_MS if self.floor_ is None else self.floor_

    def _line(self, columns: Columns) -> FloatArray:
        terms = regressors(self.family, self.quantity, columns, self.coefficients_)
        total = np.full(len(columns["flops"]), self.intercept_)
        for name, weight in self.coefficients_.items():
            total += weight * terms[name]
        return total


# -- The Lasso, solved along its path.
#
# Polynomials of sizes are so collinear that coordinate descent stops far from the solution of small
# penalties, or takes minutes to reach it. The path is piecewise linear in the penalty: least-angle
# regression (Efron et al., 2004) follows it from corner to corner on the Gram matrix, in time that
# does not depend on the number of rows. Every solution used is checked by its duality gap.


class _Chosen(NamedTuple):
    """The solution of one degree whose penalty predicts held-out folds best.

    ``rmspe`` is the root mean square of its relative errors on these folds; ``unsolved`` counts the
    penalties that rounding kept the path from reaching, where the error still fell before them.
    """

    rmspe: float
    weights: dict[str, float]
    intercept: float
    unsolved: int


def _lasso(terms: Mapping[str, FloatArray], target: FloatArray, floor: float | None) -> _Chosen:
    """The penalty by cross-validation, and the Lasso of all rows with it; ``floor`` is the least
    that is predicted."""
    try:
        from sklearn.model_selection import KFold  # noqa: PLC0415 - only fitting
    except ImportError:
        raise need_extra("scikit-learn") from None
    matrix = np.stack(list(terms.values()), axis=1)
    mean, spread = matrix.mean(axis=0), matrix.std(axis=0)
    kept = _telling(matrix - mean, spread)
    names = [list(terms)[place] for place in kept.tolist()]
    mean, spread = mean[kept], spread[kept]
    scaled = (matrix[:, kept] - mean) / spread
    everything = _Moments.of(scaled, target)
    penalties = everything.largest_penalty * np.geomspace(1.0, _LEAST_PENALTY, _PENALTIES)
    weights, solved = _path(everything, penalties)
    predicted = np.empty((len(target), _PENALTIES))
    folds = KFold(min(_FOLDS, len(target)), shuffle=True, random_state=0)
    for seen, unseen in folds.split(scaled):
        fold = _Moments.of(scaled[seen], target[seen])
        held_out, there = _path(fold, penalties)
        predicted[unseen] = (scaled[unseen] - fold.mean) @ held_out + fold.target
        solved &= there
    errors = ((predicted - target[:, None]) ** 2).mean(axis=0)
    best = int(np.argmin(np.where(solved, errors, np.inf)))
    rates = weights[:, best] / spread
    answered = np.maximum(predicted[:, best], -np.inf if floor is None else floor)
    return _Chosen(
        float(np.sqrt(np.mean((answered / target - 1) ** 2))),
        {name: rate for name, rate in zip(names, rates.tolist(), strict=True) if rate != 0},
        everything.target - float(mean @ rates),
        int((~solved).sum()) if not solved[best + 1 : best + 2].all() else 0,
    )


def _telling(centred: FloatArray, spread: FloatArray) -> NDArray[np.intp]:
    """Places of regressors that vary, each but once: maps that are all square have their height
    and their width alike."""
    size = np.abs(centred).max(axis=0, initial=0.0)
    places = np.flatnonzero(spread > 1e-9 * size)
    alike = np.round(centred[:, places] / spread[places], 9) + 0.0
    _, first = np.unique(alike, axis=1, return_index=True)
    return np.asarray(np.sort(places[first]))


class _Moments(NamedTuple):
    """All that the Lasso needs of rows: means, and products of what is centred."""

    rows: int
    mean: FloatArray
    target: float
    gram: FloatArray
    with_target: FloatArray
    squares: float

    @classmethod
    def of(cls, matrix: FloatArray, target: FloatArray) -> _Moments:
        mean, middle = matrix.mean(axis=0), float(target.mean())
        centred, wanted = matrix - mean, target - middle
        products = centred.T @ centred, centred.T @ wanted, float(wanted @ wanted)
        return cls(len(target), mean, middle, *products)

    @property
    def largest_penalty(self) -> float:
        """The least with which every weight is 0."""
        return float(np.abs(self.with_target).max(initial=0.0)) / self.rows

    def gaps(self, weights: FloatArray, penalties: FloatArray) -> FloatArray:
        """Duality gap of each column of ``weights``, as a share of the targets' squares."""
        left = self.with_target[:, None] - self.gram @ weights
        explained = self.with_target @ weights
        squares = self.squares - explained - (weights * left).sum(axis=0)
        most = np.maximum(np.abs(left).max(axis=0, initial=0.0), 1e-300)
        scale = np.minimum(1.0, penalties * self.rows / most)
        primal = squares / 2 + penalties * self.rows * np.abs(weights).sum(axis=0)
        dual = scale * (self.squares - explained) - scale**2 * squares / 2
        return np.asarray((primal - dual) / max(self.squares, 1e-300))


def _path(moments: _Moments, penalties: FloatArray) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Weights of falling penalties, shape ``(regressors, penalties)``, and which are solved."""
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415 - the caller has looked
    from sklearn.linear_model import lars_path_gram  # noqa: PLC0415

    if not moments.largest_penalty:  # nothing tells the targets apart
        weights = np.zeros((len(moments.mean), len(penalties)))
        return weights, np.full(len(penalties), fill_value=True)
    with _one_thread(), warnings.catch_warnings():
        # Of regressors that it leaves out as sums of others, which costs nothing, and of rounding
        # that ends it early, which the gaps find.
        warnings.simplefilter("ignore", ConvergenceWarning)
        corners, _, there = lars_path_gram(
            moments.with_target.copy(),
            moments.gram.copy(),
            n_samples=moments.rows,
            alpha_min=float(penalties[-1]),
            method="lasso",
            max_iter=_CORNERS * len(moments.mean),
        )
    weights = np.stack([np.interp(penalties, corners[::-1], each[::-1]) for each in there])
    return weights, moments.gaps(weights, penalties) <= _GAP


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums come out alike wherever they are fitted; rows, finite already, are not checked again."""
    import sklearn  # noqa: PLC0415 - the caller has looked
    import threadpoolctl  # type: ignore[import-untyped]  # noqa: PLC0415

    with (
        threadpoolctl.threadpool_limits(1),
        sklearn.config_context(assume_finite=True, skip_parameter_validation=True),
    ):
        yield


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
