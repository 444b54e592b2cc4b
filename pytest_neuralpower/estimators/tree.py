"""FastDeepIoT's estimator: a tree of range and integer-multiple splits, lines in its leaves.

Yao et al., "FastDeepIoT: Towards Understanding and Optimizing Neural Network Execution Time on
Mobile and Embedded Devices", SenSys 2018, section 4: inner nodes ask ``f <= tau`` or
``f mod k = 0``; a leaf is ``y = w x + b`` with ``w, b >= 0`` over operations, memory and
parameters.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import numpy as np

from pytest_neuralpower.errors import FitError
from pytest_neuralpower.estimators.base import Estimator
from pytest_neuralpower.estimators.folds import MIN_GROUPS, grouped_folds, whole_groups
from pytest_neuralpower.estimators.terms import evaluate, is_term
from pytest_neuralpower.estimators.tree_nodes import (
    Leaf,
    Node,
    cut,
    leaf_numbers,
    leaves,
    line_values,
    node_of,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.features import Columns, FloatArray

#: Depths, and fewest rows of a leaf, that cross-validation chooses among.
DEPTHS: Final = (0, 1, 2, 3, 4, 6)
LEAST_ROWS: Final = (10, 40)

#: The cross-validation that chooses them: its folds, and the most rows it looks at.
_TUNING_FOLDS: Final = 3
_TUNING_ROWS: Final = 1200


class Tree(Estimator):
    """A tree of conditions on sizes with non-negative lines in its leaves, weighted 1/y.

    Parameters
    ----------
    splits
        Columns that conditions may be on.
    terms
        What the lines run over (:mod:`pytest_neuralpower.estimators.terms`): ``launch``, which
        is the constant, and terms of operations, memory and parameters.
    multiprocessors
        Tiles that run at once, for tile terms.
    depth, least_rows
        Most conditions above a leaf, fewest rows in one. None has grouped cross-validation
        choose among :data:`DEPTHS` and :data:`LEAST_ROWS`.

    Attributes
    ----------
    root_
        The fitted tree; rates in ms, W or mJ per unit of the term.
    """

    name: ClassVar[str] = "tree"
    never_falls_in: ClassVar[tuple[str, ...]] = (
        *("flops", "bytes_in", "bytes_out", "bytes_weight", "bytes_workspace", "bytes_moved"),
    )

    def __init__(
        self,
        splits: Sequence[str],
        terms: Sequence[str],
        *,
        multiprocessors: int = 1,
        depth: int | None = None,
        least_rows: int | None = None,
    ) -> None:
        for term in terms:
            if not is_term(term):
                raise ValueError(f"unknown term {term!r} of a tree")
        self.splits = tuple(splits)
        self.terms = tuple(terms)
        self.multiprocessors = multiprocessors
        self.depth = depth
        self.least_rows = least_rows
        self.root_: Node = Leaf({}, 0)

    def _tune(self, columns: Columns, target: FloatArray, groups: Sequence[Hashable]) -> None:
        depths = DEPTHS if self.depth is None else (self.depth,)
        sizes = LEAST_ROWS if self.least_rows is None else (self.least_rows,)
        self.depth, self.least_rows = depths[0], sizes[0]
        kept = whole_groups(groups, _TUNING_ROWS)
        some = [groups[row] for row in kept.tolist()]
        if len(depths) * len(sizes) == 1 or len(set(some)) < MIN_GROUPS:
            return
        columns, target = _part(columns, kept), target[kept]
        fold = grouped_folds(some, _TUNING_FOLDS)
        errors = np.zeros((len(sizes), len(depths)))
        for (row, size), number in product(enumerate(sizes), range(int(fold.max()) + 1)):
            seen = fold != number
            # A deep tree holds the shallow ones: every node knows the leaf in its place.
            root = self._grow(_part(columns, seen), target[seen], max(depths), size)
            held_out = _part(columns, ~seen)
            terms = self._terms(held_out)
            for column, depth in enumerate(depths):
                predicted = line_values(cut(root, depth), held_out, terms)
                errors[row, column] += np.abs(predicted / target[~seen] - 1).sum()
        # Of trees about equally good, the shallowest, with the largest leaves.
        good = errors <= errors.min() * 1.01
        column = int(np.flatnonzero(good.any(axis=0))[0])
        self.depth = depths[column]
        self.least_rows = sizes[int(np.flatnonzero(good[:, column])[-1])]

    def _fit(self, columns: Columns, target: FloatArray) -> None:
        if self.depth is None or self.least_rows is None:  # pragma: no cover - fit() tunes first
            raise FitError("tree: neither depth nor least_rows was chosen")
        self.root_ = self._grow(columns, target, self.depth, self.least_rows)

    def _grow(self, columns: Columns, target: FloatArray, depth: int, least_rows: int) -> Node:
        from pytest_neuralpower.estimators.tree_growth import grow  # noqa: PLC0415 - only fitting

        return grow(
            columns,
            self._terms(columns),
            target,
            self.splits,
            depth=depth,
            least_rows=least_rows,
        )

    def _terms(self, columns: Columns) -> dict[str, FloatArray]:
        return {term: evaluate(term, columns, self.multiprocessors) for term in self.terms}

    def part(self, columns: Columns) -> NDArray[np.intp]:
        return leaf_numbers(self.root_, columns)

    def predict(self, columns: Columns) -> FloatArray:
        used = {term for leaf in leaves(self.root_) for term in leaf.rates}
        terms = {
            term: evaluate(term, columns, self.multiprocessors)
            for term in self.terms
            if term in used
        }
        return line_values(self.root_, columns, terms)

    def to_json(self) -> dict[str, Any]:
        return {
            "estimator": self.name,
            "splits": list(self.splits),
            "terms": list(self.terms),
            "multiprocessors": self.multiprocessors,
            "depth": self.depth,
            "least_rows": self.least_rows,
            "root": self.root_.to_json(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        estimator = cls(
            [str(column) for column in data["splits"]],
            [str(term) for term in data["terms"]],
            multiprocessors=int(data["multiprocessors"]),
            depth=int(data["depth"]),
            least_rows=int(data["least_rows"]),
        )
        estimator.root_ = node_of(data["root"], estimator.terms)
        return estimator


def _part(columns: Columns, rows: NDArray[Any]) -> dict[str, FloatArray]:
    return {name: values[rows] for name, values in columns.items()}
