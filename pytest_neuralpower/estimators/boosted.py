"""A sum of small regression trees: stored one line a tree, evaluated for many rows at once.

Each tree has a fixed depth and a place for every node, in the order of a heap: the children of
node i are 2i + 1 (at most the threshold) and 2i + 2. A tree that ends early repeats its leaf.
Thresholds are single-precision and leaves whole numbers of a small unit, so that sums are exact
and do not depend on the order or on how many rows are predicted together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from copy import deepcopy
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
from msgspec import Struct, field

from pytest_neuralpower.errors import FitError
from pytest_neuralpower.estimators.base import Estimator, need_extra, some_rows
from pytest_neuralpower.estimators.features import IndexArray
from pytest_neuralpower.estimators.physical import Physical
from pytest_neuralpower.estimators.selection import MIN_GROUPS, grouped_folds, whole_groups
from pytest_neuralpower.estimators.utilization import Utilization

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.estimators.features import Columns, FloatArray

#: Unit of the leaves' numbers.
UNIT: Final = 1e-5

#: Deepest tree whose leaves a byte can number.
MAX_DEPTH: Final = 6

#: Rows evaluated at once: the comparisons of a few hundred trees then stay in the cache.
_CHUNK: Final = 128


class BoostedTrees(Struct, frozen=True, eq=False):
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

    inputs: IndexArray
    thresholds: np.ndarray[tuple[Any, ...], np.dtype[np.float32]]
    leaves: np.ndarray[tuple[Any, ...], np.dtype[np.int64]]

    @property
    def depth(self) -> int:
        return len(self.inputs).bit_length()

    def __len__(self) -> int:
        return int(self.inputs.shape[1])

    @property
    def used(self) -> NDArray[np.bool_]:
        """Nodes that ask anything, shape ``(nodes, trees)``."""
        return np.asarray(np.isfinite(self.thresholds))

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

    def lines(self) -> list[str]:
        """One line a tree: ``input:threshold`` of each node (``*`` where all go to the first
        child), then its leaves."""
        return [
            f"{' '.join(map(_node, inputs, thresholds))} = {' '.join(map(str, leaves))}"
            for inputs, thresholds, leaves in zip(
                self.inputs.T.tolist(), self.thresholds.T, self.leaves.tolist(), strict=True
            )
        ]

    @classmethod
    def of(cls, lines: Sequence[str], depth: int, inputs: int) -> BoostedTrees:
        """The trees that :meth:`lines` wrote, of this depth over so many inputs.

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


def _node(chosen: int, threshold: np.float32) -> str:
    # Shorter than numpy's own text, and the same number: thresholds have five digits.
    return "*" if np.isinf(threshold) else f"{chosen}:{threshold:.6g}".replace("e+0", "e")


# -- Fitting boosted trees with scikit-learn. Needed to fit only; nothing here predicts.

#: Share of what a tree found that is added to the sum.
LEARNING_RATE: Final = 0.2


class Boosting:
    """Gradient boosting of small trees, squared error.

    Parameters
    ----------
    trees
        How many.
    depth
        Of each.
    least_rows
        Fewest rows in a leaf.
    """

    def __init__(self, *, trees: int, depth: int, least_rows: int) -> None:
        try:
            from sklearn.ensemble import HistGradientBoostingRegressor  # noqa: PLC0415 - only fitting
        except ImportError:
            raise need_extra("scikit-learn") from None
        self.depth = depth
        self.model: Any = HistGradientBoostingRegressor(
            max_iter=trees,
            max_depth=depth,
            max_leaf_nodes=None,
            min_samples_leaf=least_rows,
            learning_rate=LEARNING_RATE,
            early_stopping=False,
            random_state=0,
        )

    def fit(self, values: FloatArray, target: FloatArray) -> Boosting:
        """Fit to inputs of shape ``(inputs, rows)``."""
        import threadpoolctl  # type: ignore[import-untyped]  # noqa: PLC0415 - scikit-learn needs it

        # One thread: the sums of a histogram then never depend on how many cores there are.
        with threadpoolctl.threadpool_limits(1):
            self.model.fit(values.T, target)
        return self

    def trees(self, count: int) -> tuple[float, BoostedTrees]:
        """The constant that all rows start from, and the first ``count`` trees."""
        shape = (2**self.depth - 1, count)
        trees = BoostedTrees(
            np.zeros(shape, dtype=np.intp),
            np.full(shape, np.inf, dtype=np.float32),
            np.zeros((count, 2**self.depth), dtype=np.int64),
        )
        # scikit-learn shows these trees nowhere else.
        for tree, (predictor,) in enumerate(self.model._predictors[:count]):
            for place, node in _heap(predictor.nodes, self.depth):
                if place >= shape[0]:
                    trees.leaves[tree, place - shape[0]] = round(float(node["value"]) / UNIT)
                elif not node["is_leaf"]:
                    trees.inputs[place, tree] = int(node["feature_idx"])
                    trees.thresholds[place, tree] = float(f"{float(node['num_threshold']):.5g}")
        return float(self.model._baseline_prediction.item()), trees


