"""Power of a family whose rows have it: learnt as power, or as energy, whichever errs less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pytest_neuralpower.calibrate.designs import energy_makers, power_makers
from pytest_neuralpower.estimators import Estimator, PerEnergy
from pytest_neuralpower.estimators.selection import Selection, select

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.rows import Row
    from pytest_neuralpower.features import Columns, FloatArray


class LayerPower(NamedTuple):
    """What was chosen: the estimator of power, and the selection that it came from."""

    estimator: Estimator
    power: Selection | None
    energy: Selection | None


def fit_layer_power(
    family: str,
    rows: Sequence[Row],
    values: Columns,
    runtime: Selection,
    *,
    design: Mapping[str, Any],
    hardware: Mapping[str, float],
) -> LayerPower | None:
    """Power of one family, None where any of its rows has none.

    Candidates compete twice, as estimators of power and as estimators of energy; the winners are
    compared by their held-out energy, which for the former is predicted power times predicted
    runtime, as in use. A design whose ``learn`` is ``energy`` has the latter alone: where energies
    are noisy, the least relative error of power comes with sums that are too low.

    Raises
    ------
    FitError
        Bad rows, too few shapes, or no candidate could be fitted.
    """
    if any(row.power_w is None for row in rows):
        return None
    time = np.array([row.runtime_ms for row in rows])
    power = np.array([row.power_w for row in rows], dtype=np.float64)
    groups, lines = [row.shape_group for row in rows], [row.line for row in rows]
    allowed = design.get("candidates")
    makers = {
        name: make
        for name, make in energy_makers(family, design, hardware).items()
        if not allowed or name in allowed
    }
    as_energy = select(makers, values, power * time, groups, lines=lines)
    if design.get("learn") == "energy":
        return LayerPower(PerEnergy(as_energy.estimator).within(power), None, as_energy)
    makers = {
        name: make
        for name, make in power_makers(family, hardware).items()
        if not allowed or name in (*allowed, "shares")
    }
    as_power = select(makers, {**values, "runtime_ms": time}, power, groups, lines=lines)
    off_power = _mape(as_power.held_out * runtime.held_out, power * time)
    if _mape(as_energy.held_out, power * time) < off_power:
        estimator = PerEnergy(as_energy.estimator).within(power)
        return LayerPower(estimator, None, as_energy)
    return LayerPower(as_power.estimator, as_power, None)


def _mape(predicted: FloatArray, measured: FloatArray) -> float:
    return float(np.abs(predicted / measured - 1.0).mean())
