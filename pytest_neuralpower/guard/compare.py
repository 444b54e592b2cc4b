"""What has changed between two predictions of a model: layer by layer, why, and how surely."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pytest_neuralpower.guard.align import match_layers
from pytest_neuralpower.guard.causes import Batches, Cause, find_causes
from pytest_neuralpower.platform.differences import difference_interval

if TYPE_CHECKING:
    from pytest_neuralpower.guard.baseline import Baseline, Totals
    from pytest_neuralpower.guard.tolerance import Compared, Tolerance
    from pytest_neuralpower.platform.catalog import AnyPlatform
    from pytest_neuralpower.platform.intervals import Interval
    from pytest_neuralpower.platform.prediction import LayerPrediction, Prediction

__all__ = [
    "Breach",
    "CauseSum",
    "Comparison",
    "LayerChange",
    "compare",
    "comparison_record",
    "judge",
]


_FIELDS: dict[Compared, Literal["energy_mj", "runtime_ms"]] = {
    "energy": "energy_mj",
    "runtime": "runtime_ms",
}


class LayerChange(NamedTuple):
    """A layer that is not what it was: its positions and predictions in base and head, and why."""

    base_index: int | None
    head_index: int | None
    base: LayerPrediction | None
    head: LayerPrediction | None
    causes: tuple[Cause, ...]

    def values(self, quantity: Compared) -> tuple[float, float]:
        """Cost before and after, mJ or ms; 0 where there is no such layer."""
        field = _FIELDS[quantity]
        before, after = (
            0.0 if each is None else getattr(each, field) or 0.0 for each in (self.base, self.head)
        )
        return before, after

    def delta(self, quantity: Compared) -> float:
        """How much dearer (or cheaper, if negative) the layer is, mJ or ms."""
        before, after = self.values(quantity)
        return after - before


class CauseSum(NamedTuple):
    """All that one cause did: to how many layers, what it added to the call, and one of them."""

    name: str
    layers: int
    energy_mj: float
    runtime_ms: float
    example: LayerChange
    detail: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model held against its baseline.

    Attributes
    ----------
    base, head
        Predictions of one calibration: base is predicted again from its configurations.
    stored
        What base was predicted to cost when it was accepted. Its difference from ``base`` is
        calibration, that of ``head`` from ``base`` is the model.
    stored_sha256
        The calibration of that time.
    changes
        Layers that differ, in order of execution; all others are equal in path and configuration.
    """

    base: Prediction
    head: Prediction
    stored: Totals
    stored_sha256: str
    changes: tuple[LayerChange, ...]

    @property
    def batches(self) -> Batches:
        return Batches(self.base.batch, self.head.batch)

    @property
    def recalibrated(self) -> bool:
        """Whether the baseline was accepted on another calibration."""
        return self.stored_sha256 != self.base.platform_sha256

    def quantities(self) -> tuple[Compared, ...]:
        """Those that both predictions know."""
        return tuple(
            quantity
            for quantity, field in _FIELDS.items()
            if getattr(self.base, field) is not None and getattr(self.head, field) is not None
        )

    def values(self, quantity: Compared) -> tuple[float, float]:
        """Cost of one call of base and of head, mJ or ms."""
        field = _FIELDS[quantity]
        return getattr(self.base, field), getattr(self.head, field)

    def calibration(self, quantity: Compared) -> float | None:
        """What the change of calibration did to the baseline, mJ or ms; None where not known."""
        stored = getattr(self.stored, _FIELDS[quantity])
        if stored is None:
            return None
        return self.values(quantity)[0] - stored if self.recalibrated else 0.0

    def interval(self, quantity: Compared) -> Interval | None:
        """Interval of ``head - base``; None where the platform knows none."""
        if self.base.platform_sha256 != self.head.platform_sha256:
            return None
        if not self.changes:  # exactly 0, however sums are rounded
            own = (
                self.head.energy_interval_mj
                if quantity == "energy"
                else self.head.runtime_interval_ms
            )
            return own and own._replace(low=0.0, high=0.0)
        return difference_interval(self.base, self.head, quantity)

    def causes(self) -> tuple[CauseSum, ...]:
        """Every cause with what it did, what changed most first."""
        found: dict[str, list[tuple[LayerChange, Cause]]] = {}
        for change in self.changes:
            for cause in change.causes:
                found.setdefault(cause.name, []).append((change, cause))
        sums = [_cause_sum(name, members) for name, members in found.items()]
        return tuple(
            sorted(sums, key=lambda each: (-abs(each.energy_mj or each.runtime_ms), each.name))
        )


def _cause_sum(name: str, members: list[tuple[LayerChange, Cause]]) -> CauseSum:
    energy, runtime = (
        sum(change.delta(quantity) * cause.share for change, cause in members)
        for quantity in _FIELDS
    )
    example, cause = max(
        members, key=lambda pair: abs(_main_delta(pair[0])) * (pair[1].share or 1e-9)
    )
    return CauseSum(name, len(members), energy, runtime, example, cause.detail)


def _main_delta(change: LayerChange) -> float:
    """Of energy; of runtime where energy is not known."""
    return change.delta("energy") or change.delta("runtime")


def compare(base: Baseline, head: Prediction, platform: AnyPlatform) -> Comparison:
    """Hold a prediction against its baseline, predicted again on the same calibration.

    Raises
    ------
    BaselineError
        A stored layer cannot be priced.
    """
    same = len(base.layers) == len(head.layers) and all(
        stored.layer == item.layer for stored, item in zip(base.layers, head.layers, strict=True)
    )
    # What is configured alike is predicted alike.
    repredicted = head if same and base.batch == head.batch else base.repredict(platform)
    return compare_predictions(repredicted, head, base.totals, base.platform_sha256)


