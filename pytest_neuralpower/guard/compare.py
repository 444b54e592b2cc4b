"""What has changed between two predictions of a model: layer by layer, why, and how surely.

A :class:`Comparison` is a value: reports show it, and it goes to and from JSON as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, Literal

import msgspec
from msgspec import Struct

from pytest_neuralpower.estimators.features import family
from pytest_neuralpower.guard.align import match_layers
from pytest_neuralpower.guard.causes import Batches, Cause, find_causes
from pytest_neuralpower.guard.tolerance import ComparedQuantity
from pytest_neuralpower.platform.differences import difference_interval
from pytest_neuralpower.platform.intervals import Interval

if TYPE_CHECKING:
    from pytest_neuralpower.guard.baseline import Baseline, Totals
    from pytest_neuralpower.guard.tolerance import Tolerance
    from pytest_neuralpower.layers import Layer
    from pytest_neuralpower.platform.prediction import LayerPrediction, Prediction
    from pytest_neuralpower.platform.protocol import Platform

_QUANTITIES: Final[tuple[ComparedQuantity, ...]] = ("energy", "runtime")


class TotalChange(Struct, frozen=True):
    """Energy (mJ) or runtime (ms) of one call.

    Attributes
    ----------
    stored
        What base was predicted to cost when it was accepted; None where not known.
    base, head
        Predicted on one calibration: base again, from its configurations.
    calibration
        ``base`` less ``stored``, 0 on the calibration of that time; None where not known.
    interval
        Of ``head`` less ``base``; None where the platform knows none. It does not reach below 0
        where every changed layer does more, nor above where every one does less.
    """

    stored: float | None
    base: float
    head: float
    calibration: float | None
    interval: Interval | None


class Breach(Struct, frozen=True):
    """Growth beyond the tolerance, mJ or ms per ``per``: of the call, or of the layer at a path."""

    quantity: ComparedQuantity
    before: float
    after: float
    allowed: float
    per: Literal["call", "sample"]
    layer: str | None = None


class CauseSum(Struct, frozen=True):
    """All that one cause did: to how many layers, what it added to the call (mJ, ms), and the path
    of the layer that it changed most, with the detail there."""

    cause: str
    layers: int
    energy_mj: float
    runtime_ms: float
    example: str
    detail: str


class LayerChange(Struct, frozen=True):
    """A layer that is not what it was.

    Attributes
    ----------
    base_index, head_index
        Positions in base and head; None where there is no such layer.
    path, base_path
        Where it is now, or was if it is gone; and where it was, if it was there.
    energy_mj, runtime_ms
        Before and after; 0 where there is no such layer, or the quantity is not known.
    causes
        The main one first.
    breaches
        Quantities that have grown beyond the tolerance of a layer.
    """

    base_index: int | None
    head_index: int | None
    path: str
    base_path: str | None
    op: str
    kind: str
    energy_mj: tuple[float, float]
    runtime_ms: tuple[float, float]
    causes: tuple[Cause, ...]
    breaches: tuple[ComparedQuantity, ...] = ()

    def values(self, quantity: ComparedQuantity) -> tuple[float, float]:
        """Cost before and after, mJ or ms."""
        return self.energy_mj if quantity == "energy" else self.runtime_ms

    def delta(self, quantity: ComparedQuantity) -> float:
        """By how much the cost has grown (fallen, if negative), mJ or ms."""
        before, after = self.values(quantity)
        return after - before


class Comparison(Struct, frozen=True):
    """A model (head) held against its baseline (base).

    Attributes
    ----------
    model, batches
        Class name, and samples in one call, of base and head.
    recalibrated, stored_sha256
        Whether the baseline was accepted on another calibration, and on which.
    energy, runtime
        None where either side does not know it.
    breaches
        Growth beyond the tolerance, whole calls first; see :func:`judge`.
    causes
        Every cause with what it did, what changed most first.
    layers
        Those that differ, in order of execution.
    unchanged
        How many layers are equal in path and configuration.
    estimators
        What priced base when it was accepted, and what prices both now: ``best`` or
        ``neuralpower``.
    """

    model: tuple[str, str]
    recalibrated: bool
    stored_sha256: str
    batches: Batches
    energy: TotalChange | None
    runtime: TotalChange | None
    breaches: tuple[Breach, ...]
    causes: tuple[CauseSum, ...]
    layers: tuple[LayerChange, ...]
    unchanged: int
    estimators: tuple[str, str] = ("best", "best")

    @property
    def changed(self) -> bool:
        """Whether there is anything to tell: a layer that differs, or another calibration."""
        return bool(self.layers) or self.recalibrated

    def main_change(self) -> TotalChange:
        """Of the call's energy, or of its runtime where energy is not known."""
        return next(iter(self.known().values()))

    def known(self) -> dict[ComparedQuantity, TotalChange]:
        """The quantities that both sides know, energy first."""
        found: dict[ComparedQuantity, TotalChange] = {}
        for quantity, total in zip(_QUANTITIES, (self.energy, self.runtime), strict=True):
            if total is not None:
                found[quantity] = total
        return found


