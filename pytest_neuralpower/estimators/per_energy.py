"""Power as energy over time, where energy is what was learnt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from pytest_neuralpower.estimators.base import Estimator

if TYPE_CHECKING:
    from pytest_neuralpower.features import Columns, FloatArray


class PerEnergy(Estimator):
    """``power = energy / runtime``, within the range of power that was measured.

    Energy grows with what a layer does as its runtime does, so it can be learnt in the same way;
    errors of power and of runtime then do not add up. The range keeps a layer that is far from
    the calibration from drawing more than anything measured, or nothing. Its columns need
    ``runtime_ms`` beside the layers' own.

    Parameters
    ----------
    energy
        Estimator of the energy in mJ.

    Attributes
    ----------
    low_, high_
        Least and largest measured power, W.
    """

    name: ClassVar[str] = "per-energy"

    def __init__(self, energy: Estimator) -> None:
        self.energy = energy
        self.low_ = 0.0
        self.high_ = float("inf")

    def _fit(self, columns: Columns, target: FloatArray) -> None:
        self.energy.fit(columns, target * columns["runtime_ms"])
        self.within(target)

    def within(self, power_w: FloatArray) -> Self:
        """Take the range of these measured powers."""
        self.low_, self.high_ = float(np.min(power_w)), float(np.max(power_w))
        return self

    def predict(self, columns: Columns) -> FloatArray:
        power = self.energy.predict(columns) / columns["runtime_ms"]
        return np.asarray(np.clip(power, self.low_, self.high_))

    def to_json(self) -> dict[str, Any]:
        return {
            "estimator": self.name,
            "range_w": [self.low_, self.high_],
            "energy": self.energy.to_json(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        from pytest_neuralpower.estimators import from_json  # noqa: PLC0415 - it loads this module

        estimator = cls(from_json(data["energy"]))
        low, high = data["range_w"]
        estimator.low_, estimator.high_ = float(low), float(high)
        return estimator