def _heap(nodes: Any, depth: int) -> Iterator[tuple[int, Any]]:
    """The node at every place of a heap of this depth; a leaf before its time is repeated below."""
    at = [0]
    for place in range(2 ** (depth + 1) - 1):
        node = nodes[at[place]]
        yield place, node
        at += [at[place]] * 2 if node["is_leaf"] else [int(node["left"]), int(node["right"])]


# -- Columns of the boosted residual.
#
# Trees on sizes alone would have to learn that a product of 129 columns is cut like one of 256;
# here the fill of a tile, of a wave and of a vector are numbers that one split can ask for.

_RATIO: Final = re.compile(r"(\w+)/(\w+)")
_CALL: Final = re.compile(r"(\w+)\((\w+), (\d+)\)")
#: Keeps a division by an empty size finite.
_TINY: Final = 1e-30
_WAVE: Final = re.compile(r"wave_fill\((\d+)x(\d+), (\d+)\)")
_QUERIES: Final = re.compile(r"query_fill\((\d+), (\d+)\)")


def evaluate_input(name: str, columns: Columns) -> FloatArray:
    """Values of one input, shape ``(rows,)``.

    Parameters
    ----------
    name
        - a column (``m``);
        - ``flops/bytes_moved``: the ratio of two columns;
        - ``fill(n, 128)``: n over n rounded up to a multiple of 128;
        - ``align(k, 64)``: the largest power of two that divides k, at most 64;
        - ``wave_fill(128x64, 24)``: tiles of 128 x 64 over those of full waves of 24;
        - ``query_fill(128, 24)``: the same of blocks of 128 queries of an attention's heads.

    Raises
    ------
    KeyError
        There is no such column.
    ValueError
        There is no such input.
    """
    return columns[name] if name in columns else _compiled(name)(columns)


@cache
def _compiled(name: str) -> Callable[[Columns], FloatArray]:
    """What evaluates one input that is no column; the name is read once."""
    if wave := _WAVE.fullmatch(name):
        rows, cols, at_once = (int(each) for each in wave.groups())
        return partial(_wave_fill, rows=rows, cols=cols, at_once=at_once)
    if queries := _QUERIES.fullmatch(name):
        return partial(_query_fill, rows=int(queries[1]), at_once=int(queries[2]))
    if ratio := _RATIO.fullmatch(name):
        return partial(_ratio, over=ratio[1], under=ratio[2])
    call = _CALL.fullmatch(name)
    if call is None or call[1] not in _CALLS:
        raise ValueError(
            f"unknown input {name!r}: a column, a/b, fill(n, 128), align(k, 64), "
            "wave_fill(128x64, 24) or query_fill(128, 24)"
        )
    return partial(_CALLS[call[1]], column=call[2], size=int(call[3]))


def _ratio(columns: Columns, *, over: str, under: str) -> FloatArray:
    return np.asarray(columns[over] / np.maximum(columns[under], _TINY))


def _fill(columns: Columns, *, column: str, size: int) -> FloatArray:
    values = columns[column]
    return np.asarray(values / np.maximum(np.ceil(values / size) * size, _TINY))


