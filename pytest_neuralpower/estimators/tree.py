"""A tree of range and integer-multiple splits with lines in its leaves (FastDeepIoT)."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import combinations_with_replacement, product
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np
from msgspec import Struct, field
from msgspec.structs import replace

from pytest_neuralpower.errors import FitError
from pytest_neuralpower.estimators.base import Count, Estimator, NonNegative, need_extra, some_rows
from pytest_neuralpower.estimators.features import Columns, FloatArray
from pytest_neuralpower.estimators.selection import MIN_GROUPS, grouped_folds, whole_groups
from pytest_neuralpower.estimators.terms import Condition, evaluate, is_term

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Node(
    Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, rename={"condition": "if"}
):
    """A leaf, or a condition that sends rows to ``yes`` or to ``no``.

    Attributes
    ----------
    rows, rates
        A leaf's line, ``sum of rate x term`` (``launch`` is the constant), and how many rows it was
        fitted to. A node with a condition has those of the leaf that a tree cut off there has in
        its place, until it is stored.
    condition, yes, no
        None in a leaf.
    """

    rows: int = 0
    rates: dict[str, NonNegative] = field(default_factory=dict)
    condition: Condition | None = None
    yes: Node | None = None
    no: Node | None = None

    def __post_init__(self) -> None:
        if (self.condition is None) != (self.yes is None) or (self.yes is None) != (
            self.no is None
        ):
            raise ValueError("a node of a tree has either if, yes and no, or none of them")


def cut(node: Node, depth: int) -> Node:
    """The tree with at most ``depth`` conditions above a leaf."""
    if node.yes is None or node.no is None:
        return node
    if depth == 0:
        return Node(node.rows, node.rates)
    return replace(node, yes=cut(node.yes, depth - 1), no=cut(node.no, depth - 1))


def _stored(node: Node) -> Node:
    """The tree without the lines of nodes that are no leaves."""
    if node.yes is None or node.no is None:
        return node
    return Node(condition=node.condition, yes=_stored(node.yes), no=_stored(node.no))


def leaves(node: Node) -> Iterator[Node]:
    """The leaves, those for which the first condition holds first."""
    if node.yes is None or node.no is None:
        yield node
    else:
        yield from leaves(node.yes)
        yield from leaves(node.no)


def leaf_numbers(node: Node, columns: Columns) -> NDArray[np.intp]:
    """Which of the :func:`leaves` each row falls into."""
    result = np.zeros(len(columns["flops"]), dtype=np.intp)
    _number(node, columns, np.arange(len(result)), 0, result)
    return result


def _number(
    node: Node, columns: Columns, rows: NDArray[np.intp], first: int, result: NDArray[np.intp]
) -> int:
    """Number the leaves below from ``first``; returns the number after the last."""
    if node.condition is None or node.yes is None or node.no is None:
        result[rows] = first
        return first + 1
    column = node.condition.column
    holds = node.condition.holds({column: columns[column][rows]})
    after = _number(node.yes, columns, rows[holds], first, result)
    return _number(node.no, columns, rows[~holds], after, result)


def line_values(node: Node, columns: Columns, terms: Mapping[str, FloatArray]) -> FloatArray:
    """What the line of each row's leaf says, given the values of the terms."""
    found = list(leaves(node))
    chosen = leaf_numbers(node, columns)
    result = np.zeros(len(chosen))
    for term, values in terms.items():
        rates = np.array([leaf.rates.get(term, 0.0) for leaf in found])
        result += rates[chosen] * values
    return result


# -- Non-negative least squares with a few unknowns, for hundreds of subsets of rows at once.
#
# A tree asks of every possible split how well a line fits either side. Only the products of the
# columns are needed for that (the normal equations), and coordinate descent solves all subsets'
# together, one unknown at a time. It is exact enough to rank splits; the lines that are kept are
# solved on their rows.

#: Times that each unknown is solved for, the others fixed. On the splits of real rows the squared
#: error is then within a percent of the least.
SWEEPS: Final = 40

#: A column whose square in one subset is less than this share of that in another is taken to be
#: zero there: sums of a subset found by subtraction leave as much by rounding, and of any sign.
_ROUNDING: Final = 1e-14


