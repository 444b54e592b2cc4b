"""Bounded corrections of the physical time: what is learnt on top of the roofline, and how far.

A price is ``roofline x prior x correction``. The prior is how other devices run layers of this
family, the correction what this device's own rows add. Whatever estimator learns it, the correction
is bounded by what the rows showed and fades outside their range, no price beats the ceilings, and
none falls when the batch grows: all of it here, once.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal, TypeAlias

import numpy as np
from msgspec import Meta, Struct, field
from msgspec.structs import replace

from pytest_neuralpower.estimators.base import Estimator, some_rows
from pytest_neuralpower.estimators.boosted import Boosted
from pytest_neuralpower.estimators.features import FAMILIES, op_code, op_name, range_columns
from pytest_neuralpower.estimators.neuralpower import NeuralPowerPolynomial, NeuralPowerRelative
from pytest_neuralpower.estimators.physical import Physical
from pytest_neuralpower.estimators.physics import (
    FEATURES,
    Ceilings,
    batches,
    least_ms,
    roofline_ms,
    with_batch,
)
from pytest_neuralpower.estimators.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_neuralpower.estimators.features import Columns, FloatArray, IndexArray

#: Terms that a polynomial keeps at most: more cannot be read, and say no more of devices unseen.
MOST_TERMS: Final = 30

#: Weight of the coefficients' squares against the mean error.
_RIDGE: Final = 1e-3

#: Errors of the logarithm below this count squared, beyond it by their size.
_SMALL_ERROR: Final = 0.03

_FITS: Final = 12

#: Share of the rows that the bounds of a correction hold, and how far they reach beyond.
_HELD: Final = 0.99
_MARGIN: Final = float(np.log(1.25))

#: Doublings of a batch that are looked at, at most.
_DOUBLINGS: Final = 24

#: Rows that are priced in one go for that: numpy's calls cost more than so many rows do.
_AT_ONCE: Final = 1024

#: Two batches are equally far from what was calibrated within so many doublings.
_NEARER: Final = 1e-9

#: Of a doubling: how far away a tensor twice as large is. It changes no kernel's efficiency.
_MORE_OF_THE_SAME: Final = 0.25

#: What a price may fall by when the batch doubles: libraries do take less time for 64 rows than
#: for 32 here and there.
_FALL: Final = 0.04

#: No price is above so many times the roofline, launches included: what rows of tiny layers show
#: beyond is what the process that timed them added.
MOST_ROOFLINES: Final = 15.0
#: On processors some layers run on scalar code: rows of depthwise and transposed convolutions show
#: it.
_MOST_ON_PROCESSORS: Final = 60.0

#: Doublings that an operation is away that no row had.
_OTHER_OPERATION: Final = 1.0

#: Families with an operation of their own name.
_NAMESAKES: Final = ("softmax", "embedding")

_Log: TypeAlias = Annotated[float, Meta(ge=-10, le=10)]


class Sparse(Estimator, tag="neuralpower-bounded", omit_defaults=True):
    """A sparse polynomial of degree 2 as the logarithm of a factor, kept within what rows showed.

    The regressors are NeuralPower's in spirit: logarithms of sizes, and its special terms
    (operations, memory) over what the device could do; the loss is relative.

    Parameters
    ----------
    inputs
        Names of :data:`~pytest_neuralpower.estimators.physics.FEATURES`.
    ceilings
        Of the device.
    of
        The column that is multiplied, ms: ``roofline_ms`` or ``prior_ms``.

    Attributes
    ----------
    intercept_, coefficients_
        Of the polynomial: a term is a name, or two joined by ``*``.
    ranges_
        Least and largest value of each input: what lies beyond is taken to lie at its edge.
    bounds_
        Least and largest logarithm of the factor.
    """

    name: ClassVar[str] = "neuralpower-bounded"

    inputs: tuple[str, ...]
    ceilings: Ceilings
    of: Literal["roofline_ms", "prior_ms"] = "prior_ms"
    intercept_: float = 0.0
    coefficients_: dict[str, float] = field(default_factory=dict)
    ranges_: dict[str, tuple[float, float]] = field(default_factory=dict)
    bounds_: tuple[_Log, _Log] = (0.0, 0.0)

    def __post_init__(self) -> None:
        used = [name for term in self.coefficients_ for name in _parts(term)]
        for name in (*self.inputs, *used, *self.ranges_):
            if name not in FEATURES:
                raise ValueError(f"unknown input {name!r}; there are {', '.join(FEATURES)}")
        for name in used:
            if name not in self.ranges_:
                raise ValueError(f"a term of {name!r}, which has no range")
        _refuse_reversed(self.ranges_, self.bounds_)

    def _fit(self, columns: Columns, target: FloatArray) -> None:
        values = {name: FEATURES[name][1](columns, self.ceilings) for name in self.inputs}
        self.fit_values(values, np.log(target / columns[self.of]), np.ones(len(target)))

    def fit_values(
        self, values: Mapping[str, FloatArray], wanted: FloatArray, weight: FloatArray
    ) -> Sparse:
        """Fit to rows of several devices, each of which has ceilings of its own.

        Parameters
        ----------
        values
            By name, each input of each row, shape ``(rows,)``.
        wanted
            Logarithms of the factors, shape ``(rows,)``.
        weight
            Of each row, so that devices and sources count alike.
        """
        self.ranges_ = {
            name: (_rounded(float(each.min())), _rounded(float(each.max())))
            for name, each in values.items()
        }
        terms = {
            term: each
            for term in _terms(self.inputs)
            if np.ptp(each := _value(term, values)) > 1e-9
        }
        kept = list(terms)
        if kept:
            size = _fitted([terms[term] for term in kept], wanted, weight)[1]
            order = np.argsort(-np.abs(size), kind="stable")[:MOST_TERMS]
            kept = [kept[place] for place in sorted(order.tolist())]
        weights, _ = _fitted([terms[term] for term in kept], wanted, weight)
        self.intercept_ = _rounded(float(weights[0]))
        self.coefficients_ = {
            term: _rounded(float(each)) for term, each in zip(kept, weights[1:], strict=True)
        }
        edges = np.quantile(wanted, (0.005, 0.995))
        self.bounds_ = (_rounded(float(edges[0])), _rounded(float(edges[1])))
        return self

    def log_factor(self, columns: Columns) -> FloatArray:
        """Logarithm of the factor of each row, shape ``(rows,)``."""
        rows = len(columns["flops"])
        # The constant is a term of ones; adding along the first axis goes term by term, in order.
        values = np.ones((len(self.ranges_) + 1, rows))
        for place, (name, (low, high)) in enumerate(self.ranges_.items()):
            np.clip(FEATURES[name][1](columns, self.ceilings), low, high, out=values[place])
        one, other = _places(tuple(self.coefficients_), tuple(self.ranges_))
        weights = np.array([self.intercept_, *self.coefficients_.values()])[:, None]
        total = (weights * (values[one] * values[other])).sum(axis=0)
        return np.asarray(np.clip(total, *self.bounds_))

    def predict(self, columns: Columns) -> FloatArray:
        return np.asarray(columns[self.of] * np.exp(self.log_factor(columns)))


def _refuse_reversed(
    ranges: Mapping[str, tuple[float, float]], bounds: tuple[float, float]
) -> None:
    """Raise ValueError for what ends below its start."""
    for name, (low, high) in ranges.items():
        if low > high:
            raise ValueError(f"range {name!r} ends below its start")
    if bounds[0] > bounds[1]:
        raise ValueError("bounds end below their start")


@cache
def _places(terms: tuple[str, ...], inputs: tuple[str, ...]) -> tuple[list[int], list[int]]:
    """Of the constant and of every term, which inputs are multiplied; the last place is of ones."""
    place = {name: number for number, name in enumerate(inputs)}
    pairs = [[place[name] for name in _parts(term)] for term in terms]
    ones = len(inputs)
    found = [(ones, ones), *((pair[0], (*pair, ones)[1]) for pair in pairs)]
    return [one for one, _ in found], [other for _, other in found]


def _parts(term: str) -> list[str]:
    return term.split("*")


def _terms(inputs: Sequence[str]) -> list[str]:
    squares = [f"{one}*{other}" for at, one in enumerate(inputs) for other in inputs[at:]]
    return [*inputs, *squares]


def _value(term: str, values: Mapping[str, FloatArray]) -> FloatArray:
    one, *other = _parts(term)
    return values[one] * values[other[0]] if other else values[one]


def _fitted(
    terms: Sequence[FloatArray], wanted: FloatArray, weight: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Weights of a constant and of the terms; and of the terms in units of their deviation.

    Least absolute deviations with a ridge, by reweighing.
    """
    matrix = np.stack([np.ones_like(wanted), *terms], axis=1)
    middle, size = matrix.mean(axis=0), matrix.std(axis=0)
    middle[0], size[0] = 0.0, 1.0
    size[size == 0] = 1.0
    scaled = (matrix - middle) / size
    ridge = np.eye(matrix.shape[1]) * _RIDGE * weight.sum()
    ridge[0, 0] = 0.0
    each, found = weight.copy(), np.zeros(matrix.shape[1])
    for _ in range(_FITS):
        left = scaled.T * each
        found = np.linalg.solve(left @ scaled + ridge, left @ wanted)
        error = np.maximum(np.abs(wanted - scaled @ found), _SMALL_ERROR)
        each = weight * _SMALL_ERROR / error
    weights = found / size
    weights[0] -= float(weights[1:] @ middle[1:])
    return weights, found[1:]