def compare_predictions(
    base: Prediction, head: Prediction, stored: Totals, stored_sha256: str
) -> Comparison:
    """:func:`compare` where base is predicted again already."""
    changes = tuple(_changes(base, head))
    return Comparison(base, head, stored, stored_sha256, changes)


def _changes(base: Prediction, head: Prediction) -> Iterator[LayerChange]:
    batches = Batches(base.batch, head.batch)
    known: dict[object, tuple[Cause, ...]] = {}
    layers = [each.layer for each in base.layers], [each.layer for each in head.layers]
    for one, other in match_layers(*layers, batches=batches):
        before = None if one is None else base.layers[one]
        after = None if other is None else head.layers[other]
        causes = find_causes(before, after, batches, known)
        if causes:
            yield LayerChange(one, other, before, after, causes)


class Breach(NamedTuple):
    """Growth beyond the tolerance, mJ or ms per ``per``: of the call, or of one layer."""

    quantity: Compared
    before: float
    after: float
    allowed: float
    per: Literal["call", "sample"]
    layer: LayerChange | None = None


def judge(comparison: Comparison, tolerance: Tolerance) -> tuple[Breach, ...]:
    """Everything that has grown beyond the tolerance, whole calls first."""
    per = tolerance.per or "call"
    samples = comparison.batches if per == "sample" else Batches(1, 1)
    wholes, layers = [], []
    for quantity in comparison.quantities():
        before, after = comparison.values(quantity)
        wholes += _breach(tolerance, quantity, (before, after), samples, None)
        if tolerance.allowed(quantity, before, layer=True) is None:
            continue
        for change in comparison.changes:
            if change.base is not None and change.head is not None:
                layers += _breach(tolerance, quantity, change.values(quantity), samples, change)
    return (*wholes, *sorted(layers, key=lambda each: each.before - each.after))


def _breach(
    tolerance: Tolerance,
    quantity: Compared,
    values: tuple[float, float],
    samples: Batches,
    change: LayerChange | None,
) -> list[Breach]:
    before, after = values[0] / max(samples.base, 1), values[1] / max(samples.head, 1)
    allowed = tolerance.allowed(quantity, before, layer=change is not None)
    # A billionth is not growth: sums of equal layers in another order differ by as much.
    if allowed is None or after - before <= allowed + 1e-9 * before:
        return []
    per = tolerance.per or "call"
    return [Breach(quantity, before, after, allowed, per, change)]


# -- A comparison as plain data: what reports show, and what travels from an xdist worker.


def comparison_record(comparison: Comparison, breaches: Sequence[Breach]) -> dict[str, Any]:
    """The comparison in JSON types; energy in mJ, runtime in ms, of one call.

    Returns
    -------
    dict
        ``recalibrated``, ``stored_sha256``, ``batches``; ``energy`` and ``runtime``, each None
        where it is not known or with ``stored``, ``base`` (predicted again), ``head``,
        ``calibration`` (None where not known) and ``interval`` of ``head - base`` (or None);
        ``breaches``; ``causes``; ``layers`` that differ; ``unchanged`` layers.
    """
    known = comparison.quantities()
    broken = {(id(each.layer), each.quantity) for each in breaches if each.layer is not None}
    return {
        "model": [comparison.base.model, comparison.head.model],
        "recalibrated": comparison.recalibrated,
        "stored_sha256": comparison.stored_sha256,
        "batches": list(comparison.batches),
        "energy": _whole(comparison, "energy") if "energy" in known else None,
        "runtime": _whole(comparison, "runtime") if "runtime" in known else None,
        "breaches": [_breach_record(each) for each in breaches],
        "causes": [
            {
                "cause": each.name,
                "layers": each.layers,
                "energy_mj": each.energy_mj,
                "runtime_ms": each.runtime_ms,
                "example": _path(each.example),
                "detail": each.detail,
            }
            for each in comparison.causes()
        ],
        "layers": [
            _layer(each, [name for name in known if (id(each), name) in broken])
            for each in comparison.changes
        ],
        "unchanged": len(comparison.head.layers)
        - sum(each.head is not None for each in comparison.changes),
    }


def _whole(comparison: Comparison, quantity: Compared) -> dict[str, Any]:
    base, head = comparison.values(quantity)
    stored = comparison.stored.energy_mj if quantity == "energy" else comparison.stored.runtime_ms
    interval = comparison.interval(quantity)
    return {
        "stored": stored,
        "base": base,
        "head": head,
        "calibration": comparison.calibration(quantity),
        "interval": None if interval is None else list(interval),
    }


def _breach_record(breach: Breach) -> dict[str, Any]:
    return {
        "quantity": breach.quantity,
        "before": breach.before,
        "after": breach.after,
        "allowed": breach.allowed,
        "per": breach.per,
        "layer": None if breach.layer is None else _path(breach.layer),
    }


def _layer(change: LayerChange, broken: list[str]) -> dict[str, Any]:
    shown = change.head or change.base
    assert shown is not None  # a pair has one side at least
    energy, runtime = change.values("energy"), change.values("runtime")
    return {
        "base_index": change.base_index,
        "head_index": change.head_index,
        "path": _path(change),
        "base_path": None if change.base is None else change.base.layer.path,
        "op": shown.layer.op,
        "kind": shown.layer.kind,
        "energy_mj": list(energy),
        "runtime_ms": list(runtime),
        "causes": [each._asdict() for each in change.causes],
        "breaches": broken,
    }


def _path(change: LayerChange) -> str:
    """Where the layer is now; where it was if it is gone."""
    shown = change.head or change.base
    assert shown is not None  # a pair has one side at least
    return shown.layer.path
