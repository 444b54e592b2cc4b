"""Which layer of one version of a model is which layer of another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pytest_neuralpower.regression.alignment import Pair, Traits, align
from pytest_neuralpower.regression.sliding import slide

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Layer

__all__ = ["Pair", "match_layers"]


def match_layers(
    base: Sequence[Layer], head: Sequence[Layer], *, batches: tuple[int, int] = (1, 1)
) -> list[Pair]:
    """Pair the layers of two versions of a model.

    Parameters
    ----------
    base, head
        In order of execution.
    batches
        Samples in one call of base and of head: layers that differ in these alone are alike, as are
        layers that differ in dtype alone.

    Returns
    -------
    list of pairs
        Positions ``(in base, in head)``, each once, in an order that is right for both.
    """
    start = _common(base, head)
    pairs: list[Pair] = [(at, at) for at in range(start)]
    if start == len(base) == len(head):
        return pairs
    traits = Traits(base[start:], head[start:], batches)
    first = _common(*traits.exact)
    ours, theirs = (side[first:][::-1] for side in traits.alike)
    end = _common(ours, theirs)  # whatever they are called now: the rest is what was put in
    stop = len(base) - start - end, len(head) - start - end
    found: list[Pair] = [(at, at) for at in range(first)]
    found += align(traits, first, stop)
    found += [(stop[0] + at, stop[1] + at) for at in range(end)]
    pairs += [
        (None if one is None else one + start, None if other is None else other + start)
        for one, other in found
    ]
    if len(base) != len(head) or any(None in pair for pair in pairs):
        slide(pairs, base, 0)
        slide(pairs, head, 1)
    return pairs


def _common(base: Sequence[Any], head: Sequence[Any]) -> int:
    """How many are equal from the start."""
    count = 0
    for ours, theirs in zip(base, head, strict=False):
        if ours != theirs:
            break
        count += 1
    return count
