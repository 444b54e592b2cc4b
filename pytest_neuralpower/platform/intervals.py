"""How sure a prediction is: intervals of layers, of totals, and of differences between two calls.

A *spread* says how far measured values lay from held-out predictions: 90% of them within a factor
``exp(distance)`` up or down. It is the split-conformal quantile of the absolute log residual
(Lei, G'Sell, Rinaldo, Tibshirani, Wasserman, "Distribution-Free Predictive Inference for
Regression", JASA 2018), taken over held-out shapes.

Errors of several layers add up as four parts, independent of one another, each a 90% half-width:

- *shared* by all layers of one family: a device, a library, a mode is off for all of them alike.
  It is ``sqrt(correlation)`` of each layer's half-width, summed over layers before it is squared:
  it does not average out;
- *own* to a configuration: the rest. A configuration that a model runs ten times is off by the
  same ten times over, so it is summed over equal configurations before it is squared;
- of power as well as runtime, where energy is their product;
- of the *model*: how far a call is from the sum of its layers, which no layer's rows can tell.

In a difference every layer of the base counts negatively, so what both calls have in common
cancels: equal configurations fully, layers of one family as far as their sizes are alike, and the
error of the model as far as the same places of the model are in both.

Both take the safe side. A total takes all layers of a family to err alike as rows of neighbouring
sizes do; a difference lets that fade with the distance in sizes, as it faded between held-out rows
(a variogram: Matheron, "Principles of geostatistics", Economic Geology 1963).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Final, Literal, NamedTuple, TypeAlias

import numpy as np
from msgspec import Meta, Struct
from msgspec.structs import replace

from pytest_neuralpower.estimators.features import FloatArray, IndexArray
from pytest_neuralpower.layers import Layer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.units import Quantity


class Interval(NamedTuple):
    """Central interval that holds the true value with probability ``coverage``."""

    low: float
    high: float
    coverage: float


#: Log of a factor: one of e^10 says nothing any more.
_Distance: TypeAlias = Annotated[float, Meta(ge=0, le=10)]


class Spread(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How far measured layers lay from what was predicted without them.

    Attributes
    ----------
    inside
        Log of the factor that holds the interval's share of layers inside the calibrated ranges.
    outside
        The same of layers outside; at least ``inside``.
    correlation
        Share (0..1) of the variance that layers of one family and nearly equal sizes have in
        common.
    fading
        The part of that share that fades with the distance in sizes; 0 by default.
    reach
        Doublings of sizes over which it falls to 1/e; 1 by default.
    """

    inside: _Distance
    outside: _Distance
    correlation: Annotated[float, Meta(ge=0, le=1)]
    fading: Annotated[float, Meta(ge=0, le=1)] = 0.0
    reach: Annotated[float, Meta(gt=0)] = 1.0

    def __post_init__(self) -> None:
        if self.outside < self.inside:
            raise ValueError(f"outside {self.outside:g} is less than inside {self.inside:g}")
        if self.fading > self.correlation:
            raise ValueError(
                f"fading {self.fading:g} is more than correlation {self.correlation:g}"
            )


class QuantitySpreads(Struct, frozen=True, forbid_unknown_fields=True):
    """Spreads of one quantity.

    Attributes
    ----------
    families
        By family of layers.
    other
        Of every family without a spread of its own; None where those are not known.
    model_error
        Log of the factor by which a call may be off beyond its layers' errors.
    """

    families: dict[str, Spread]
    other: Spread | None
    model_error: _Distance = 0.0


