"""Platforms: one device, dtype and execution mode, and the estimators that price layers on it."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, TypeGuard

import numpy as np
from msgspec import UNSET, Struct, field, to_builtins
from msgspec.structs import replace

from pytest_neuralpower.collector import collector_paused
from pytest_neuralpower.errors import PlatformError, TraceError
from pytest_neuralpower.estimators import (
    AnyEstimator,
    Bounded,
    NeuralPowerPolynomial,
    Utilization,
)
from pytest_neuralpower.estimators.base import NonNegative, Positive, some_rows
from pytest_neuralpower.estimators.correction import at_other_ceilings
from pytest_neuralpower.estimators.features import (
    FAMILIES,
    FLOAT8,
    GEMM_FAMILIES,
    Columns,
    FloatArray,
    columns,
    family,
    is_float8,
)
from pytest_neuralpower.estimators.physics import Ceilings, least_ms, roofline_ms
from pytest_neuralpower.estimators.terms import evaluate, is_term
from pytest_neuralpower.files import decode
from pytest_neuralpower.layers import ITEMSIZE, SAMPLE_TOP_P, Layer, TensorSpec, Trace
from pytest_neuralpower.platform.file import REFIT, check_name, of_file, write
from pytest_neuralpower.platform.fusion import Fused, fused
from pytest_neuralpower.platform.intervals import Interval, Intervals
from pytest_neuralpower.platform.prediction import (
    ESTIMATED,
    EXTRAPOLATED,
    GROSS,
    HOST_BOUND,
    INFERRED,
    UNCOVERED,
    Host,
    LayerPrediction,
    Prediction,
    TokenSampler,
)
from pytest_neuralpower.platform.protocol import Equation, Explanation, HeldOut, Summary
from pytest_neuralpower.platform.ranges import outside
from pytest_neuralpower.units import show

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.eyeriss.hardware import Zeros
    from pytest_neuralpower.platform.intervals import LayerErrors
    from pytest_neuralpower.platform.protocol import Platform
    from pytest_neuralpower.units import Quantity

_IntervalField = Literal["runtime_interval_ms", "energy_interval_mj", "power_interval_w"]
_INTERVAL_FIELDS: Final[tuple[tuple[Quantity, _IntervalField], ...]] = (
    ("runtime", "runtime_interval_ms"),
    ("energy", "energy_interval_mj"),
    ("power", "power_interval_w"),
)

#: Tier of power that nobody measured on the device -> where it comes from, in words.
_UNMEASURED_POWER: Final = {
    "transferred": "transferred from another device",
    "datasheet": "from the datasheet",
    "estimated": "estimated from the watts that the user gave",
}

#: Estimators that a prediction is made with: those chosen by their held-out error, or the paper's.
BEST: Final = "best"
NEURALPOWER: Final = "neuralpower"

_FLOATING: Final = ("float", "bfloat", "complex")

#: All formats of 8 bits multiply at one rate: this one's.
_FLOAT8: Final = "float8_e4m3fn"

#: Whole numbers that stand for real ones in quantised layers.
_QUANTIZED: Final = ("int8", "qint8", "quint8", "qint32")

#: A runtime (ms) or power (W) beyond this is an error; intervals add squares of their product.
_LARGEST: Final = 1e60

#: Flags of a layer as bits of a number, so that an array holds those of many.
_UNCOVERED: Final = 1
_INFERRED: Final = 2
_EXTRAPOLATED: Final = 4

_NAMES: Final = {_UNCOVERED: UNCOVERED, _INFERRED: INFERRED, _EXTRAPOLATED: EXTRAPOLATED}

#: The flags that each sum of codes stands for.
_FLAGS: Final = tuple(
    tuple(name for code, name in _NAMES.items() if code & codes) for codes in range(8)
)


class PaperModel(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """NeuralPower's own polynomials for one family of layers, as the paper fits them.

    Attributes
    ----------
    runtime
        Of the runtime (ms).
    power
        Of the power (W), where rows have it.
    power_range_w
        Least and largest measured power (W), which ``power`` is kept within: the authors clamp
        nothing, and a polynomial goes below 0 outside its rows.
    """

    runtime: NeuralPowerPolynomial
    power: NeuralPowerPolynomial | None = None
    power_range_w: tuple[Positive, Positive] | None = None

    def __post_init__(self) -> None:
        if (self.power is None) != (self.power_range_w is None):
            raise ValueError("power and power_range_w belong together")


class FamilyModel(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is known of one family of layers: its estimators and what they were fitted on.

    Attributes
    ----------
    ranges
        Smallest and largest calibrated value of each of the family's range columns, and of some
        products and ratios of them (:mod:`pytest_neuralpower.platform.ranges`).
    runtime
        Estimator of the runtime (ms).
    power, energy
        Where rows with power were measured, an estimator of the power (W) or of the energy (mJ).
        Energy grows with what a layer does as its runtime does, so it can be learnt in the same
        way; errors of power and of runtime then do not add up.
    power_range_w
        Least and largest measured power (W), with ``energy``, and with a ``power`` of the paper's:
        power is kept within, so that a layer that is far from the calibration draws neither more
        than anything measured nor nothing.
    neuralpower
        The paper's estimators of the same rows, of families that the paper has.
    overheads
        What the execution mode adds to the kernels that were measured: ms per unit of a physical
        term (:mod:`pytest_neuralpower.estimators.terms`). Never fitted, known from how the
        framework runs the layer.
    """

    ranges: dict[str, tuple[float, float]]
    runtime: AnyEstimator
    power: AnyEstimator | None = None
    energy: AnyEstimator | None = None
    power_range_w: tuple[Positive, Positive] | None = None
    overheads: dict[str, NonNegative] = field(default_factory=dict)
    neuralpower: PaperModel | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in self.ranges.items():
            if low > high:
                raise ValueError(f"range {name!r} ends below its start")
        for term in self.overheads:
            if not is_term(term):
                raise ValueError(f"overhead {term!r} is not a known term")
        if self.energy is not None and self.power_range_w is None:
            raise ValueError("energy needs power_range_w")
        if self.power_range_w is not None and self.energy is None and self.power is None:
            raise ValueError("power_range_w needs energy or power")

    @property
    def prices_by_neuralpower(self) -> bool:
        """Whether this is what :meth:`by_neuralpower` returned, and the paper has the family."""
        return self.neuralpower is not None and self.runtime is self.neuralpower.runtime

    def by_neuralpower(self) -> FamilyModel:
        """The family as the paper prices it; as it is where the paper has no model of it.

        What the framework adds to kernels is added to the paper's runtime, too: it was fitted to
        the same rows. Where no row has power, that of all layers stays.
        """
        paper = self.neuralpower
        if paper is None:
            return self
        if paper.power is None:
            return replace(self, runtime=paper.runtime)
        return replace(
            self,
            runtime=paper.runtime,
            power=paper.power,
            energy=None,
            power_range_w=paper.power_range_w,
        )

    @property
    def estimators(self) -> dict[Quantity, AnyEstimator]:
        """Those there are, by quantity."""
        found: tuple[tuple[Quantity, AnyEstimator | None], ...] = (
            ("runtime", self.runtime),
            ("power", self.power),
            ("energy", self.energy),
        )
        return {quantity: estimator for quantity, estimator in found if estimator is not None}

    def runtime_ms(self, values: Columns) -> FloatArray:
        """Runtime in ms, overheads included."""
        total = self.runtime.predict(values)
        for term, rate in self.overheads.items():
            total = total + rate * evaluate(term, values, 1)
        return total

    def power_columns(self, values: Columns, runtime_ms: FloatArray) -> Columns:
        """What a power estimator sees: the columns, the runtime, and the overheads' traffic."""
        extra = sum(
            (evaluate(term, values, 1) * 1e6 for term in self.overheads),
            np.zeros(len(runtime_ms)),
        )
        moved = values["bytes_moved"] + extra
        return {**values, "runtime_ms": runtime_ms, "bytes_moved": moved}

    def power_w(
        self, values: Columns, runtime_ms: FloatArray, default: Utilization | None
    ) -> FloatArray | None:
        """Power in W; by ``default`` without an estimator of its own, None without either."""
        seen = self.power_columns(values, runtime_ms)
        if self.energy is not None and self.power_range_w is not None:
            power = self.energy.predict(seen) / runtime_ms
            return np.asarray(np.clip(power, *self.power_range_w))
        estimator = self.power or default
        if estimator is None:
            return None
        power = estimator.predict(seen)
        return power if self.power_range_w is None else np.clip(power, *self.power_range_w)

    def evaluate_all(self, values: Columns) -> None:
        """Use every column that any layer might need; raises KeyError or ValueError."""
        outside(self.ranges, values)
        for term in self.overheads:
            evaluate(term, values, 1)
        paper = {} if self.neuralpower is None else self.by_neuralpower().estimators
        for quantity, estimator in (*self.estimators.items(), *paper.items()):
            known = {} if quantity == "runtime" else {"runtime_ms": np.ones(1)}
            estimator.evaluate_all({**values, **known})


