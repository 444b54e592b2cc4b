"""Align two versions of a model: which layer of one is which layer of the other.

Needleman and Wunsch, "A general method applicable to the search for similarities in the amino acid
sequence of two proteins", J. Mol. Biol. 1970, with gaps for free: layers keep their order, and the
pairs chosen are alike in the largest sum. An equal configuration counts most, so that a renamed
module is found again; then the place in the model with numbers left out, so that a block that moved
from ``layer3.4`` to ``layer3.5`` is still the same place and a widened layer is the layer that it
was; the exact path only decides between equals.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.layers import Layer, TensorSpec

#: Positions in base and head; None where a layer is in one of them only.
Pair: TypeAlias = tuple[int | None, int | None]

#: A position in base and one in head.
Cut: TypeAlias = tuple[int, int]
#: Kind, operation, place and last step of the path.
Look: TypeAlias = tuple[str, str, str, str]
Codes: TypeAlias = "NDArray[np.int32]"

# What two layers have in common -> how much it counts. Layers of different kinds are never paired,
# nor are different operations in different places.
_SAME_CONFIGURATION: Final = 64
_SAME_PLACE: Final = 16  # the path with its numbers left out
_SAME_NAME: Final = 8  # the last step of the path: what is left when a parent is renamed
_SAME_OPERATION: Final = 2
# And the exact path for 1.

#: How many layers of head a layer of base is held against, plus twice the difference in length.
_BAND: Final = 384
#: Layers of base in a row that are held against the same ones.
_BLOCK: Final = 64

_NUMBERS: Final = re.compile(r"\d+")


class Traits:
    """What layers of both sides may have in common, as numbers: equal where they are equal."""

    def __init__(
        self, base: Sequence[Layer], head: Sequence[Layer], batches: tuple[int, int]
    ) -> None:
        layers = [*base, *head]
        self._cut = len(base)
        same = batches[0] == batches[1] and {each.dtype for each in base} == {
            each.dtype for each in head
        }
        paths = [each.path for each in layers]
        places = {path: _NUMBERS.sub("#", path) for path in set(paths)}
        self.path = self._codes(paths)
        self.configuration = self._codes(
            [each.configuration for each in layers]
            if same
            else [
                *(_per_sample(each, batches[0]) for each in base),
                *(_per_sample(each, batches[1]) for each in head),
            ]
        )
        # Few layers look different: how alike two looks are is worked out once.
        looks = [
            (each.kind, each.op, places[path], places[path].rpartition(".")[2])
            for each, path in zip(layers, paths, strict=True)
        ]
        self.look = self._codes(looks)
        self.looks = list(dict.fromkeys(looks))
        #: Equal where the configuration is.
        self.alike = [side.tolist() for side in self.configuration]
        #: Equal where path and configuration are.
        self.exact = [
            list(zip(paths_.tolist(), alike, strict=True))
            for paths_, alike in zip(self.path, self.alike, strict=True)
        ]

    def _codes(self, values: Iterable[Hashable]) -> tuple[Codes, Codes]:
        seen: dict[Hashable, int] = {}
        codes = np.array([seen.setdefault(value, len(seen)) for value in values], dtype=np.int32)
        return codes[: self._cut], codes[self._cut :]


def _per_sample(layer: Layer, batch: int) -> Hashable:
    """The configuration without dtypes, for one sample."""
    return (
        layer.kind,
        layer.op,
        _shapes(layer.inputs, batch),
        _shapes(layer.weights, 0),
        _shapes(layer.outputs, batch),
        layer.params,
    )


def _shapes(tensors: Sequence[TensorSpec], batch: int) -> tuple[tuple[int, ...], ...]:
    if batch > 1:
        return tuple(
            [
                (shape[0] // batch, *shape[1:]) if shape and not shape[0] % batch else shape
                for shape, _ in tensors
            ]
        )
    return tuple([shape for shape, _ in tensors])


def align(traits: Traits, start: int, stop: Cut) -> list[Pair]:
    """The best pairs from ``start`` on both sides to ``stop``, a position in base and in head.

    A row of the table is a layer of base; its columns are the layers of head that are not far from
    the straight way across, as many as :data:`_BAND`.
    """
    rows, columns = stop[0] - start, stop[1] - start
    if not rows or not columns:
        return [(at, None) for at in range(start, stop[0])] + [
            (None, at) for at in range(start, stop[1])
        ]
    width = min(columns, _BAND + 2 * abs(rows - columns))
    lows = [
        min(max(row // _BLOCK * _BLOCK * columns // rows - width // 2, 0), columns - width)
        for row in range(rows + 1)
    ]
    table = np.zeros((rows + 1, width + 1), dtype=np.int32)
    for row, likeness in enumerate(_likeness(traits, start, stop, lows[1:], width), 1):
        above = table[row - 1]
        shift = lows[row] - lows[row - 1]
        if shift:
            above = np.concatenate((above[shift:], np.repeat(above[-1:], shift)))
        # Pair the layer with one of head, or leave either alone.
        best = above[:-1] + likeness
        np.maximum(best, above[1:], out=best)
        table[row, 0] = above[0]
        np.maximum.accumulate(best, out=table[row, 1:])
    found = list(_way_back(table, lows))[::-1]
    return [
        (None if row is None else row + start, None if column is None else column + start)
        for row, column in found
    ]


def _likeness(
    traits: Traits, start: int, stop: Cut, lows: Sequence[int], width: int
) -> Iterator[Codes]:
    """For each layer of base, how like it each layer of its columns is; 0 where none may pair."""
    sides = [
        (ours[start : stop[0]], theirs[start : stop[1]])
        for ours, theirs in (traits.configuration, traits.path, traits.look)
    ]
    looks = _look_likeness(traits.looks)
    for low, block in itertools.groupby(range(len(lows)), key=lows.__getitem__):
        rows = list(block)
        seen = [
            (ours[rows[0] : rows[-1] + 1, None], theirs[low : low + width])
            for ours, theirs in sides
        ]
        (ours, theirs), same_path = seen[0], np.equal(*seen[1])
        by_look = looks[seen[2]]
        found = (ours == theirs) * np.int32(_SAME_CONFIGURATION)
        found += same_path
        found += by_look
        found *= by_look > 0
        yield from found


def _look_likeness(looks: Sequence[Look]) -> Codes:
    """How alike each look is to each; 0 where layers that look so may not pair."""
    kind, operation, place, name = (
        np.equal.outer(column, column)
        for column in (np.array(values, dtype=object) for values in zip(*looks, strict=True))
    )
    likeness = (
        operation * _SAME_OPERATION + place * _SAME_PLACE + name * np.int32(_SAME_NAME)
    ).astype(np.int32)
    return np.where(kind & (operation | place), likeness, np.int32(0))


def _way_back(table: Codes, lows: Sequence[int]) -> Iterator[Pair]:
    """The pairs that led to the table's last cell, from the end; equals pair as early as may be."""
    row, column = len(lows) - 1, lows[-1] + table.shape[1] - 1
    while row or column:
        above = 0
        if row:
            above = table[row - 1, min(column - lows[row - 1], table.shape[1] - 1)]
        at = column - lows[row]
        if at >= table.shape[1] or (at and table[row, at] == table[row, at - 1]):
            column -= 1
            yield None, column
        elif row and table[row, at] == above:
            row -= 1
            yield row, None
        else:
            row, column = row - 1, column - 1
            yield row, column


# -- Runs of layers that are in one version alone, moved to where modules begin.
#
# Blocks often end in the same operation, such as an addition, so that what was put in may begin
# with the end of one block and stop before the end of another without anything to tell them apart.
# git does the same with lines of a diff.


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
    """The run and the pairs next to it, swapped: partners are kept in order."""
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


# -- Pairs of layers.


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