class Prior(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How other devices run layers of one family.

    Attributes
    ----------
    factor
        On the roofline: a polynomial, or its intercept alone.
    between, within
        Standard deviation of its logarithmic error from device to device, and on one device.
    devices
        That it is known of.
    like
        Where no device ran layers of the family: the family whose factor it takes.
    stacks
        Standard deviation of the difference between two stacks (library, version) on one device; 0
        where no device ran layers of the family on two.
    alike, reach
        Share of the variance on one device that layers of nearly equal sizes have in common, and
        the doublings of sizes over which it falls to 1/e.
    """

    factor: Sparse
    between: Annotated[float, Meta(ge=0, le=10)]
    within: Annotated[float, Meta(ge=0, le=10)]
    devices: tuple[str, ...] = ()
    like: str = ""
    stacks: Annotated[float, Meta(ge=0, le=10)] = 0.0
    alike: Annotated[float, Meta(ge=0, le=1)] = 0.0
    reach: Annotated[float, Meta(gt=0)] = 1.0

    def __post_init__(self) -> None:
        if self.factor.of != "roofline_ms":
            raise ValueError(f"its factor is of {self.factor.of}, not of roofline_ms")

    @property
    def distance(self) -> float:
        """Log factor that holds 90% of the layers of a device that it has not seen."""
        return float(f"{1.645 * float(np.hypot(self.between, self.within)):.4g}")

    @property
    def witnesses(self) -> str:
        """How many devices it is known of, in words."""
        count = len(self.devices)
        devices = "1 other device" if count == 1 else f"{count} other devices"
        return f"{devices} ({self.like}, as no device was measured)" if self.like else devices

    @property
    def correlation(self) -> float:
        """Share of the variance that all layers of the family on one device have in common."""
        total = self.between**2 + self.within**2
        return float(f"{self.between**2 / total:.4g}") if total else 1.0

    @property
    def fading(self) -> float:
        """Share that layers of nearly equal sizes have in common beyond that."""
        return float(f"{self.alike * (1.0 - self.correlation):.4g}")

    def on(self, ceilings: Ceilings) -> Prior:
        """The same of a device with these ceilings."""
        return replace(self, factor=replace(self.factor, ceilings=ceilings))


#: By level and rows: their times, what they are at most, and how far away they are.
_AtBatch: TypeAlias = "Callable[[int, IndexArray], list[FloatArray]]"

_Inner: TypeAlias = Physical | NeuralPowerPolynomial | NeuralPowerRelative | Tree | Boosted | Sparse


class Bounded(Estimator, tag="bounded", omit_defaults=True):
    """Time in ms: the roofline, as other devices run it, corrected by what this one showed.

    Parameters
    ----------
    family
        Of the layers.
    ceilings
        Of the device.
    prior
        How other devices run the family.
    inner
        What learns the time of this device's rows; None to go by the prior alone.

    Attributes
    ----------
    ranges_
        Least and largest calibrated value of each of the family's sizes.
    ops_
        Operations that rows had; empty where they do not tell.
    center_
        Median logarithm of measured over prior time: what the correction fades to.
    bounds_
        Least and largest logarithm of it that the correction may take.
    """

    name: ClassVar[str] = "bounded"

    family: str
    ceilings: Ceilings
    prior: Prior
    inner: _Inner | None = None
    ranges_: dict[str, tuple[float, float]] = field(default_factory=dict)
    ops_: tuple[str, ...] = ()
    center_: _Log = 0.0
    bounds_: tuple[_Log, _Log] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"family {self.family!r} is not one of {', '.join(FAMILIES)}")
        _refuse_reversed(self.ranges_, self.bounds_)

    @property
    def label(self) -> str:
        return "prior" if self.inner is None else self.inner.label

    def _tune(self, columns: Columns, target: FloatArray, groups: Sequence[Hashable]) -> None:
        if self.inner is not None:
            self.inner._tune(self.seen(columns), target, groups)

    def _fit(self, columns: Columns, target: FloatArray) -> None:
        seen = self.seen(columns)
        ratio = np.log(target / seen["prior_ms"])
        self.center_ = _rounded(float(np.median(ratio)))
        low, high = np.quantile(ratio, (0.5 - _HELD / 2, 0.5 + _HELD / 2))
        self.bounds_ = (_rounded(float(low) - _MARGIN), _rounded(float(high) + _MARGIN))
        self.ranges_ = {
            name: (float(columns[name].min()), float(columns[name].max()))
            for name in range_columns(self.family)
        }
        if "op" in columns:
            ops = sorted(op_name(code) for code in np.unique(columns["op"]).tolist())
            # Rows of a profile may name their kind alone: any operation of it may be meant.
            unnamed = self.family in ops and self.family not in _NAMESAKES
            self.ops_ = () if unnamed else tuple(ops)
        if self.inner is not None:
            self.inner._fit(seen, target)

    def seen(self, columns: Columns) -> dict[str, FloatArray]:
        """The columns, with the roofline, the time by the prior, and operations per byte."""
        roofline = roofline_ms(self.family, columns, self.ceilings)
        found = {**columns, "roofline_ms": roofline}
        found["prior_ms"] = self.prior.factor.predict(found)
        found["intensity"] = columns["flops"] / np.maximum(columns["bytes_moved"], 1.0)
        return found

    def prior_ms(self, columns: Columns) -> FloatArray:
        """Time in ms as other devices run these layers."""
        return self.seen(columns)["prior_ms"]

    def _once(self, columns: Columns) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Time of each row, whatever another batch takes; what it takes at most; and how far it is
        from what was calibrated."""
        seen = self.seen(columns)
        base = seen["prior_ms"]
        correction = np.full(len(base), self.center_)
        away = self.doublings_outside(columns)
        if self.inner is not None:
            learnt = np.log(np.maximum(self.inner.predict(seen), 1e-12) / base)
            inside = 0.5**away**2
            learnt = np.clip(learnt, *self.bounds_)
            correction += inside * (learnt - self.center_)
        least = least_ms(self.family, columns, self.ceilings)
        slowest = MOST_ROOFLINES if self.ceilings.gpu else _MOST_ON_PROCESSORS
        highest = np.maximum(slowest * seen["roofline_ms"], least)
        above = self.prior.factor.bounds_[1] + max(self.bounds_[1], self.center_)
        most = seen["roofline_ms"] * np.exp(above)
        found = np.clip(base * np.exp(correction), least, highest)
        return found, np.clip(most, least, highest), away

    def doublings_outside(self, columns: Columns) -> FloatArray:
        """How many times sizes must double or halve to be in the calibrated ranges, in sum.

        Shape ``(rows,)``; 0 inside. An operation that no row had counts as one doubling.
        """
        total = np.zeros(len(columns["flops"]))
        for name, (low, high) in self.ranges_.items():
            values = np.maximum(columns[name], 1e-3)
            beyond = np.log2(np.maximum(values / max(high, 1e-3), 1.0))
            beyond += np.log2(np.maximum(max(low, 1e-3) / values, 1.0))
            same = name == "bytes_moved" or self.family == "pool"
            total += beyond * (_MORE_OF_THE_SAME if same else 1.0)
        if self.ops_ and self.family != "pool":  # pools differ by their windows, not by their names
            known = np.isin(columns["op"], [op_code(op) for op in self.ops_])
            total += np.where(known, 0.0, _OTHER_OPERATION)
        return total

    def predict(self, columns: Columns) -> FloatArray:
        """Time in ms, shape ``(rows,)``: none falls when the batch doubles.

        Where two batches contradict each other, the one nearer to what was calibrated is believed:
        a smaller one raises a price, and a larger one lowers it.
        """
        if self.inner is None and not self.prior.factor.coefficients_:
            return self._once(columns)[0]  # one factor on the roofline, which grows with the batch
        halvings = np.log2(np.maximum(batches(self.family, columns), 1.0)).astype(int)
        at = self._at_batches(columns, halvings)
        rows: IndexArray = np.arange(len(halvings))
        best, _, away = (each.copy() for each in at(0, rows))
        self._raise_to_halves(at, best, away.copy(), halvings)
        self._lower_to_doubles(at, best, away)
        return best

    def _raise_to_halves(
        self, at: _AtBatch, best: FloatArray, away: FloatArray, halvings: IndexArray
    ) -> None:
        """No price is below that of half the batch, as long as halving leads no further away."""
        rows = np.flatnonzero(halvings > 0)
        level = 0
        while len(rows):
            level += 1
            kept = (1.0 - _FALL) ** level
            found, most, there = at(-level, rows)
            near = there <= away[rows] + _NEARER
            nearer = rows[near]
            best[nearer] = np.maximum(best[nearer], kept * found[near])
            away[nearer] = there[near]
            # A smaller one can only have taken longer where even its bound does.
            rows = nearer[(halvings[nearer] > level) & (kept * most[near] > best[nearer])]

    def _lower_to_doubles(self, at: _AtBatch, best: FloatArray, away: FloatArray) -> None:
        """No price is above that of twice the batch, as long as doubling leads nearer."""
        rows = np.flatnonzero(away > 0)
        for level in range(1, _DOUBLINGS + 1):
            if not len(rows):
                break
            found, _, there = at(level, rows)
            near = there < away[rows] - _NEARER
            rows = rows[near]
            best[rows] = np.minimum(best[rows], found[near] / (1.0 - _FALL) ** level)
            away[rows] = there[near]

    def _at_batches(self, columns: Columns, halvings: IndexArray) -> _AtBatch:
        """What prices rows, by their numbers, at ``2**level`` times their batch (:meth:`_once`).

        Of few layers all levels that may be asked for are priced at once, of many those that are.
        """
        count, first = len(halvings), -int(halvings.max(initial=0))
        farthest = float(self.doublings_outside(columns).max(initial=0.0)) / _MORE_OF_THE_SAME
        levels = np.arange(first, min(_DOUBLINGS, int(np.ceil(farthest))) + 1)
        if count * len(levels) > _AT_ONCE:

            def asked(level: int, rows: IndexArray) -> list[FloatArray]:
                times = np.full(len(rows), 2.0**level)
                return list(self._once(with_batch(self.family, some_rows(columns, rows), times)))

            return asked
        tiled = {name: np.tile(values, len(levels)) for name, values in columns.items()}
        times = np.asarray(2.0 ** np.repeat(levels, count), dtype=np.float64)
        priced = self._once(with_batch(self.family, tiled, times))
        table = [each.reshape(len(levels), count) for each in priced]
        last = len(levels) - 1  # nothing beyond leads nearer
        return lambda level, rows: [each[min(level - first, last), rows] for each in table]

    def evaluate_all(self, columns: Columns) -> None:
        self.predict(columns)
        self.doublings_outside(columns)
        if self.inner is not None:
            self.inner.evaluate_all(self.seen(columns))


def at_other_ceilings(
    family: str,
    columns: Columns,
    alike: Columns,
    estimate: Callable[[Columns], FloatArray],
    *,
    own: Ceilings,
    other: Ceilings,
) -> FloatArray:
    """Time (ms) of layers at other ceilings than an estimator's rows had: theirs by the ratio of
    the rooflines, shape ``(rows,)``. As at their own, none falls when the batch doubles.

    Parameters
    ----------
    columns, alike
        The layers as they are, and as the rows of the estimator would have them.
    estimate
        What predicts ``alike`` (ms), a :class:`Bounded` with what its mode adds.
    own, other
        The ceilings of the rows, and of ``columns``.
    """

    def ratio(some: Columns, others: Columns) -> FloatArray:
        return roofline_ms(family, some, other) / roofline_ms(family, others, own)

    most = estimate(alike)
    best = most * ratio(columns, alike)
    halvings = np.log2(np.maximum(batches(family, alike), 1.0)).astype(int)
    for level in range(1, int(halvings.max(initial=0)) + 1):
        # What grows is the gain of a faster peak: a layer that is launched has none.
        rows = np.flatnonzero((halvings >= level) & (most > best))
        if not len(rows):
            break
        times = np.full(len(rows), 0.5**level)
        halves = [with_batch(family, some_rows(each, rows), times) for each in (columns, alike)]
        gains = ratio(halves[0], halves[1])
        longer = gains * most[rows] > best[rows]
        rows = rows[longer]
        if len(rows):
            most[rows] = (1.0 - _FALL) ** level * estimate(some_rows(halves[1], longer))
            best[rows] = np.maximum(best[rows], most[rows] * gains[longer])
    return best


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
