"""Fitting boosted trees with scikit-learn. Needed to fit only; nothing here predicts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pytest_neuralpower.estimators.base import need_extra
from pytest_neuralpower.estimators.boosted_trees import UNIT, BoostedTrees

if TYPE_CHECKING:
    from pytest_neuralpower.features import FloatArray

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