def compare(base: Baseline, head: Prediction, platform: Platform) -> Comparison:
    """Hold a prediction against its baseline, predicted again on the same calibration.

    Raises
    ------
    BaselineError
        A stored layer cannot be priced.
    """
    same = base.batch == head.batch and [each.layer for each in base.layers] == [
        each.layer for each in head.layers
    ]
    # What is configured alike is predicted alike.
    repredicted = head if same else base.repredict(platform)
    return compare_predictions(
        repredicted, head, base.totals, base.platform_sha256, stored_estimator=base.estimator
    )


def compare_predictions(
    base: Prediction,
    head: Prediction,
    stored: Totals,
    stored_sha256: str,
    *,
    stored_estimator: str = "best",
) -> Comparison:
    """:func:`compare` where base is predicted again already."""
    changes = () if base is head else tuple(_changes(base, head))
    recalibrated = stored_sha256 != base.platform_sha256

    def total(
        quantity: ComparedQuantity,
        before: float | None,
        after: float | None,
        accepted: float | None,
    ) -> TotalChange | None:
        if before is None or after is None:
            return None
        calibration = None if accepted is None else before - accepted if recalibrated else 0.0
        interval = _interval(base, head, quantity, changes)
        return TotalChange(accepted, before, after, calibration, interval)

    return Comparison(
        model=(base.model, head.model),
        recalibrated=recalibrated,
        stored_sha256=stored_sha256,
        batches=Batches(base.batch, head.batch),
        energy=total("energy", base.energy_mj, head.energy_mj, stored.energy_mj),
        runtime=total("runtime", base.runtime_ms, head.runtime_ms, stored.runtime_ms),
        breaches=(),
        causes=_cause_sums(changes),
        layers=changes,
        unchanged=len(head.layers) - sum(each.head_index is not None for each in changes),
        estimators=(stored_estimator, head.estimator),
    )


def _interval(
    base: Prediction, head: Prediction, quantity: ComparedQuantity, changes: Sequence[LayerChange]
) -> Interval | None:
    if base.platform_sha256 != head.platform_sha256:
        return None
    if not changes:
        own = head.energy_interval_mj if quantity == "energy" else head.runtime_interval_ms
        return own and own._replace(low=0.0, high=0.0)  # exactly 0, however sums are rounded
    interval = difference_interval(base, head, quantity)
    if interval is None:
        return None
    pairs = [
        (
            None if change.base_index is None else base.layers[change.base_index].layer,
            None if change.head_index is None else head.layers[change.head_index].layer,
        )
        for change in changes
    ]
    # A device that computes and moves more in every layer that changed is not done sooner, whatever
    # the errors of the estimators.
    if all(_does_more(one, other) for one, other in pairs):
        return interval._replace(low=max(interval.low, 0.0), high=max(interval.high, 0.0))
    if all(_does_more(other, one) for one, other in pairs):
        return interval._replace(low=min(interval.low, 0.0), high=min(interval.high, 0.0))
    return interval


#: Hyper-parameters on which it depends how well a layer's work suits a device.
_SUITS: Final = ("groups", "transposed", "dilation", "mode")


def _does_more(base: Layer | None, head: Layer | None) -> bool:
    """Whether a layer takes as many operations and bytes as it did, and more of one of them.

    Of layers that differ in anything but sizes, work does not tell which is dearer: a depthwise
    convolution may take longer than a dense one, a dtype run on other units.
    """
    if base is None or head is None:
        return base is None
    if base.configuration == head.configuration:
        return True  # moved or renamed
    if (base.op, base.dtype, family(base)) != (head.op, head.dtype, family(head)):
        return False
    if any(base.param(name) != head.param(name) for name in _SUITS):
        return False
    before, after = base.cost, head.cost
    return (
        after.flops >= before.flops
        and after.bytes_moved >= before.bytes_moved
        and (after.flops, after.bytes_moved) != (before.flops, before.bytes_moved)
    )


