"""Runs of layers that are in one version alone, moved to where modules begin.

Blocks often end in the same operation, such as an addition, so that what was put in may begin
with the end of one block and stop before the end of another without anything to tell them apart.
git does the same with lines of a diff.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Layer
    from pytest_neuralpower.regression.alignment import Cut, Pair

__all__ = ["slide"]


def slide(pairs: list[Pair], layers: Sequence[Layer], side: int) -> None:
    """Move each run of layers that ``side`` has alone to where modules begin, if it can be moved.

    A run can be moved by one where the layer that joins it and the one that leaves it have the same
    configuration.
    """
    at = 0
    while at < len(pairs):
        stop = at
        while stop < len(pairs) and pairs[stop][1 - side] is None:
            stop += 1
        if stop > at:
            moved = _best_move(pairs, layers, side, at, stop)
            run = pairs[at:stop]
            if moved < 0:
                pairs[at + moved : stop] = _swapped(run, pairs[at + moved : at], side, before=False)
            elif moved > 0:
                pairs[at : stop + moved] = _swapped(
                    run, pairs[stop : stop + moved], side, before=True
                )
            stop += max(moved, 0)
        at = stop + 1


def _best_move(
    pairs: Sequence[Pair], layers: Sequence[Layer], side: int, at: int, stop: int
) -> int:
    """By how many layers to move the run ``pairs[at:stop]``, down if positive."""
    first, size = pairs[at][side] or 0, stop - at
    options = {0: _depth(layers, first) + _depth(layers, first + size)}
    for step in (-1, 1):
        moved = step
        while _may_move(pairs, layers, side, (at, stop), moved):
            begin = first + moved
            options[moved] = _depth(layers, begin) + _depth(layers, begin + size)
            moved += step
    return min(options, key=lambda each: (options[each], abs(each), each))


def _may_move(
    pairs: Sequence[Pair], layers: Sequence[Layer], side: int, run: Cut, moved: int
) -> bool:
    """Whether the run may move by its ``moved``-th step, all before it taken."""
    at, stop = run
    place = at + moved if moved < 0 else stop + moved - 1
    if not 0 <= place < len(pairs) or None in pairs[place]:
        return False
    joins = pairs[place][side]
    assert joins is not None
    leaves = joins + (stop - at) * (1 if moved < 0 else -1)
    return layers[joins].configuration == layers[leaves].configuration


def _swapped(run: list[Pair], paired: list[Pair], side: int, *, before: bool) -> list[Pair]:
    """The run and the pairs beside it, changed about: partners are kept in order."""
    ours = sorted(each for pair in (*run, *paired) if (each := pair[side]) is not None)
    partners: list[int | None] = [pair[1 - side] for pair in paired]
    alone: list[int | None] = [None] * len(run)
    theirs = partners + alone if before else alone + partners
    return [
        (one, other) if side == 0 else (other, one) for one, other in zip(ours, theirs, strict=True)
    ]


def _depth(layers: Sequence[Layer], at: int) -> int:
    """How deep inside a common module the place before a layer is; 0 between outermost ones."""
    if not 0 < at < len(layers):
        return 0
    steps = layers[at - 1].path.split("."), layers[at].path.split(".")
    count = 0
    for one, other in zip(*steps, strict=False):
        if one != other:
            break
        count += 1
    return count
