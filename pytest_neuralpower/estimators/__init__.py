"""Estimators: each predicts one quantity of one family of layers from its columns."""

from __future__ import annotations

from typing import Final, TypeAlias

from pytest_neuralpower.estimators.base import Estimator
from pytest_neuralpower.estimators.boosted import Boosted
from pytest_neuralpower.estimators.correction import Bounded, Prior, Sparse
from pytest_neuralpower.estimators.neuralpower import NeuralPowerPolynomial, NeuralPowerRelative
from pytest_neuralpower.estimators.physical import Physical
from pytest_neuralpower.estimators.tree import Tree
from pytest_neuralpower.estimators.utilization import Utilization

__all__ = [
    "ESTIMATORS",
    "AnyEstimator",
    "Boosted",
    "Bounded",
    "Estimator",
    "NeuralPowerPolynomial",
    "NeuralPowerRelative",
    "Physical",
    "Prior",
    "Sparse",
    "Tree",
    "Utilization",
]

#: What a platform file may store.
AnyEstimator: TypeAlias = (
    Bounded
    | Physical
    | NeuralPowerPolynomial
    | NeuralPowerRelative
    | Tree
    | Boosted
    | Sparse
    | Utilization
)

#: Every estimator by the name it carries in recipes and platform files.
ESTIMATORS: Final[dict[str, type[Estimator]]] = {
    each.name: each
    for each in (
        *(Boosted, Bounded, NeuralPowerPolynomial, NeuralPowerRelative),
        *(Physical, Sparse, Tree, Utilization),
    )
}
