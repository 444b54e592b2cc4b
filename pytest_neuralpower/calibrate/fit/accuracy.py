"""Accuracy of a platform, refitted: of energy as shipped, the paper's way, and of the baselines.

A platform file holds the errors of what was fitted: runtime, and power or energy. People pay for
energy, so `neuralpower accuracy` shows all of them by the energy that they lead to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from msgspec.structs import replace

from pytest_neuralpower.calibrate.fit.fit import fit_recipe
from pytest_neuralpower.calibrate.fit.judging import Scores, baseline_scores
from pytest_neuralpower.calibrate.fit.power import load_networks
from pytest_neuralpower.calibrate.fit.recipe import Source, read_recipe
from pytest_neuralpower.errors import ProfileError
from pytest_neuralpower.estimators.selection import Score
from pytest_neuralpower.platform.catalog import list_platforms
from pytest_neuralpower.report.charts import Point

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.fit.uncertainty import FamilyFit, Fitted
    from pytest_neuralpower.estimators.features import FloatArray
    from pytest_neuralpower.layers import Layer


class EnergyAccuracy(msgspec.Struct, frozen=True):
    """Held-out errors of one family's energy by candidate, and those of the baselines."""

    rows: int
    groups: int
    chosen: str
    held_out: Mapping[str, Score]
    baselines: Scores


def _energy_accuracy(fit: FamilyFit, hardware: Mapping[str, float]) -> EnergyAccuracy:
    fit = fit.metered()
    measured = np.array([row.power_w for row in fit.rows], dtype=np.float64) * fit.runtime_ms
    chosen, predicted = _predicted(fit)
    return EnergyAccuracy(
        fit.runtime.rows,
        fit.runtime.groups,
        chosen,
        {name: Score.of(energy, measured) for name, energy in predicted.items()},
        baseline_scores(fit.columns, measured, fit.runtime.fold, hardware),
    )


def _predicted(fit: FamilyFit) -> tuple[str, dict[str, FloatArray]]:
    """The candidate that ships, and held-out energies (mJ) by candidate."""
    if fit.energy is not None:
        return fit.energy.estimator.label, fit.energy.predicted
    assert fit.power is not None  # the caller has looked
    both = {
        name: power * fit.runtime.predicted[name]
        for name, power in fit.power.predicted.items()
        if name in fit.runtime.predicted
    }
    chosen = fit.power.estimator.label
    if chosen != fit.runtime.estimator.label:
        chosen = f"{chosen} x {fit.runtime.estimator.label}"
    return chosen, {chosen: fit.power.held_out * fit.runtime.held_out, **both}


# -- Accuracy of a platform: its recipe refitted with held-out groups.

#: Where calibration folders are, in a checkout.
CALIBRATION: Final = Path("calibration")


def find_calibration(name: str) -> Path:
    """The calibration folder of a platform: a folder with a recipe, or its name here.

    Raises
    ------
    ProfileError
        There is none; one line says where it was looked for.
    """
    for folder in (Path(name), CALIBRATION / name):
        if (folder / "recipe.yaml").is_file():
            return folder
    if (Path(name) / "README.md").is_file() or (CALIBRATION / name / "README.md").is_file():
        raise ProfileError(
            f"{name} has no recipe: nothing of it was fitted, so nothing can be refitted"
        )
    shown = f"platforms {name}" if name in list_platforms() else "platforms"
    raise ProfileError(
        f"no recipe of {name!r}: neither {Path(name) / 'recipe.yaml'} nor "
        f"{CALIBRATION / name / 'recipe.yaml'} exists; give a folder that `neuralpower calibrate "
        f"NAME` wrote, or see what was measured when platforms were fitted: neuralpower {shown}"
    )


def measure(
    directory: Path,
    *,
    data_root: Path | None = None,
    profile: Path | None = None,
    networks: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Fitted:
    """Refit a platform with held-out groups.

    Parameters
    ----------
    directory
        Calibration folder, with its recipe.
    data_root
        Folder of the public tables, where the recipe reads any.
    profile
        Measured rows to fit and judge instead of the recipe's.
    networks
        Python file of whole measured networks to judge by instead of the recipe's.
    progress
        Told what is fitted next, in a few words.

    Raises
    ------
    ProfileError, FitError, MissingExtraError
        As :func:`~pytest_neuralpower.calibrate.fit.fit.fit_recipe`.
    """
    recipe = read_recipe(directory)
    if profile is not None:
        source = Source(profile=str(profile.resolve()), title=profile.name)
        recipe = replace(recipe, sources=(source,))
    if networks is not None:
        load_networks(networks)  # a mistake in it is told now, not after all is fitted
        recipe = replace(recipe, networks=str(networks.resolve()))
    return fit_recipe(recipe, data_root=data_root, progress=progress)


def accuracy_shown(fitted: Fitted) -> dict[str, Any]:
    """The platform's accuracy, and what its file does not hold: every candidate's and baseline's
    error of ``energy`` by family, where rows have power."""
    hardware = fitted.platform.hardware
    energy = {
        name: _energy_accuracy(fit, hardware)
        for name, fit in fitted.families.items()
        if fit.power is not None or fit.energy is not None
    }
    shown = {"energy": msgspec.to_builtins(energy)} if energy else {}
    return {**fitted.platform.accuracy, **shown}


def points(fitted: Fitted) -> Iterator[Point]:
    """Every held-out row, and every network, as measured and predicted runtime."""
    for name, fit in fitted.families.items():
        for row, predicted in zip(fit.rows, fit.runtime.held_out.tolist(), strict=True):
            yield Point(name, _layer_text(row.layer), row.runtime_ms, predicted)
    networks = fitted.platform.accuracy.get("networks") or {"networks": {}}
    for name, each in networks["networks"].items():
        yield Point("networks", name, each["measured_ms"], each["predicted_ms"])


def _layer_text(layer: Layer) -> str:
    tensors = (*layer.inputs[:1], *layer.weights[:1], *layer.outputs[:1])
    shapes = ("x".join(map(str, tensor.shape)) for tensor in tensors)
    return f"{layer.op} {', '.join(shapes)}"