def residual_squares(gram: FloatArray, right: FloatArray, rows: FloatArray) -> FloatArray:
    """Least ``||1 - A x||^2`` over x >= 0, or a little more.

    Parameters
    ----------
    gram
        ``A^T A`` of each subset, shape ``(subsets, terms, terms)``.
    right
        ``A^T 1``, shape ``(subsets, terms)``.
    rows
        Number of rows of each subset, shape ``(subsets,)``: what x = 0 leaves.

    Returns
    -------
    numpy.ndarray
        Shape ``(subsets,)``.
    """
    # The last axis runs over subsets, so that every step is one pass over contiguous numbers.
    gram = np.ascontiguousarray(gram.transpose(1, 2, 0))
    right = np.ascontiguousarray(right.T)
    terms = len(right)
    size = np.einsum("iis->is", gram)
    size = np.where(size > _ROUNDING * size.max(axis=1, keepdims=True), size, np.inf)
    found = np.zeros_like(right)
    for _ in range(SWEEPS):
        for term in range(terms):
            others = np.einsum("is,is->s", gram[term], found)
            step = (right[term] - others) / size[term]
            np.maximum(found[term] + step, 0.0, out=found[term])
    fitted = np.einsum("is,ijs,js->s", found, gram, found)
    left = rows - 2 * np.einsum("is,is->s", found, right) + fitted
    return np.asarray(np.maximum(left, 0.0))


# -- Growing a tree: the split that leaves the least relative error, as long as it pays.

#: Thresholds tried per column of a node: quantiles of the values that its rows have.
_THRESHOLDS: Final = 10

#: Multiples tried. Vector widths and tiles are powers of two.
_MULTIPLES: Final = (2, 4, 8, 16, 32, 64, 128)

#: Work, of which no multiple is special.
_WORK: Final = ("flops", "bytes", "runtime")

#: A split must leave this share of its node's squared error at most.
_WORTH: Final = 0.99

#: Mean squared relative error (0.1%, squared) that no split needs to explain.
_NOTHING: Final = 1e-6


def grow(
    columns: Columns,
    terms: Mapping[str, FloatArray],
    target: FloatArray,
    splits: Sequence[str],
    *,
    depth: int,
    least_rows: int,
) -> Node:
    """The tree of rows with these terms.

    Parameters
    ----------
    columns
        What conditions are on.
    terms
        What the lines run over, each of shape ``(rows,)``.
    target
        Measured values, positive.
    splits
        Columns that conditions may be on.
    depth, least_rows
        Most conditions above a leaf, fewest rows in one.

    Raises
    ------
    MissingExtraError
        The extra ``calibrate`` is not installed.
    """
    matrix = np.stack(list(terms.values()), axis=1) / target[:, None]
    # Columns of like size keep the normal equations well conditioned.
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0] = 1.0
    matrix /= scale
    pairs = list(combinations_with_replacement(range(matrix.shape[1]), 2))
    products = np.stack([matrix[:, i] * matrix[:, j] for i, j in pairs], axis=1)
    # One row of all that a node needs to know of a sample: products, right side, count.
    sums = np.hstack([products, matrix, np.ones((len(target), 1))])
    given = {name: columns[name] for name in splits}
    grower = _Grower(given, tuple(terms), matrix, scale, sums, least_rows)
    return grower.node(np.arange(len(target)), depth)


class _Grower(Struct, frozen=True, eq=False):
    """Grows the subtree of any subset of rows.

    Attributes
    ----------
    columns
        What conditions may be on.
    names, matrix, scale
        The terms; their values over the target, each column of norm 1; the norms.
    sums
        Per row: products of the columns of ``matrix``, those columns, and 1.
    least_rows
        Fewest rows in a leaf.
    """

    columns: Columns
    names: tuple[str, ...]
    matrix: FloatArray
    scale: FloatArray
    sums: FloatArray
    least_rows: int

    def node(self, rows: NDArray[np.intp], depth: int) -> Node:
        leaf = self.leaf(rows)
        if depth == 0 or len(rows) < 2 * self.least_rows:
            return leaf
        found = self.best_split(rows)
        if found is None:
            return leaf
        condition, holds = found
        yes, no = self.node(rows[holds], depth - 1), self.node(rows[~holds], depth - 1)
        return replace(leaf, condition=condition, yes=yes, no=no)

    def leaf(self, rows: NDArray[np.intp]) -> Node:
        try:
            from scipy.optimize import nnls  # noqa: PLC0415 - only fitting needs it
        except ImportError:
            raise need_extra("SciPy") from None
        part = self.matrix[rows]
        size = np.linalg.norm(part, axis=0)
        size[size == 0] = 1.0
        found, _ = nnls(part / size, np.ones(len(rows)))
        rates = found / size / self.scale
        named = zip(self.names, rates.tolist(), strict=True)
        return Node(len(rows), {name: float(f"{rate:.8g}") for name, rate in named if rate > 0})

    def best_split(self, rows: NDArray[np.intp]) -> tuple[Condition, NDArray[np.bool_]] | None:
        """The condition whose two sides two lines fit best, if it is worth having."""
        conditions: list[Condition] = []
        masks: list[NDArray[np.bool_]] = []
        for column, every in self.columns.items():
            values = every[rows]
            for condition in _conditions(column, values):
                holds = condition.holds({column: values})
                if self.least_rows <= np.count_nonzero(holds) <= len(rows) - self.least_rows:
                    conditions.append(condition)
                    masks.append(holds)
        if not masks:
            return None
        part = self.sums[rows]
        whole = part.sum(axis=0)
        yes = np.stack(masks).astype(np.float64) @ part
        left = self.squares(yes) + self.squares(whole - yes)
        least = float(left.min())
        undivided = float(self.squares(whole[None])[0])
        if undivided < _NOTHING * len(rows) or least > _WORTH * undivided:
            return None
        # Of splits equally good but for rounding the first, whatever the unit of the target.
        best = int(np.flatnonzero(left <= least + 1e-9 * len(rows))[0])
        return conditions[best], masks[best]

    def squares(self, sums: FloatArray) -> FloatArray:
        """Squared relative error that the best line leaves of each subset."""
        terms = self.matrix.shape[1]
        upper = np.triu_indices(terms)
        gram = np.zeros((len(sums), terms, terms))
        gram[:, upper[0], upper[1]] = gram[:, upper[1], upper[0]] = sums[:, : len(upper[0])]
        return residual_squares(gram, sums[:, len(upper[0]) : -1], sums[:, -1])


