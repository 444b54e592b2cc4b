"""Power as the user gave it: one wattage for whatever runs, so that energy is an estimate."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_neuralpower.errors import ProfileError
from pytest_neuralpower.estimators import Shares

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.recipe import Recipe
    from pytest_neuralpower.platform import Platform


def constant_power(platform: Platform, recipe: Recipe) -> Platform:
    """The platform where every layer draws the recipe's ``power: {watts: W}``.

    Raises
    ------
    ProfileError
        The recipe does not call it ``tiers: {power: estimated}``, or it is no positive number.
    """
    watts = recipe.power["watts"]
    if recipe.tiers.get("power") != "estimated":
        raise ProfileError(
            f"recipe of {recipe.name}: power of {watts!r} W was not measured; write "
            "tiers: {power: estimated}"
        )
    if isinstance(watts, bool) or not isinstance(watts, int | float) or watts <= 0:
        raise ProfileError(f"recipe of {recipe.name}: power watts {watts!r} must be above 0")
    model = Shares(
        peak_gflops=float(recipe.hardware["peak_gflops"]),
        bandwidth_gbs=float(recipe.hardware["bandwidth_gbs"]),
        fixed={"base_w": float(watts), "compute_w": 0.0, "bandwidth_w": 0.0},
    )
    model.watts_ = dict(model.fixed)
    return replace(platform, power=model)