def _align(columns: Columns, *, column: str, size: int) -> FloatArray:
    # The lowest bit of a whole number is the largest power of two that divides it.
    whole = columns[column].astype(np.int64)
    return np.asarray(np.minimum(whole & -whole, size), dtype=np.float64)


def _wave_fill(columns: Columns, *, rows: int, cols: int, at_once: int) -> FloatArray:
    tiles = np.ceil(columns["m"] / rows) * np.ceil(columns["n"] / cols) * columns["groups"]
    return _filled(tiles, at_once)


def _query_fill(columns: Columns, *, rows: int, at_once: int) -> FloatArray:
    return _filled(columns["heads"] * np.ceil(columns["queries"] / rows), at_once)


def _filled(tiles: FloatArray, at_once: int) -> FloatArray:
    """Tiles over those of full waves."""
    waves = np.maximum(np.ceil(tiles / at_once), 1.0)
    return np.asarray(tiles / (waves * at_once))


_CALLS: Final[dict[str, Callable[..., FloatArray]]] = {"fill": _fill, "align": _align}


# -- The estimator: another one times the exponential of a boosted residual.

#: Numbers of trees, and fewest rows of a leaf, that cross-validation chooses among.
TREES: Final = (0, 20, 50, 100, 150)
LEAST_ROWS: Final = (8, 25)
DEPTH: Final = 4

#: Fewer rows than this say nothing about the residual of an estimator fitted to them.
MIN_ROWS: Final = 80

#: The cross-validation that chooses them: its folds, and the most rows it looks at.
_TUNING_FOLDS: Final = 3
_TUNING_ROWS: Final = 2500


