"""Estimators: each predicts one quantity of one family of layers from its columns.

Each loads on first use: a platform is read with the few that it names.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pytest_neuralpower.estimators.base import Estimator
    from pytest_neuralpower.estimators.boosted import Boosted
    from pytest_neuralpower.estimators.neuralpower import NeuralPower, NeuralPowerRelative
    from pytest_neuralpower.estimators.physical import Physical
    from pytest_neuralpower.estimators.tree import Tree
    from pytest_neuralpower.estimators.utilization import PerEnergy, Saturating, Shares

__all__ = [
    "ESTIMATORS",
    "Boosted",
    "Estimator",
    "NeuralPower",
    "NeuralPowerRelative",
    "PerEnergy",
    "Physical",
    "Saturating",
    "Shares",
    "Tree",
    "from_json",
]

#: Module and class of every estimator, by the name it carries in platform files.
ESTIMATORS: Final = {
    "boosted": ("boosted", "Boosted"),
    "neuralpower": ("neuralpower", "NeuralPower"),
    "neuralpower-relative": ("neuralpower", "NeuralPowerRelative"),
    "per-energy": ("utilization", "PerEnergy"),
    "physical": ("physical", "Physical"),
    "saturating": ("utilization", "Saturating"),
    "shares": ("utilization", "Shares"),
    "tree": ("tree", "Tree"),
}

_HOMES: Final = {"Estimator": "base", **{name: home for home, name in ESTIMATORS.values()}}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


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
    estimator: Estimator = __getattr__(ESTIMATORS[name][1]).from_json(data)
    return estimator