def _conditions(column: str, values: FloatArray) -> list[Condition]:
    """Conditions on one column that tell these values apart."""
    seen = np.unique(values)
    if len(seen) < 2:
        return []
    places = np.unique(np.linspace(0, len(seen) - 1, _THRESHOLDS + 2).astype(int)[1:-1])
    if len(seen) <= _THRESHOLDS:
        places = np.arange(len(seen) - 1)
    found = [
        Condition(column, "<=", _between(seen[place], seen[place + 1]))
        for place in places.tolist()
        if place + 1 < len(seen)
    ]
    if not column.startswith(_WORK):
        found += [Condition(column, "%", float(each)) for each in _MULTIPLES if each < seen[-1]]
    return found


def _between(low: float, high: float) -> float:
    """A short number in ``[low, high)``, near their geometric mean where both are positive."""
    middle = np.sqrt(low * high) if low > 0 else (low + high) / 2
    for digits in range(1, 10):
        short = float(f"{middle:.{digits}g}")
        if low <= short < high:
            return short
    return float(low)


# -- The estimator.
#
# Yao et al., "FastDeepIoT: Towards Understanding and Optimizing Neural Network Execution Time on
# Mobile and Embedded Devices", SenSys 2018, section 4: inner nodes ask ``f <= tau`` or
# ``f mod k = 0``; a leaf is ``y = w x + b`` with ``w, b >= 0`` over operations, memory and
# parameters.

#: Depths, and fewest rows of a leaf, that cross-validation chooses among.
DEPTHS: Final = (0, 1, 2, 3, 4, 6)
LEAST_ROWS: Final = (10, 40)

#: The cross-validation that chooses them: its folds, and the most rows it looks at.
_TUNING_FOLDS: Final = 3
_TUNING_ROWS: Final = 1200


class Tree(Estimator, tag="tree"):
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

    splits: tuple[str, ...]
    terms: tuple[str, ...]
    multiprocessors: Count = 1
    depth: int | None = None
    least_rows: int | None = None
    root_: Node = field(default_factory=Node)

    def __post_init__(self) -> None:
        for term in self.terms:
            if not is_term(term):
                raise ValueError(f"unknown term {term!r} of a tree")
        for term in {term for leaf in leaves(self.root_) for term in leaf.rates}:
            if term not in self.terms:
                raise ValueError(f"rate of {term!r}, which is no term of the tree")

    def _tune(self, columns: Columns, target: FloatArray, groups: Sequence[Hashable]) -> None:
        depths = DEPTHS if self.depth is None else (self.depth,)
        sizes = LEAST_ROWS if self.least_rows is None else (self.least_rows,)
        self.depth, self.least_rows = depths[0], sizes[0]
        kept = whole_groups(groups, _TUNING_ROWS)
        some = [groups[row] for row in kept.tolist()]
        if len(depths) * len(sizes) == 1 or len(set(some)) < MIN_GROUPS:
            return
        columns, target = some_rows(columns, kept), target[kept]
        fold = grouped_folds(some, _TUNING_FOLDS)
        errors = np.zeros((len(sizes), len(depths)))
        for (row, size), number in product(enumerate(sizes), range(int(fold.max()) + 1)):
            seen = fold != number
            # A deep tree holds the shallow ones: every node knows the leaf in its place.
            root = self._grow(some_rows(columns, seen), target[seen], max(depths), size)
            held_out = some_rows(columns, ~seen)
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
        self.root_ = _stored(self._grow(columns, target, self.depth, self.least_rows))

    def _grow(self, columns: Columns, target: FloatArray, depth: int, least_rows: int) -> Node:
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

    def predict(self, columns: Columns) -> FloatArray:
        used = {term for leaf in leaves(self.root_) for term in leaf.rates}
        terms = {
            term: evaluate(term, columns, self.multiprocessors)
            for term in self.terms
            if term in used
        }
        return line_values(self.root_, columns, terms)