def _changes(base: Prediction, head: Prediction) -> Iterator[LayerChange]:
    batches = Batches(base.batch, head.batch)
    known: dict[object, tuple[Cause, ...]] = {}
    layers = [each.layer for each in base.layers], [each.layer for each in head.layers]
    for one, other in match_layers(*layers, batches=batches):
        before = None if one is None else base.layers[one]
        after = None if other is None else head.layers[other]
        causes = find_causes(before, after, batches, known)
        if causes:
            yield _change(one, other, before, after, causes)


def _change(
    base_index: int | None,
    head_index: int | None,
    before: LayerPrediction | None,
    after: LayerPrediction | None,
    causes: tuple[Cause, ...],
) -> LayerChange:
    shown = after or before
    assert shown is not None  # a pair has one side at least
    sides = before, after
    energy = [0.0 if each is None else each.energy_mj or 0.0 for each in sides]
    runtime = [0.0 if each is None else each.runtime_ms or 0.0 for each in sides]
    return LayerChange(
        base_index,
        head_index,
        shown.layer.path,
        None if before is None else before.layer.path,
        shown.layer.op,
        shown.layer.kind,
        (energy[0], energy[1]),
        (runtime[0], runtime[1]),
        causes,
    )


def _cause_sums(changes: Sequence[LayerChange]) -> tuple[CauseSum, ...]:
    members: dict[str, list[tuple[LayerChange, Cause]]] = {}
    for change in changes:
        for cause in change.causes:
            members.setdefault(cause.name, []).append((change, cause))
    sums = []
    for name, found in members.items():
        energy, runtime = (
            sum(change.delta(quantity) * cause.share for change, cause in found)
            for quantity in _QUANTITIES
        )
        # The most by energy; by runtime where energy is not known.
        example, cause = max(
            found,
            key=lambda pair: (
                abs(pair[0].delta("energy") or pair[0].delta("runtime")) * (pair[1].share or 1e-9)
            ),
        )
        sums.append(CauseSum(name, len(found), energy, runtime, example.path, cause.detail))
    sums.sort(key=lambda each: (-abs(each.energy_mj or each.runtime_ms), each.cause))
    return tuple(sums)


def judge(comparison: Comparison, tolerance: Tolerance) -> Comparison:
    """The comparison with everything that has grown beyond the tolerance."""
    wholes, layers = list[Breach](), list[Breach]()
    broken: dict[int, list[ComparedQuantity]] = {}
    for quantity, total in comparison.known().items():
        whole = _breach(comparison, tolerance, quantity, (total.base, total.head), None)
        wholes += [] if whole is None else [whole]
        if tolerance.allowed(quantity, total.base, layer=True) is None:
            continue
        for at, change in enumerate(comparison.layers):
            if change.base_index is not None and change.head_index is not None:
                values = change.values(quantity)
                found = _breach(comparison, tolerance, quantity, values, change.path)
                if found is not None:
                    layers.append(found)
                    broken.setdefault(at, []).append(quantity)
    layers.sort(key=lambda each: each.before - each.after)
    changes = tuple(
        msgspec.structs.replace(change, breaches=tuple(broken.get(at, ())))
        for at, change in enumerate(comparison.layers)
    )
    return msgspec.structs.replace(comparison, breaches=(*wholes, *layers), layers=changes)


def _breach(
    comparison: Comparison,
    tolerance: Tolerance,
    quantity: ComparedQuantity,
    values: tuple[float, float],
    layer: str | None,
) -> Breach | None:
    per = tolerance.per or "call"
    samples = comparison.batches if per == "sample" else Batches(1, 1)
    before, after = values[0] / max(samples.base, 1), values[1] / max(samples.head, 1)
    allowed = tolerance.allowed(quantity, before, layer=layer is not None)
    # A billionth is not growth: sums of equal layers in another order differ by as much.
    if allowed is None or after - before <= allowed + 1e-9 * before:
        return None
    return Breach(quantity, before, after, allowed, per, layer)
