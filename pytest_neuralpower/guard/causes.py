"""Why a layer costs something else than it did.

Whether the *regime* changed is a theorem and no guess: where a cost is a sum of a constant and of
operations and bytes at fixed non-negative rates, it grows by no more than the one of these that
grows most, and shrinks by no more than the one that shrinks most. A layer outside these bounds
runs at other rates: it has crossed an edge, mostly of alignment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import Struct

if TYPE_CHECKING:
    from pytest_neuralpower.layers import CostTerms, Layer, TensorSpec
    from pytest_neuralpower.platform.prediction import LayerPrediction

NEW: Final = "new layer"
VANISHED: Final = "vanished layer"
RENAMED: Final = "renamed"
BATCH: Final = "batch change"
DTYPE: Final = "dtype change"
OPERATION: Final = "other operation"
CONFIGURATION: Final = "other configuration"
MORE_OPERATIONS: Final = "more operations"
FEWER_OPERATIONS: Final = "fewer operations"
MORE_BYTES: Final = "more bytes"
FEWER_BYTES: Final = "fewer bytes"
COSTLIER: Final = "costlier regime"
CHEAPER: Final = "cheaper regime"

#: Kinds whose work is their operations; the others move bytes.
_COMPUTING: Final = ("conv", "linear", "matmul", "attention", "rnn")
#: Sizes that kernels are made for, largest first.
_ALIGNMENTS: Final = (256, 128, 64, 32, 16, 8, 4)
#: How far outside its bounds a cost is before a regime is blamed: estimators are only nearly sums.
_SLACK: Final = 1.02


class Batches(NamedTuple):
    """Samples in one call of base and of head."""

    base: int
    head: int


class Cause(Struct, frozen=True):
    """One reason, in the words above, and what exactly: ``+50.0%``, ``64x3x7x7 -> 96x3x7x7``.

    ``share`` is the part of the layer's change that it explains; the shares of a layer add up to 1.
    """

    name: str
    detail: str = ""
    share: float = 0.0


def find_causes(
    base: LayerPrediction | None,
    head: LayerPrediction | None,
    batches: Batches,
    known: dict[object, tuple[Cause, ...]],
) -> tuple[Cause, ...]:
    """Reasons for the difference between two paired layers, the main one first; none if equal.

    Parameters
    ----------
    base, head
        Both predicted on one calibration; None where there is no such layer.
    known
        What was found for equal configurations of these two models before; added to.
    """
    if base is None or head is None:
        return (Cause(NEW if base is None else VANISHED, share=1.0),)
    before, after = base.layer, head.layer
    if before == after:
        return ()
    found: tuple[Cause, ...] = ()
    ours, theirs = before.configuration, after.configuration
    if ours != theirs:
        key = ours, theirs
        if key not in known:
            known[key] = _with_shares(_configuration_causes(base, head, batches))
        found = known[key]
    if before.path != after.path:
        renamed = f"{before.path or '(root)'} -> {after.path or '(root)'}"
        return (*found, Cause(RENAMED, renamed, 0.0 if found else 1.0))
    return found


def _with_shares(causes: list[Cause]) -> tuple[Cause, ...]:
    """What the others do not explain is the main cause's."""
    main, *rest = causes
    share = 1.0 - sum(each.share for each in rest)
    return (Cause(main.name, main.detail, share), *rest)


def _configuration_causes(
    base: LayerPrediction, head: LayerPrediction, batches: Batches
) -> list[Cause]:
    before, after = base.layer, head.layer
    found = []
    if before.op != after.op:
        found.append(Cause(OPERATION, f"{before.op} -> {after.op}"))
    scaled = batches.base != batches.head and _is_scaled(before, after, batches)
    if scaled:
        found.append(Cause(BATCH, f"{batches.base} -> {batches.head}"))
    dtypes = _dtypes(before), _dtypes(after)
    if dtypes[0] != dtypes[1]:
        found.append(Cause(DTYPE, f"{'/'.join(dtypes[0])} -> {'/'.join(dtypes[1])}"))
    factor = batches.head / batches.base if scaled else 1.0
    costs = before.cost, after.cost
    found += _work_causes(base, head, costs, factor, bytes_too=dtypes[0] == dtypes[1])
    if not found:
        found.append(Cause(CONFIGURATION, _what_changed(before, after)))
    if before.op == after.op and dtypes[0] == dtypes[1]:
        found += _regime_cause(base, head, costs)
    return found


