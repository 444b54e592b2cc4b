"""Estimators: each predicts one quantity of one family of layers from its columns."""

from __future__ import annotations

from typing import Final, TypeAlias

from pytest_neuralpower.estimators.base import Estimator
from pytest_neuralpower.estimators.boosted import Boosted
from pytest_neuralpower.estimators.neuralpower import NeuralPowerPolynomial, NeuralPowerRelative
from pytest_neuralpower.estimators.physical import Physical
from pytest_neuralpower.estimators.tree import Tree
from pytest_neuralpower.estimators.utilization import Utilization

__all__ = [
    "ESTIMATORS",
    "AnyEstimator",
    "Boosted",
    "Estimator",
    "NeuralPowerPolynomial",
    "NeuralPowerRelative",
    "Physical",
    "Tree",
    "Utilization",
]

#: What a platform file may store.
AnyEstimator: TypeAlias = (
    Physical | NeuralPowerPolynomial | NeuralPowerRelative | Tree | Boosted | Utilization
)

#: Every estimator by the name it carries in recipes and platform files.
ESTIMATORS: Final[dict[str, type[Estimator]]] = {
    each.name: each
    for each in (Boosted, NeuralPowerPolynomial, NeuralPowerRelative, Physical, Tree, Utilization)
}
