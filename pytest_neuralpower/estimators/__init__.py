"""Estimators: each predicts one quantity of one family of layers from its columns."""

from __future__ import annotations

from typing import Any, Final

from pytest_neuralpower.estimators.base import Estimator
from pytest_neuralpower.estimators.boosted import Boosted
from pytest_neuralpower.estimators.neuralpower import NeuralPower
from pytest_neuralpower.estimators.neuralpower_relative import NeuralPowerRelative
from pytest_neuralpower.estimators.physical import Physical
from pytest_neuralpower.estimators.shares import Shares
from pytest_neuralpower.estimators.tree import Tree

__all__ = [
    "ESTIMATORS",
    "Boosted",
    "Estimator",
    "NeuralPower",
    "NeuralPowerRelative",
    "Physical",
    "Shares",
    "Tree",
    "from_json",
]

#: Every estimator by the name it carries in platform files.
ESTIMATORS: Final[dict[str, type[Estimator]]] = {
    each.name: each for each in (NeuralPower, NeuralPowerRelative, Physical, Shares, Tree, Boosted)
}


def from_json(data: dict[str, Any]) -> Estimator:
    """The estimator that ``data`` describes.

    Raises
    ------
    KeyError, TypeError, ValueError
        It describes none; a platform's loader words the message.
    """
    name = data["estimator"]
    if name not in ESTIMATORS:
        raise ValueError(f"unknown estimator {name!r}; there are {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name].from_json(data)