class Boosted(Estimator, tag="boosted", dict=True):
    """``base x exp(residual)``, the residual a sum of small trees that sees sizes and alignment.

    The base knows how cost grows; the trees know what it leaves out where there were rows. Trees
    know nothing beyond their rows, so the residual fades: outside the calibrated range of
    ``ranges`` it is multiplied by ``2 ** -d**2``, ``d`` being the distance in doublings (root
    of the sum of squares over columns).

    Parameters
    ----------
    base
        Physical estimator (runtime, energy) or utilization (power); fitted with the trees.
    inputs
        What the trees ask about (:func:`evaluate_input`).
    ranges
        Columns whose calibrated range bounds the residual.
    trees, least_rows
        Number of trees and fewest rows in a leaf; None has grouped cross-validation choose
        among :data:`TREES` and :data:`LEAST_ROWS`.
    depth
        Of each tree, :data:`DEPTH` by default; at most :data:`MAX_DEPTH`.

    Attributes
    ----------
    constant_, residual_
        The residual, natural logarithm: a constant and the trees, one line each.
    calibrated_
        Smallest and largest calibrated value by column of ``ranges``.
    spread_
        Standard deviation of the residual over the rows it was fitted to.
    """

    name: ClassVar[str] = "boosted"

    base: Physical | Utilization
    inputs: tuple[str, ...]
    ranges: tuple[str, ...]
    trees: int | None = None
    least_rows: int | None = None
    spread_: float = 0.0
    calibrated_: dict[str, tuple[float, float]] = field(default_factory=dict)
    constant_: float = 0.0
    depth: int = DEPTH
    residual_: list[str] = field(default_factory=list)

    @cached_property
    def trees_(self) -> BoostedTrees:
        """The trees that ``residual_`` describes."""
        return BoostedTrees.of(self.residual_, self.depth, len(self.inputs))

    def _tune(self, columns: Columns, target: FloatArray, groups: Sequence[Hashable]) -> None:
        counts = TREES if self.trees is None else (self.trees,)
        sizes = LEAST_ROWS if self.least_rows is None else (self.least_rows,)
        self.trees, self.least_rows = counts[0], sizes[-1]
        if len(target) < MIN_ROWS:
            raise FitError(f"boosted: {len(target)} rows, {MIN_ROWS} are needed: measure more")
        kept = whole_groups(groups, _TUNING_ROWS)
        some = [groups[row] for row in kept.tolist()]
        if len(counts) * len(sizes) == 1 or len(set(some)) < MIN_GROUPS:
            return
        columns, target = some_rows(columns, kept), target[kept]
        fold = grouped_folds(some, _TUNING_FOLDS)
        errors = np.zeros((len(sizes), len(counts)))
        for number in range(int(fold.max()) + 1):
            seen = fold != number
            known, held_out = some_rows(columns, seen), some_rows(columns, ~seen)
            base = deepcopy(self.base).fit(known, target[seen])
            left = _residual(base, known, target[seen])
            plain = base.predict(held_out)
            for row, size in enumerate(sizes):
                model = Boosting(trees=max(counts), depth=self.depth, least_rows=size)
                model.fit(self._values(known), left)
                constant, trees = model.trees(max(counts))
                for column, count in enumerate(counts):
                    left_out = trees.first(count).predict(self._values(held_out))
                    factor = np.exp(constant + left_out) if count else 1.0
                    errors[row, column] += np.abs(plain * factor / target[~seen] - 1).sum()
        # Of about equally good ones the fewest trees with the largest leaves.
        good = errors <= errors.min() * 1.005
        column = int(np.flatnonzero(good.any(axis=0))[0])
        self.trees = counts[column]
        self.least_rows = sizes[int(np.flatnonzero(good[:, column])[-1])]

    def _fit(self, columns: Columns, target: FloatArray) -> None:
        if self.trees is None or self.least_rows is None:  # pragma: no cover - fit() tunes first
            raise FitError("boosted: neither trees nor least_rows was chosen")
        self.base = deepcopy(self.base).fit(columns, target)
        self.calibrated_ = {
            name: (float(columns[name].min()), float(columns[name].max())) for name in self.ranges
        }
        self.constant_, self.residual_ = 0.0, []
        self.__dict__.clear()  # the trees of an earlier fit
        if not self.trees:
            return
        model = Boosting(trees=self.trees, depth=self.depth, least_rows=self.least_rows)
        model.fit(self._values(columns), _residual(self.base, columns, target))
        constant, trees = model.trees(self.trees)
        self.constant_, self.residual_ = float(f"{constant:.6g}"), trees.lines()
        self.spread_ = float(f"{float(self._sum(columns).std()):.3g}")
        if isinstance(self.base, Physical) and self.base.rescale:
            # As in the base: logarithms alone make the total of noisy rows too low.
            total = float(target.sum() / self.predict(columns).sum())
            self.constant_ = float(f"{self.constant_ + np.log(total):.6g}")

    def _values(self, columns: Columns) -> FloatArray:
        return np.stack([evaluate_input(name, columns) for name in self.inputs])

    def _sum(self, columns: Columns) -> FloatArray:
        return self.constant_ + self.trees_.predict(self._values(columns))

    def fade(self, columns: Columns) -> FloatArray:
        """Weight of the residual, 1 inside the calibrated ranges, towards 0 beyond them."""
        distance: FloatArray = np.zeros(len(columns["flops"]))
        for name, (low, high) in self.calibrated_.items():
            values = np.maximum(columns[name], 1e-30)
            beyond = np.maximum(values / max(high, 1e-30), max(low, 1e-30) / values)
            distance += np.log2(np.maximum(beyond, 1.0)) ** 2
        return np.asarray(np.exp2(-distance), dtype=np.float64)

    def predict(self, columns: Columns) -> FloatArray:
        base = self.base.predict(columns)
        if not self.residual_:
            return base
        found = base * np.exp(self.fade(columns) * self._sum(columns))
        # The board's limit holds for the residual too.
        limit = self.base.limit_w if isinstance(self.base, Utilization) else None
        return np.asarray(found if limit is None else np.minimum(found, limit))

    def evaluate_all(self, columns: Columns) -> None:
        self.base.evaluate_all(columns)
        self.predict(columns)


def _residual(base: Estimator, columns: Columns, target: FloatArray) -> FloatArray:
    """Logarithm of measured over predicted, rounded so that the target's unit leaves no trace."""
    left = np.log(target / np.maximum(base.predict(columns), 1e-30))
    return np.asarray(np.round(left, 9), dtype=np.float64)