class Intervals(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a platform knows of its own errors.

    Attributes
    ----------
    coverage
        Share (0..1) of the true values that the intervals are made to hold.
    runtime
        Families without rows have the spread of their prior.
    power
        None on a platform without power.
    energy
        Of families whose rows have measured power: their errors of runtime and power partly
        cancel. Energy of other families takes the spreads of both.
    """

    coverage: Annotated[float, Meta(gt=0, lt=1)]
    runtime: QuantitySpreads
    power: QuantitySpreads | None = None
    energy: QuantitySpreads | None = None

    def errors(
        self,
        layers: Sequence[Layer],
        families: Sequence[str],
        runtime_ms: FloatArray,
        energy_mj: FloatArray | None,
        *,
        outside: NDArray[np.bool_],
        least: FloatArray,
    ) -> LayerErrors:
        """Errors to expect of predicted layers.

        Parameters
        ----------
        layers, families
            Layers of different configurations, and the family of each.
        runtime_ms, energy_mj
            Predicted values; energy None where the platform has no power.
        outside
            Layers outside the calibrated ranges.
        least
            Log distance that a layer's runtime has at least: of a dtype that was never measured,
            what holds the physical limit; 0 elsewhere.
        """
        index: dict[str, int] = {}
        which = np.array([index.setdefault(name, len(index)) for name in families], dtype=np.intp)
        names = tuple(index)
        runtime = _part(self.runtime, names, which, outside, least)
        none = np.zeros(len(least))
        parts: dict[str, tuple[_Part, ...]] = {"runtime": (runtime,)}
        model_errors = {"runtime": self.runtime.model_error}
        if energy_mj is not None and self.power is not None:
            power = _part(self.power, names, which, outside, none)
            parts["power"] = (power,)
            parts["energy"] = (runtime, power)
            model_errors["power"] = self.power.model_error
            model_errors["energy"] = float(
                np.hypot(self.runtime.model_error, self.power.model_error)
            )
            if self.energy is not None:
                model_errors["energy"] = self.energy.model_error
                known = np.array([name in self.energy.families for name in names])[which]
                joint = _part(self.energy, names, which, outside, least)
                parts["energy"] = (joint.only(known), runtime.only(~known), power.only(~known))
        return LayerErrors(
            self.coverage,
            tuple(layers),
            np.arange(len(layers)),
            names,
            which,
            runtime_ms,
            energy_mj,
            parts,
            model_errors,
        )


class _Part(NamedTuple):
    """One cause of error: each layer's log distance, and what it has in common with its family."""

    distance: FloatArray
    correlation: FloatArray
    fading: FloatArray
    reach: FloatArray
    #: Whether the layer's family has a spread of its own; all others are of one family here.
    own: NDArray[np.bool_]

    def of(self, which: NDArray[np.intp]) -> _Part:
        return _Part(
            self.distance[which],
            self.correlation[which],
            self.fading[which],
            self.reach[which],
            self.own[which],
        )

    def only(self, mask: NDArray[np.bool_]) -> _Part:
        return self._replace(distance=np.where(mask, self.distance, 0.0))


#: What nothing measured vouches for: a factor of e.
_UNKNOWN = Spread(1.0, 1.0, 1.0)


def _part(
    spreads: QuantitySpreads,
    names: Sequence[str],
    which: NDArray[np.intp],
    outside: NDArray[np.bool_],
    least: FloatArray,
) -> _Part:
    other = spreads.other or _UNKNOWN
    found = [spreads.families.get(name, other) for name in names]
    inside, beyond, correlation, fading, reach = (
        np.array([getattr(spread, name) for spread in found])[which]
        for name in ("inside", "outside", "correlation", "fading", "reach")
    )
    distance = np.where(outside, beyond, inside)
    # How far a library gets in another dtype, it gets in all layers of the family.
    correlation = np.where(least > distance, 1.0, correlation)
    fading = np.where(least > distance, 0.0, fading)
    distance = np.maximum(distance, least)
    own = np.array([name in spreads.families for name in names])
    return _Part(distance, correlation, fading, reach, own[which])


class LayerErrors(Struct, frozen=True, eq=False):
    """Errors to expect of one prediction, layer by layer, before they are summed.

    Made by :meth:`Intervals.errors`; arrays have one element a layer.

    Attributes
    ----------
    distinct, configuration
        Layers of different configurations, and which of them each layer equals.
    names, family
        Families, and which of them each layer is of.
    runtime_ms, energy_mj
        Predicted; energy None where the platform has no power.
    model_errors
        By quantity, log of the factor by which a call may be off beyond its layers' errors.
    """

    coverage: float
    distinct: tuple[Layer, ...]
    configuration: IndexArray
    names: tuple[str, ...]
    family: IndexArray
    runtime_ms: FloatArray
    energy_mj: FloatArray | None
    _parts: Mapping[str, tuple[_Part, ...]]
    model_errors: Mapping[str, float]

    def layers(self, quantity: Literal["runtime", "energy"]) -> tuple[FloatArray, FloatArray]:
        """Lower and upper end of each layer's interval, in ms or mJ."""
        values = self.amounts(quantity)
        factor = np.exp(np.sqrt(sum(part.distance**2 for part in self._parts[quantity])))
        return values / factor, values * factor

    def of(self, which: NDArray[np.intp]) -> LayerErrors:
        """Errors of the layers with these places in this one, each as often as it is named."""
        return LayerErrors(
            self.coverage,
            self.distinct,
            self.configuration[which],
            self.names,
            self.family[which],
            self.runtime_ms[which],
            None if self.energy_mj is None else self.energy_mj[which],
            {name: tuple(part.of(which) for part in parts) for name, parts in self._parts.items()},
            self.model_errors,
        )

    def times(self, counts: FloatArray) -> LayerErrors:
        """Errors of the layers, each run so many times: it errs alike every time."""
        energy_mj = None if self.energy_mj is None else self.energy_mj * counts
        return replace(self, runtime_ms=self.runtime_ms * counts, energy_mj=energy_mj)

    def amounts(self, quantity: Quantity) -> FloatArray:
        """Each layer's part of the total: ms, mJ, or W (its energy over the call's runtime)."""
        if quantity == "runtime":
            return self.runtime_ms
        assert self.energy_mj is not None  # callers ask `knows` first
        return self.energy_mj if quantity == "energy" else self.energy_mj / self.runtime_ms.sum()

    def knows(self, quantity: Quantity) -> bool:
        """Whether the quantity is predicted, with its errors."""
        return quantity in self._parts

    def total(self, quantity: Quantity) -> tuple[float, float]:
        """Lower and upper end of the total's interval, in ms, mJ or W."""
        amounts = self.amounts(quantity)
        value = float(amounts.sum())
        _, up = spread_of_sum([self], [amounts], quantity)
        high = value + float(np.hypot(up, value * np.expm1(self.model_errors[quantity])))
        return value * value / high, high  # as far down as up, as a factor: it never reaches 0

    def factor(self, places: Sequence[int], quantity: Quantity) -> float:
        """Factor, at least 1, by which the sum of the layers at these places may be off."""
        part = self.of(np.array(places, dtype=np.intp))
        value = float(part.amounts(quantity).sum())
        return part.total(quantity)[1] / value if value else 1.0


def spread_of_sum(
    errors: Sequence[LayerErrors], signed: Sequence[FloatArray], quantity: Quantity
) -> tuple[float, float]:
    """How far a signed sum of layers may lie below and above its point, both >= 0.

    ``signed`` are amounts: negative where a layer is taken away. All of ``errors`` are of one
    platform. With more than one of them, what a family shares fades with the distance in sizes.
    """
    names = tuple(dict.fromkeys(name for each in errors for name in each.names))
    place = [np.array([names.index(name) for name in each.names]) for each in errors]
    family = np.concatenate([at[each.family] for at, each in zip(place, errors, strict=True)])
    same = _same_configurations(errors)
    # A configuration errs as one, so all of its layers are one term of the sum.
    _, first, same = np.unique(same, return_index=True, return_inverse=True)
    # Each call is summed by itself, in its order, so that what equals cancels to the last digit.
    amount = np.zeros(len(first))
    for call, values in zip(
        np.split(same, np.cumsum([len(each) for each in signed])[:-1]), signed, strict=True
    ):
        amount += np.bincount(call, values, minlength=len(first))
    family = family[first]
    sizes = _log_sizes(errors)[first] if len(errors) > 1 else None
    down = up = 0.0
    for parts in zip(*(each._parts[quantity] for each in errors), strict=True):
        columns = (np.concatenate(column)[first] for column in zip(*parts, strict=True))
        distance, correlation, fading, reach, own = columns
        shared = np.where(own, family, len(names))
        lasting = correlation if sizes is None else correlation - fading
        higher, lower = amount * np.expm1(distance), amount * np.expm1(-distance)
        # Where layers were taken away, their being slower than predicted lowers the sum.
        up += float(((1.0 - correlation) * np.maximum(higher, lower) ** 2).sum())
        down += float(((1.0 - correlation) * np.minimum(higher, lower) ** 2).sum())
        for group in sorted(set(shared.tolist())):  # np.unique would load numpy.ma: 10 ms
            members = np.flatnonzero(shared == group)
            ends = [each[members] for each in (higher, lower)]
            common = [float((np.sqrt(lasting[members]) * each).sum()) for each in ends]
            up += max(0.0, *common) ** 2
            down += min(0.0, *common) ** 2
            if sizes is not None and fading[members].any():
                terms = [np.sqrt(fading[members]) * each for each in ends]
                squares = _faded_squares(terms, sizes[members], reach[members])
                more, less = squares if terms[0].sum() >= terms[1].sum() else squares[::-1]
                up += more
                down += less
    return float(np.sqrt(down)), float(np.sqrt(up))


def _same_configurations(errors: Sequence[LayerErrors]) -> IndexArray:
    """A number for the configuration of each layer of all ``errors``."""
    if len(errors) == 1:
        return errors[0].configuration
    numbers: dict[object, int] = {}
    found = []
    for each in errors:
        known = [numbers.setdefault(one.configuration, len(numbers)) for one in each.distinct]
        found.append(np.array(known)[each.configuration])
    return np.concatenate(found)


def _log_sizes(errors: Sequence[LayerErrors]) -> FloatArray:
    """:func:`log_sizes` of each layer of all ``errors``."""
    found = [
        np.array([layer.cost[:4] for layer in each.distinct], dtype=np.float64)[each.configuration]
        for each in errors
    ]
    return log_sizes(np.concatenate(found))


def log_sizes(terms: FloatArray) -> FloatArray:
    """Doublings of operations, and of bytes read, written and of weights: shape ``(layers, 4)``.

    What is further apart errs less alike.
    """
    return np.asarray(np.log2(np.maximum(terms, 1.0)))


#: Rows of a table of distances that are made at once.
_BLOCK: Final = 256


def _faded_squares(
    terms: Sequence[FloatArray], sizes: FloatArray, reach: FloatArray
) -> list[float]:
    """Variance of each sum of terms whose correlation fades with the distance in sizes."""
    changed = np.flatnonzero(np.any(np.stack(terms) != 0, axis=0))
    sizes, reach = sizes[changed], reach[changed]
    table = np.stack([term[changed] for term in terms])
    lengths = (sizes**2).sum(axis=1)
    squares = np.zeros(len(terms))
    for start in range(0, len(sizes), _BLOCK):
        rows = slice(start, start + _BLOCK)
        squared = lengths[rows, None] + lengths - 2 * sizes[rows] @ sizes.T
        alike = np.exp(-np.sqrt(np.maximum(squared, 0.0)) / reach)
        squares += ((table[:, rows] @ alike) * table).sum(axis=1)
    return [max(float(each), 0.0) for each in squares]
