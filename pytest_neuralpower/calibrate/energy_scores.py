"""Held-out errors of energy, as shipped, the paper's way, and of the baselines.

A platform file holds the errors of what was fitted: runtime, and power or energy. People pay for
energy, so `neuralpower accuracy` shows all of them by the energy that they lead to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_neuralpower.errors import FitError
from pytest_neuralpower.estimators.baselines import baseline_makers
from pytest_neuralpower.estimators.selection import Score, held_out

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.uncertainty import FamilyFit
    from pytest_neuralpower.features import FloatArray


def energy_scores(
    fits: Mapping[str, FamilyFit], hardware: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Accuracy by family, as :meth:`Selection.accuracy` gives it, with ``baselines``.

    Parameters
    ----------
    fits
        By family; those without power are passed over.
    hardware
        The device's ceilings, for the roofline.
    """
    return {
        name: _scores(fit, hardware)
        for name, fit in fits.items()
        if fit.power is not None or fit.energy is not None
    }


def _scores(fit: FamilyFit, hardware: Mapping[str, float]) -> dict[str, Any]:
    power = np.array([row.power_w for row in fit.rows], dtype=np.float64)
    measured = power * fit.runtime_ms
    chosen, predicted = _predicted(fit)
    baselines: dict[str, Any] = {}
    for name, make in baseline_makers(hardware).items():
        try:  # both take what they predict to be one rate times the work, energy or time alike
            found = held_out(make, fit.columns, measured, fit.runtime.fold)
            baselines[name] = Score.of(found, measured).to_json()
        except FitError as error:
            baselines[name] = {"refused": str(error)}
    return {
        "rows": fit.runtime.rows,
        "groups": fit.runtime.groups,
        "chosen": chosen,
        "held_out": {name: Score.of(each, measured).to_json() for name, each in predicted.items()},
        "baselines": baselines,
    }


def _predicted(fit: FamilyFit) -> tuple[str, dict[str, FloatArray]]:
    """The candidate that ships, and held-out energies (mJ) by candidate."""
    if fit.energy is not None:
        return fit.energy.estimator.name, fit.energy.predicted
    assert fit.power is not None  # the caller has looked
    both = {
        name: power * fit.runtime.predicted[name]
        for name, power in fit.power.predicted.items()
        if name in fit.runtime.predicted
    }
    chosen = fit.power.estimator.name
    if chosen != fit.runtime.estimator.name:
        chosen = f"{chosen} x {fit.runtime.estimator.name}"
    return chosen, {chosen: fit.power.held_out * fit.runtime.held_out, **both}