class FittedPlatform(Struct, frozen=True, forbid_unknown_fields=True):
    """Calibrated estimators for one device, dtype and execution mode.

    Attributes
    ----------
    name
        What ``--np-platform`` takes.
    device, dtype, mode
        The device; the floating dtype its rows were computed in; how layers ran (library,
        algorithm choice), in words.
    tiers
        How ``runtime`` and ``power`` are known: ``measured`` here, ``public`` (measured by
        others), ``transferred`` from another device, ``datasheet``.
    hardware
        Ceilings: ``peak_gflops``, ``bandwidth_gbs``, ``multiprocessors``, ``limit_w``, ...
    families
        Estimators and calibrated ranges by family of layers.
    inferred
        By family without rows on this device, its price as other devices run it.
    peaks_gflops
        Operations by dtype, where they are known.
    host
        What the host takes to launch a layer, in a mode whose calls wait for it.
    sampler
        What a serving engine takes to draw tokens (layers ``sample_top_p``); as any
        operation without a formula where that is not known.
    fused
        What the mode joins to one kernel (:data:`~pytest_neuralpower.platform.fusion.Fused`).
    factors, power_factor
        On the runtime of families of layers, and on all power, that a user's own calls showed.
    power
        Estimator of every layer's power from its columns and ``runtime_ms``; None without one.
    provenance
        Sources of the rows, licences, versions, what was left out and why.
    accuracy
        Held-out error of every candidate per family; of networks; of power.
    intervals
        How far measured layers and calls lay from predictions made without them; None where that
        is not known.
    sha256
        Hash of all the above; baselines and reports quote it.
    """

    name: str
    device: str
    dtype: str
    mode: str
    tiers: dict[str, str]
    hardware: dict[str, NonNegative]
    families: dict[str, FamilyModel]
    inferred: dict[str, Bounded]
    power: Utilization | None
    peaks_gflops: dict[str, Positive] = field(default_factory=dict)
    host: Host | None = None
    sampler: TokenSampler | None = None
    fused: Fused = ""
    factors: dict[str, Positive] = field(default_factory=dict)
    power_factor: Positive = 1.0
    provenance: dict[str, Any] = field(default_factory=dict)
    accuracy: dict[str, Any] = field(default_factory=dict)
    intervals: Intervals | None = None
    sha256: str = ""

    def __post_init__(self) -> None:
        check_name(self.name)
        sources = self.provenance.get("sources", [])
        if not isinstance(sources, list) or not all(isinstance(each, dict) for each in sources):
            raise ValueError("provenance sources must be a list of objects")

    def by_neuralpower(self) -> FittedPlatform:
        """The platform with the paper's estimators pricing what they can.

        It has another hash, and no intervals: those known are of the estimators chosen.

        Raises
        ------
        PlatformError
            It has none of the paper's.
        """
        if not self._paper_families:
            raise PlatformError(
                f"platform {self.name} has no estimators of the NeuralPower paper, fitted "
                f"to rows of conv, linear and pool: predict with estimator={BEST}, or {REFIT}"
            )
        return replace(
            self,
            families={name: model.by_neuralpower() for name, model in self.families.items()},
            accuracy=_by_neuralpower(self.accuracy),
            intervals=None,
            sha256=hashlib.sha256(f"{self.sha256} {NEURALPOWER}".encode()).hexdigest(),
        )

    @property
    def estimator(self) -> str:
        """Which of its estimators price: ``best``, or ``neuralpower`` where :meth:`by_neuralpower`
        put the paper's there."""
        paper = any(model.prices_by_neuralpower for model in self.families.values())
        return NEURALPOWER if paper else BEST

    @property
    def _paper_families(self) -> list[str]:
        """Families that the paper's estimators can price."""
        return [name for name, model in self.families.items() if model.neuralpower is not None]

    @property
    def analytic(self) -> bool:
        return False

    @property
    def exploits_zeros(self) -> bool:
        """Dense kernels compute with zeros as with any value."""
        return False

    @property
    def energy_basis(self) -> str:
        """What an energy of this platform is, in words."""
        return ESTIMATED if self.tiers.get("power") == "estimated" else GROSS

    def knows(self, quantity: Quantity) -> bool:
        """Whether predictions have the quantity."""
        return (
            quantity == "runtime"
            or self.power is not None
            or any(model.power or model.energy for model in self.families.values())
        )

    def predict(
        self,
        layers: Trace | Iterable[Layer],
        *,
        zeros: Mapping[str, Zeros] | None = None,  # noqa: ARG002 - they cost what others do
    ) -> Prediction:
        """Predict every layer and, as their sum, the call.

        Parameters
        ----------
        layers
            A trace (its batch, model, route and notes are copied) or any layers in order.
        zeros
            Without effect: see :attr:`exploits_zeros`.

        Raises
        ------
        TraceError
            There is no layer: a total of 0 would be wrong.
        """
        items = layers.layers if isinstance(layers, Trace) else tuple(layers)
        if self.fused and isinstance(layers, Trace):  # others were stored as they were fused
            items = fused(items, layers.reads, folds=self.fused == "folded")
        quantised = self._quantised(items)
        if not items:
            model = (isinstance(layers, Trace) and layers.model) or "the model"
            raise TraceError(
                f"nothing to predict: {model} runs no operation that computes or moves anything"
            )
        with collector_paused():
            found = self._predict(quantised, layers)
        changed = sum(one is not other for one, other in zip(items, quantised, strict=True))
        if not changed:
            return found
        note = f"{changed} of {len(items)} layers priced in {self.dtype}: the engine quantises them"
        return dataclasses.replace(found, notes=(*found.notes, note))

    def _quantised(self, items: Sequence[Layer]) -> Sequence[Layer]:
        """The layers as an engine of quantised models runs them; as they are on other platforms."""
        if self.dtype not in _QUANTIZED:
            return items
        return tuple(
            in_dtype(layer, self.dtype) if layer.dtype.startswith(_FLOATING) else layer
            for layer in items
        )

    def _predict(self, items: Sequence[Layer], layers: Trace | Iterable[Layer]) -> Prediction:
        which, distinct = _distinct(items)
        runtime, power, codes, used, families, least = self._predict_columns(distinct)
        self._refuse_impossible(distinct, "runtime", runtime)
        if power is not None:
            self._refuse_impossible(distinct, "power", power)
        mismatch = self._dtype_mismatch(distinct, families)
        codes[mismatch] |= _EXTRAPOLATED
        watts: Iterable[float | None] = repeat(None)
        energy: Iterable[float | None] = repeat(None)
        millijoules = None if power is None else power * runtime
        if power is not None and millijoules is not None:
            watts, energy = power.tolist(), millijoules.tolist()
        flags = [_FLAGS[code] for code in codes.tolist()]
        values: list[Iterable[Any]] = [runtime.tolist(), watts, energy, used, flags]
        intervals: CallIntervals = {}
        host = self._host()
        if self.intervals is not None:
            outside = codes == _EXTRAPOLATED
            errors = self.intervals.errors(
                distinct, families, runtime, millijoules, outside=outside, least=least
            )
            values += [_layer_intervals(errors, each) for each in ("runtime", "energy")]
            intervals = call_intervals(
                errors.of(which), self, host, launches=1.0 if host is None else host.launches(items)
            )
        else:
            values += [repeat(None), repeat(None)]
        # No platform of this class tells data types apart, hence the last None. This is what
        # LayerPrediction(layer, ...) does, at a third of its price: there are many layers.
        rest = list(zip(*values, repeat(None), strict=False))
        predicted = tuple(
            [
                tuple.__new__(LayerPrediction, (layer, *rest[place]))
                for layer, place in zip(items, which.tolist(), strict=True)
            ]
        )
        notes = self._notes(items, mismatch[which], has_power=power is not None)
        if host is not None:
            notes += _host_note(host, items, float(runtime[which].sum()))
        if self.estimator == NEURALPOWER:
            notes += (self._paper_note(families),)
        basis = self.energy_basis
        found = Prediction(
            predicted,
            self.name,
            self.sha256,
            notes=notes,
            energy_basis=basis,
            estimator=self.estimator,
            host=host,
            **intervals,
        )
        if not isinstance(layers, Trace):
            return found
        return dataclasses.replace(
            found,
            batch=layers.batch,
            model=layers.model,
            tokens=layers.tokens,
            route=layers.route,
            notes=(*layers.notes, *notes),
        )

    def _host(self) -> Host | None:
        """The host, with what the device draws when no layer runs."""
        if self.host is None or self.power is None:
            return self.host
        return replace(self.host, waiting_w=self.power.waiting_w)

    def _notes(
        self, items: Sequence[Layer], mismatch: NDArray[np.bool_], *, has_power: bool
    ) -> tuple[str, ...]:
        """What a reader should know of layers in other dtypes, and of power."""
        counts = Counter(items[place].dtype for place in np.flatnonzero(mismatch).tolist())
        notes = tuple(
            f"{count} of {len(items)} layers in {dtype}: {self._converted(dtype)}"
            for dtype, count in sorted(counts.items())
        )
        origin = _UNMEASURED_POWER.get(self.tiers.get("power", ""))
        if has_power and origin:
            if "devices" in (self.accuracy.get("power") or {}):
                origin = f"transferred {self._other_boards()}"
            notes += (f"power and energy: {origin}, not measured here",)
        return notes

    def _other_boards(self) -> str:
        """Whose power was transferred, and how wrong that is."""
        found = self.accuracy["power"]
        return (
            f"from {len(found['devices'])} other devices, off by {found['mape']:.0f}% in the mean "
            "where each was left out"
        )

    def _paper_note(self, families: Iterable[str]) -> str:
        """Which families of a call the paper's estimators price, and which have none."""
        asked = dict.fromkeys(families)
        paper = [name for name in asked if name in self._paper_families]
        others = [name for name in asked if name not in paper]
        note = f"estimator neuralpower prices {', '.join(paper) or 'no layer'}"
        if others:
            note += f"; best prices {', '.join(others)}"
        return f"{note}; no intervals"

    def _converted(self, dtype: str) -> str:
        """How layers in a dtype that no row has are priced."""
        peak, own = self.peak_gflops(dtype), self.peak_gflops(self.dtype)
        if dtype not in self.peaks_gflops and peak == own:
            return f"priced as {self.dtype}, its peak is not known"
        ratio = f"{peak / own:.3g}" if peak >= own else f"1/{own / peak:.3g}"
        mode = ", TF32 off" if dtype == "float32" and "tf32" in self.peaks_gflops else ""
        return f"priced at {ratio} times the peak of {self.dtype}{mode}"

    def _predict_columns(
        self, items: Sequence[Layer]
    ) -> tuple[FloatArray, FloatArray | None, NDArray[np.intp], list[str], list[str], FloatArray]:
        """Runtime, power, flag code, estimator's name, family and least log distance of each."""
        members: dict[str, list[int]] = {}
        for index, layer in enumerate(items):
            members.setdefault(self._priced_as(layer), []).append(index)
        runtime = np.empty(len(items))
        power = np.empty(len(items)) if self.knows("power") else None
        codes = np.zeros(len(items), dtype=np.intp)
        least = np.zeros(len(items))
        used, families = [""] * len(items), [""] * len(items)
        estimate: Callable[[Columns], FloatArray]
        for key, where in members.items():
            layers = [items[index] for index in where]
            name = key.removesuffix(FLOAT8)
            values = columns(name, layers)
            model = self.families.get(key)
            estimator: AnyEstimator
            if model is None:
                estimator = self.inferred[name]
                estimate = estimator.predict
                flag = _UNCOVERED if name == "uncovered" else _INFERRED
                code = np.full(len(where), flag)
            else:
                estimator, estimate = model.runtime, model.runtime_ms
                code = np.where(outside(model.ranges, values), _EXTRAPOLATED, 0)
            own = self._ceilings(key) if name in self.factors else None
            estimate = self._as_adapted(name, estimate, own)
            estimated, least[where] = self._in_their_dtypes(
                key, layers, values, estimate, estimator=estimator
            )
            if name == "uncovered" and self.sampler is not None:
                estimated, code = self._sampled(layers, estimated, code)
            runtime[where], codes[where] = estimated, code
            for index in where:
                used[index], families[index] = estimator.label, key
            if power is not None:
                if model is not None:
                    watts = model.power_w(values, estimated, self._busy(key))
                elif self.power is not None:
                    watts = self.power.predict({**values, "runtime_ms": estimated})
                else:
                    watts = None
                if watts is None:
                    power = None
                else:
                    power[where] = watts * self.power_factor
        return runtime, power, codes, used, families, least

    def _sampled(
        self, layers: Sequence[Layer], estimated: FloatArray, codes: NDArray[np.intp]
    ) -> tuple[FloatArray, NDArray[np.intp]]:
        """Runtimes and flag codes of layers without a formula, those that draw tokens by what
        is known of the sampler."""
        assert self.sampler is not None  # the caller has looked
        drawn = np.array([layer.op == SAMPLE_TOP_P for layer in layers])
        known = [self.sampler.runtime_ms(layer.inputs[0].numel) for layer in layers]
        return np.where(drawn, known, estimated), np.where(drawn, _INFERRED, codes)

    def _priced_as(self, layer: Layer) -> str:
        """The family that prices a layer; the one in 8-bit floats where rows had them."""
        name = self.priced_as(family(layer))
        own = name + FLOAT8
        return own if own in self.families and is_float8(layer) else name

    def _ceilings(self, family_name: str) -> Ceilings:
        """What the device can at most do in the dtype of a family's rows."""
        own = Ceilings.of(self.hardware)
        return own.at(self.peak_gflops(_FLOAT8)) if family_name.endswith(FLOAT8) else own

    def _busy(self, family_name: str) -> Utilization | None:
        """The model of power, by shares of the peak in the dtype of a family's rows."""
        if self.power is None or not family_name.endswith(FLOAT8):
            return self.power
        return replace(self.power, peak_gflops=self.peak_gflops(_FLOAT8))

    def priced_as(self, family_name: str) -> str:
        """The family, or its kind where the file is older than what tells the two apart."""
        if family_name in self.families or family_name in self.inferred:
            return family_name
        return family_name.partition(".")[0]

    def _as_adapted(
        self, name: str, estimate: Callable[[Columns], FloatArray], own: Ceilings | None
    ) -> Callable[[Columns], FloatArray]:
        """The estimate times what a user's own calls showed, within the ceilings."""
        factor = self.factors.get(name)
        if factor is None or own is None:
            return estimate
        return lambda values: np.maximum(factor * estimate(values), least_ms(name, values, own))

    def _in_their_dtypes(
        self,
        family_name: str,
        layers: Sequence[Layer],
        values: Columns,
        estimate: Callable[[Columns], FloatArray],
        *,
        estimator: AnyEstimator,
    ) -> tuple[FloatArray, FloatArray]:
        """Runtime of layers in their own dtypes, and the log distance that is at least unsure.

        A family without rows goes by its prior, at the ceilings of a dtype that is no faster.

        What rows in one dtype say of another is what the ceilings' ratio says. How much of a faster
        peak a library reaches is not known: the interval holds the physical limit, and at least
        half of the gain (of its logarithm) may be missed.
        """
        dtypes = [layer.dtype for layer in layers]
        others = [dtype for dtype in sorted(set(dtypes)) if self._is_other(dtype, family_name)]
        least = np.zeros(len(layers))
        if not others:
            return estimate(values), least
        names = np.array(dtypes)
        runtime, own = np.empty(len(layers)), Ceilings.of(self.hardware)
        known = ~np.isin(names, others)
        if known.any():
            runtime[known] = estimate(some_rows(values, known))
        for dtype in others:
            rows = names == dtype
            some = some_rows(values, rows)
            alike = columns(
                family_name,
                [in_dtype(layers[row], self.dtype) for row in np.flatnonzero(rows).tolist()],
            )
            ceilings = own.at(self.peak_gflops(dtype))
            if _is_known_by_ceilings(estimator) and ceilings.peak_gflops <= own.peak_gflops:
                there = replace(estimator, ceilings=ceilings, prior=estimator.prior.on(ceilings))
                runtime[rows] = self._as_adapted(family_name, there.predict, ceilings)(some)
                continue
            fastest = roofline_ms(family_name, some, ceilings)
            gain = np.log(roofline_ms(family_name, some, own) / fastest)
            if isinstance(estimator, Bounded):
                found = at_other_ceilings(
                    family_name, some, alike, estimate, own=own, other=ceilings
                )
            else:
                found = estimate(alike) * fastest / roofline_ms(family_name, alike, own)
            # What makes a peak faster, matrix units, does not go with filtering minimally.
            limit = np.where(gain > 0, fastest, least_ms(family_name, some, ceilings))
            found = np.maximum(found, limit)
            # From memory and launched: what a cache may save is in the family's own spread.
            limit = least_ms(family_name, some, replace(ceilings, cache_mb=0.0))
            reached = np.log(found / (limit + ceilings.launch_ms))
            runtime[rows] = found
            least[rows] = np.clip(np.maximum(reached, gain / 2), 0.0, 10.0)
        return runtime, least

    def peak_gflops(self, dtype: str) -> float:
        """Operations in this dtype, GFLOP/s; the platform's own where it is not known. TF32 is a
        mode: no layer in float32 has its peak."""
        if dtype.startswith("float8"):
            dtype = _FLOAT8
        return self.peaks_gflops.get(dtype, self.hardware["peak_gflops"])

    def _is_other(self, dtype: str, family_name: str) -> bool:
        """Whether layers compute in a dtype that no row has: any floating one but the platform's,
        and products of whole numbers, such as a quantised layer's."""
        if family_name.endswith(FLOAT8):  # rows had it
            return False
        return dtype != self.dtype and (dtype.startswith(_FLOATING) or family_name in GEMM_FAMILIES)

    def _refuse_impossible(
        self, items: Sequence[Layer], quantity: Quantity, values: FloatArray
    ) -> None:
        """Raise PlatformError for a value that is below 0 or beyond any number of use."""
        possible = (values >= 0) & (values < _LARGEST)
        if not possible.all():
            index = int(np.argmin(possible))
            layer = items[index]
            raise PlatformError(
                f"platform {self.name} predicts a {quantity} of {values[index]:g} for "
                f"{layer.op} {layer.path or '(root)'}: its estimators or this layer's sizes are "
                "wrong; refit the platform, or check the model's shapes"
            )

    def _dtype_mismatch(self, items: Sequence[Layer], families: Sequence[str]) -> NDArray[np.bool_]:
        """Layers that compute in a dtype that no row has."""
        pairs = [(layer.dtype, name) for layer, name in zip(items, families, strict=True)]
        mismatch = {pair for pair in set(pairs) if self._is_other(*pair)}
        return np.array([pair in mismatch for pair in pairs])

    def explain(self, kind: str) -> Explanation:
        """The fitted equations of one family of layers.

        Raises
        ------
        PlatformError
            There is no such family; one line names those there are.
        """
        if kind not in FAMILIES and kind not in self.families:
            raise PlatformError(self._unknown_family(kind))
        kind = self.priced_as(kind)
        model = self.families.get(kind)
        estimators: dict[Quantity, AnyEstimator] = model.estimators if model else {}
        paper = model.neuralpower if model and self.estimator != NEURALPOWER else None
        if model is None and kind in self.inferred:
            estimators = {"runtime": self.inferred[kind]}
        text: tuple[str, ...] = ()
        if model is None:
            text = self._without_estimator(kind)
        if self.power is not None and "energy" not in estimators:
            estimators.setdefault("power", self.power)
        equations = tuple(
            Equation(
                quantity,
                estimator,
                self._known_power() if estimator is self.power else self._scores(quantity, kind),
                model.overheads if model and quantity == "runtime" else {},
                model.power_range_w if model and quantity in ("energy", "power") else None,
            )
            for quantity, estimator in estimators.items()
        )
        if model and paper is not None:
            equations += tuple(
                Equation(
                    quantity,
                    estimator,
                    self._paper_scores(quantity, kind),
                    model.overheads if quantity == "runtime" else {},
                    paper.power_range_w if quantity == "power" else None,
                    title="the NeuralPower paper's, which --estimator=neuralpower predicts by",
                )
                for quantity, estimator in (("runtime", paper.runtime), ("power", paper.power))
                if estimator is not None
            )
        title = f"{kind} on {self.name}: {self.device}, {self.dtype}"
        return Explanation((title,), text, equations)

    def _unknown_family(self, name: str) -> str:
        plain = re.sub(r"[1-3]d$", "", name.lower())
        close = difflib.get_close_matches(plain, FAMILIES, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        return (
            f"unknown kind of layer {name!r}{hint}; {self.name} has estimators of "
            f"{', '.join(self.families) or 'none'}, and prices without one "
            f"{', '.join(each for each in FAMILIES if each not in self.families)}"
        )

    def _without_estimator(self, family_name: str) -> tuple[str, ...]:
        """How a family without rows is priced."""
        prior = self.inferred[family_name].prior
        spread = float(np.exp(prior.distance))
        return (
            f"{family_name} was not measured on {self.name}: priced as it runs on "
            f"{prior.witnesses}, flagged I; 90% of such layers are within a factor of "
            f"{spread:.2f}",
        )

    def _known_power(self) -> str:
        """How the power of all layers is known, and how wrong it is where that is known."""
        tier = self.tiers.get("power")
        if tier is None:
            return ""
        found = self.accuracy.get("power") or {}
        if "devices" in found:
            return f"{tier} {self._other_boards()}, not known of {self.name}"
        if "leave_one_network_out" in found:
            error = found["leave_one_network_out"]["rmspe"]
            return f"{tier}; off by {error:.1f}% on networks left out"
        if "held_out_rows" in found:
            return f"{tier}; off by {found['held_out_rows']['mape']:.1f}% on rows held out"
        return tier

    def _paper_scores(self, quantity: str, family_name: str) -> str:
        """How far the paper's estimator was off, where that is known."""
        found = self.accuracy.get("neuralpower", {}).get(family_name, {}).get(quantity)
        if found is None:
            return ""
        held_out, fitted = found["held_out"], found["fitted"]
        judged = held_out.get("rmspe")
        return (
            f"degree {found['degree']}, {found['terms']} terms; RMSPE "
            + (f"{judged:.1f}% on held-out shapes, " if judged is not None else "")
            + f"{fitted['rmspe']:.1f}% on the rows themselves"
        )

    def _scores(self, quantity: str, family_name: str) -> str:
        """What the chosen estimator and the others scored, where it is known."""
        section = "runtime" if quantity == "runtime" else f"layer_{quantity}"
        found = self.accuracy.get(section, {}).get(family_name)
        if found is None:
            return ""
        scores = {
            name: f"{score['mape']:.1f}%" if "mape" in score else "refused"
            for name, score in found["held_out"].items()
        }
        chosen = scores.pop(found["chosen"])
        others = ", ".join(f"{name} {score}" for name, score in scores.items())
        return f"off by {chosen} on held-out shapes{'; ' if others else ''}{others}"

    def summary(self) -> Summary:
        """What ``neuralpower platforms`` lists."""
        sources = self.provenance.get("sources", ())
        return Summary(
            name=self.name,
            device=self.device,
            dtype=self.dtype,
            mode=self.mode,
            tiers=self.tiers,
            sources=tuple(source.get("title", "measured rows") for source in sources),
            held_out=self._held_out("runtime"),
            held_out_power=self._held_out("layer_power"),
            held_out_energy=self._held_out("layer_energy"),
            neuralpower=self._paper_summary() or UNSET,
            networks=self.accuracy.get("networks"),
            calls=self.accuracy.get("calls"),
            power=self.accuracy.get("power"),
            intervals=self.accuracy.get("intervals"),
            sha256=self.sha256,
        )

    def _paper_summary(self) -> dict[str, dict[str, dict[str, object]]]:
        """How the paper's estimators do, by family and quantity."""
        return {
            name: {
                quantity: {
                    "degree": score["degree"],
                    "terms": score["terms"],
                    "rmspe_held_out": score["held_out"].get("rmspe"),
                    "rmspe_of_its_rows": score["fitted"]["rmspe"],
                }
                for quantity, score in found.items()
            }
            for name, found in self.accuracy.get("neuralpower", {}).items()
        }

    def _held_out(self, section: str) -> dict[str, HeldOut]:
        """By family, what was chosen and its held-out error."""
        return {
            name: HeldOut(
                found["rows"], found["chosen"], found["held_out"][found["chosen"]]["mape"]
            )
            for name, found in self.accuracy.get(section, {}).items()
        }

    def to_json(self) -> dict[str, object]:
        """The platform as plain data, without its hash."""
        found: dict[str, object] = to_builtins(self)
        for name in ("intervals", "host", "sampler", "fused", "factors"):
            if not found[name]:
                del found[name]
        if self.power_factor == 1.0:
            del found["power_factor"]
        del found["sha256"]
        return found

    def save(self, path: Path | str) -> FittedPlatform:
        """Write the platform file, all of it or nothing; return the platform with its hash."""
        file, content = Path(path), self.to_json()
        sha256 = write(file, content)
        return of_content(file, content, sha256)


def _by_neuralpower(accuracy: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the accuracy where the paper's estimators price."""
    found = {key: value for key, value in accuracy.items() if key not in ("networks", "intervals")}
    runtime = dict(found.get("runtime", {}))
    for name, paper in accuracy.get("neuralpower", {}).items():
        score = paper["runtime"]["held_out"]
        if name in runtime and "mape" in score:
            held_out = {**runtime[name]["held_out"], NEURALPOWER: score}
            runtime[name] = {**runtime[name], "chosen": NEURALPOWER, "held_out": held_out}
        if "power" not in paper:
            continue
        for section in ("layer_power", "layer_energy"):
            found[section] = {
                family_name: scores
                for family_name, scores in found.get(section, {}).items()
                if family_name != name
            }
    return {**found, "runtime": runtime}


#: Families that other devices ran on tensor cores, which says little of plain ones: of float32
#: products on boards left out, intervals of such priors held 45 to 82%, of the other kinds' 87%
#: and more.
_ON_TENSOR_CORES: Final = (
    *("linear", "matmul", "matmul.grouped", "attention", "attention.decode", "rnn"),
)


def _is_known_by_ceilings(estimator: AnyEstimator) -> TypeGuard[Bounded]:
    """Whether it knows a family by other devices alone, to which a dtype is its ceilings."""
    if not isinstance(estimator, Bounded) or estimator.inner is not None:
        return False
    return estimator.family not in _ON_TENSOR_CORES


def in_dtype(layer: Layer, dtype: str) -> Layer:
    """The same layer computed in another dtype; indices, masks and complex numbers stay."""

    def converted(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(shape, dtype)
            if each.startswith(("float", "bfloat")) or each in _QUANTIZED
            else TensorSpec(shape, each)
            for shape, each in tensors
        )

    return replace(
        layer,
        inputs=converted(layer.inputs),
        weights=converted(layer.weights),
        outputs=converted(layer.outputs),
        dtype=dtype,
    )


#: Everything of a layer but its path, read in one go: see :attr:`Layer.configuration`.
_configuration: Final = attrgetter("kind", "op", "inputs", "weights", "outputs", "dtype", "params")


def _distinct(items: Sequence[Layer]) -> tuple[NDArray[np.intp], Sequence[Layer]]:
    """Layers of different configurations, and which of them each of ``items`` equals: models
    repeat their blocks, and equal configurations cost the same."""
    places: dict[Any, int] = {}
    distinct: list[Layer] = []
    which: list[int] = []
    for layer, key in zip(items, map(_configuration, items), strict=True):
        place = places.setdefault(key, len(distinct))
        if place == len(distinct):
            distinct.append(layer)
        which.append(place)
    return np.array(which, dtype=np.intp), distinct


def _layer_intervals(
    errors: LayerErrors, quantity: Literal["runtime", "energy"]
) -> Iterable[Interval | None]:
    if not errors.knows(quantity):
        return repeat(None)
    low, high = errors.layers(quantity)
    ends = zip(low.tolist(), high.tolist(), repeat(errors.coverage), strict=False)
    # What Interval(low, high, coverage) does, at a third of its price: there are many layers.
    return map(tuple.__new__, repeat(Interval), ends)


class CallIntervals(TypedDict, total=False):
    """Fields of a prediction: the intervals of its totals, and what they are made of."""

    errors: LayerErrors
    runtime_interval_ms: Interval
    energy_interval_mj: Interval
    power_interval_w: Interval


def call_intervals(
    errors: LayerErrors, platform: Platform, host: Host | None, *, launches: float
) -> CallIntervals:
    """Intervals of what a call takes in all.

    Parameters
    ----------
    errors
        Of its layers.
    platform
        What predicted them.
    host, launches
        Who launches, and how often (:meth:`Host.launches`).
    """
    limit_w = math.inf
    if isinstance(platform, FittedPlatform):
        limit_w = platform.hardware.get("limit_w", math.inf)
    fields: CallIntervals = {"errors": errors}
    for quantity, name in _INTERVAL_FIELDS:
        if errors.knows(quantity):
            low, high = errors.total(quantity)
            if quantity == "power":  # the board allows no more, unless it is predicted to
                high = max(min(high, limit_w), float(errors.amounts(quantity).sum()))
            fields[name] = Interval(low, high, errors.coverage)
    if host is not None:
        fields |= _waiting(fields, host, launches)
    return fields


def _waiting(fields: CallIntervals, host: Host, launches: float) -> CallIntervals:
    """Intervals of a call that may wait for its host, from those of the device alone."""
    device, found = fields["runtime_interval_ms"], CallIntervals()
    launch = host.layer_ms * launches
    least, most = launch / host.factor, launch * host.factor
    found["runtime_interval_ms"] = device._replace(
        low=max(device.low, least), high=max(device.high, most)
    )
    watts = host.waiting_w
    if watts is not None and "energy_interval_mj" in fields:
        energy = fields["energy_interval_mj"]
        found["energy_interval_mj"] = energy._replace(
            low=energy.low + watts * max(least - device.high, 0.0),
            high=energy.high + watts * max(most - device.low, 0.0),
        )
        # Of the call's time the device works this share; the rest draws what waiting draws.
        shares = device.low / max(device.low, most), device.high / max(device.high, least)
        power = fields["power_interval_w"]
        found["power_interval_w"] = power._replace(
            low=min(watts + share * (power.low - watts) for share in shares),
            high=max(watts + share * (power.high - watts) for share in shares),
        )
    return found


def _host_note(host: Host, layers: Sequence[Layer], device_ms: float) -> tuple[str, ...]:
    launch = host.layer_ms * host.launches(layers)
    if launch <= device_ms:
        return ()
    operations = "1 operation" if len(layers) == 1 else f"{len(layers):,} operations"
    return (
        f"{HOST_BOUND}: launching {operations} takes {show('runtime', launch)}, the device would "
        f"need {show('runtime', device_ms)}",
    )


def of_content(path: Path, content: Mapping[str, object], sha256: str) -> FittedPlatform:
    """The platform that a file's fields describe.

    Raises
    ------
    PlatformError
        A field is missing, unknown or not what it must be; one line names it.
    """
    platform = decode(FittedPlatform, content, file=of_file(path), error=PlatformError, renew=REFIT)
    return replace(platform, sha256=sha256)


def check_estimators(path: Path, platform: FittedPlatform) -> None:
    """Raise a PlatformError where a family has no estimator, an estimator asks for what layers of
    its family do not have, the device is not what layers in another dtype are priced by, or the
    accuracy is not what reports read.
    """
    if platform.dtype not in ITEMSIZE:
        known_dtypes = ", ".join(ITEMSIZE)
        raise PlatformError(
            f"{of_file(path)}: dtype {platform.dtype!r} is not one of {known_dtypes}; {REFIT}"
        )
    for name in ("peak_gflops", "bandwidth_gbs", "process_nm"):
        if not platform.hardware.get(name, name == "process_nm"):
            raise PlatformError(f"{of_file(path)}: hardware.{name} must be above 0; {REFIT}")
    for name in dict.fromkeys(map(platform.priced_as, FAMILIES)):  # others are never asked for
        model, inferred = platform.families.get(name), platform.inferred.get(name)
        known = inferred if model is None else model
        if known is None:
            raise PlatformError(
                f"{of_file(path)}: neither families nor inferred have {name!r}; {REFIT}"
            )
        runtime = inferred if model is None else model.runtime
        values = {column: np.ones(1) for column in columns(name, ())}
        try:
            if isinstance(runtime, Bounded) and runtime.family != name:
                raise ValueError(f"its runtime is that of {runtime.family!r}")
            known.evaluate_all(values)
        except (KeyError, ValueError, IndexError, OverflowError) as error:
            reason = f"no size {error}" if isinstance(error, KeyError) else str(error)
            where = "inferred" if model is None else "family"
            raise PlatformError(f"{of_file(path)}: {where} {name!r}: {reason}; {REFIT}") from None
    if platform.power is not None and not platform.power.load_:
        raise PlatformError(f"{of_file(path)}: power: load is empty; {REFIT}")
    try:
        platform.summary()
        for name in FAMILIES:
            platform.explain(name)
    except (KeyError, ValueError, TypeError, AttributeError):
        raise PlatformError(
            f"{of_file(path)}: accuracy is not what `neuralpower fit` writes; {REFIT}"
        ) from None
