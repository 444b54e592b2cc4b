"""A sum of small regression trees: stored one line a tree, evaluated for many rows at once.

Each tree has a fixed depth and a place for every node, in the order of a heap: the children of
node i are 2i + 1 (at most the threshold) and 2i + 2. A tree that ends early repeats its leaf.
Thresholds are single-precision and leaves whole numbers of a small unit, so that sums are exact
and do not depend on the order or on how many rows are predicted together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.features import FloatArray

#: Unit of the leaves' numbers.
UNIT: Final = 1e-5

#: Deepest tree whose leaves a byte can number.
MAX_DEPTH: Final = 6

#: Rows evaluated at once: the comparisons of a few hundred trees then stay in the cache.
_CHUNK: Final = 128


@dataclass(frozen=True, slots=True)
class BoostedTrees:
    """Trees of one depth over the same inputs.

    Attributes
    ----------
    inputs
        Which input each node asks about, shape ``(nodes, trees)``.
    thresholds
        Rows at most this go to the first child, shape ``(nodes, trees)``.
    leaves
        Values in :data:`UNIT`, shape ``(trees, nodes + 1)``.
    """

    inputs: NDArray[np.intp]
    thresholds: NDArray[np.float32]
    leaves: NDArray[np.int64]

    @property
    def depth(self) -> int:
        return len(self.inputs).bit_length()

    def __len__(self) -> int:
        return int(self.inputs.shape[1])

    @property
    def used(self) -> NDArray[np.bool_]:
        """Nodes that ask anything, shape ``(nodes, trees)``."""
        return np.isfinite(self.thresholds)

    def first(self, count: int) -> BoostedTrees:
        """The first so many trees."""
        inputs, thresholds = self.inputs[:, :count], self.thresholds[:, :count]
        return BoostedTrees(inputs, thresholds, self.leaves[:count])

    def predict(self, values: FloatArray) -> FloatArray:
        """The trees' sum for each row.

        Parameters
        ----------
        values
            Inputs, shape ``(inputs, rows)``.
        """
        rows = values.shape[1]
        if not len(self):
            return np.zeros(rows)
        single = values.astype(np.float32)
        asked, thresholds = self.inputs.ravel(), self.thresholds.reshape(-1, 1)
        first = np.arange(0, self.leaves.size, self.leaves.shape[1])[:, None]
        result = np.empty(rows, dtype=np.int64)
        for start in range(0, rows, _CHUNK):
            some = single[:, start : start + _CHUNK]
            above = (some.take(asked, axis=0) > thresholds).view(np.uint8)
            reached = _reached(above.reshape(*self.inputs.shape, -1))
            result[start : start + _CHUNK] = self.leaves.take(reached + first).sum(axis=0)
        return result.astype(np.float64) * UNIT

    def to_json(self) -> list[str]:
        """One line a tree: ``input:threshold`` of each node (``*`` where all go to the first
        child), then its leaves."""
        return [
            f"{' '.join(map(_node, inputs, thresholds))} = {' '.join(map(str, leaves))}"
            for inputs, thresholds, leaves in zip(
                self.inputs.T.tolist(), self.thresholds.T, self.leaves.tolist(), strict=True
            )
        ]

    @classmethod
    def from_json(cls, lines: Sequence[str], depth: int, inputs: int) -> BoostedTrees:
        """The trees that :meth:`to_json` wrote, of this depth over so many inputs.

        Raises
        ------
        TypeError, ValueError
            A line is no such tree.
        """
        if not 1 <= depth <= MAX_DEPTH:
            raise ValueError(f"boosted trees of depth {depth}; from 1 to {MAX_DEPTH} are possible")
        nodes = 2**depth - 1
        # All lines at once: there may be a thousand, and a platform loads in milliseconds.
        words = " ".join(lines).replace("*", "0:inf").replace("=", " ").replace(":", " ").split()
        asked = [line.count(":") + line.count("*") for line in lines]
        if any(each != nodes for each in asked) or len(words) != len(lines) * (3 * nodes + 1):
            raise ValueError(f"a boosted tree has not {nodes} nodes and {nodes + 1} leaves")
        numbers = np.fromiter(map(float, words), np.float64, len(words)).reshape(-1, 3 * nodes + 1)
        chosen = numbers[:, 0 : 2 * nodes : 2].astype(np.intp)
        if chosen.size and (chosen.min() < 0 or chosen.max() >= inputs):
            raise ValueError(f"a boosted tree asks for an input beyond the {inputs} there are")
        if np.isnan(numbers).any() or not np.isfinite(numbers[:, 2 * nodes :]).all():
            raise ValueError("a boosted tree has a number that is not finite")
        return cls(
            np.ascontiguousarray(chosen.T),
            np.ascontiguousarray(numbers[:, 1 : 2 * nodes : 2].T.astype(np.float32)),
            numbers[:, 2 * nodes :].astype(np.int64),
        )


def _reached(above: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Number of the leaf that each row reaches in each tree, shape ``(trees, rows)``.

    ``above`` is 1 where a row goes to a node's second child, shape ``(nodes, trees, rows)``.
    """
    # From the lowest nodes up: the number of the leaf within each subtree. Bytes wrap around, so
    # that one multiplication chooses between the two children.
    width = len(above) // 2 + 1
    reached = above[width - 1 :]
    size = np.uint8(1)
    while width > 1:
        width //= 2
        size = np.uint8(2 * size)
        first, second = reached[::2], reached[1::2]
        reached = first + above[width - 1 : 2 * width - 1] * (second + size - first)
    return np.asarray(reached[0])


def no_trees(depth: int) -> BoostedTrees:
    """A sum of nothing."""
    return BoostedTrees.from_json([], depth, 1)


def _node(chosen: int, threshold: np.float32) -> str:
    return "*" if np.isinf(threshold) else f"{chosen}:{threshold!s}"