def _is_scaled(before: Layer, after: Layer, batches: Batches) -> bool:
    """Whether some tensor has grown along one axis as the batch has."""
    pairs = [
        *zip(before.inputs, after.inputs, strict=False),
        *zip(before.outputs, after.outputs, strict=False),
    ]
    return any(
        len(ours) == len(theirs)
        and any(
            one != other and one * batches.head == other * batches.base
            for one, other in zip(ours, theirs, strict=True)
        )
        for (ours, _), (theirs, _) in pairs
    )


def _dtypes(layer: Layer) -> tuple[str, ...]:
    """The layer's dtype first, then those of its tensors that differ."""
    tensors = (*layer.inputs, *layer.weights, *layer.outputs)
    return tuple(dict.fromkeys([layer.dtype, *(each.dtype for each in tensors)]))


def _work_causes(
    base: LayerPrediction,
    head: LayerPrediction,
    costs: tuple[CostTerms, CostTerms],
    factor: float,
    *,
    bytes_too: bool,
) -> list[Cause]:
    """More or fewer operations and bytes, what matters more for the kind first.

    ``factor`` is what the batch explains: the rest is per sample. Bytes say nothing new where the
    dtype has changed.
    """
    before, after = costs
    found = [(before.flops * factor, after.flops, MORE_OPERATIONS, FEWER_OPERATIONS)]
    if bytes_too:
        expected = (before.bytes_in + before.bytes_out) * factor + before.bytes_weight
        found.append((expected, after.bytes_moved, MORE_BYTES, FEWER_BYTES))
    if head.layer.kind not in _COMPUTING:
        found.reverse()
    changed = [each for each in found if each[0] != each[1]]
    what = _what_changed(base.layer, head.layer) if changed else ""
    return [
        Cause(
            more if now > expected else fewer,
            f"{f'{now / expected - 1:+.1%}' if expected else f'from 0 to {now:,}'} ({what})",
        )
        for expected, now, more, fewer in changed
    ]


def _what_changed(before: Layer, after: Layer) -> str:
    """The first of weights, inputs, outputs and hyper-parameters that differs."""
    for name in ("weights", "inputs", "outputs"):
        ours, theirs = getattr(before, name), getattr(after, name)
        if ours != theirs:
            differing = [pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]]
            one, other = differing[0] if differing else (ours[-1:], theirs[-1:])
            if not differing:
                return f"{len(ours)} -> {len(theirs)} {name}"
            return f"{name} {_sizes(one)} -> {_sizes(other)}"
    params = dict(before.params), dict(after.params)
    for name in (*params[0], *params[1]):
        one, other = (each.get(name, "unset") for each in params)
        if one != other:
            return f"{name} {one} -> {other}"
    return "configuration"


def _sizes(tensor: TensorSpec) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _regime_cause(
    base: LayerPrediction, head: LayerPrediction, costs: tuple[CostTerms, CostTerms]
) -> list[Cause]:
    one, other = (
        each.energy_mj if each.runtime_ms is None else each.runtime_ms for each in (base, head)
    )
    if not one or not other:
        return []
    ratios = [1.0]
    for ours, theirs in zip(*costs, strict=True):
        if ours:
            ratios.append(theirs / ours)
        elif theirs:  # something that it did not do at all before: no bound above
            ratios.append(float("inf"))
    ratio, low, high = other / one, min(ratios), max(ratios)
    if low / _SLACK <= ratio <= high * _SLACK:
        return []
    bound, name = (high, COSTLIER) if ratio > high else (low, CHEAPER)
    edge = _edge(base.layer, head.layer, costlier=ratio > high)
    detail = f"{ratio - 1:+.1%} where operations and bytes make at most {bound - 1:+.1%}"
    if ratio < low:
        detail = f"{ratio - 1:+.1%} where operations and bytes make at least {bound - 1:+.1%}"
    share = (ratio - bound) / (ratio - 1.0)
    return [Cause(name, f"{detail}{edge}", min(max(share, 0.0), 1.0))]


def _edge(before: Layer, after: Layer, *, costlier: bool) -> str:
    """The alignment that a size of the weights has lost or gained, if any."""
    if not before.weights or not after.weights:
        return ""
    aligned, other = (before, after) if costlier else (after, before)
    sizes: Sequence[tuple[int, int]] = list(
        zip(aligned.weights[0].shape[:2], other.weights[0].shape[:2], strict=False)
    )
    for alignment in _ALIGNMENTS:
        for axis, (good, bad) in enumerate(sizes):
            if good % alignment == 0 and bad % alignment:
                name = ("output", "input")[axis ^ bool(aligned.param("transposed", False))]
                ours, theirs = (good, bad) if costlier else (bad, good)
                verb = "leaves" if costlier else "reaches"
                return f": {name} width {ours} -> {theirs} {verb} a multiple of {alignment}"
    return ""
