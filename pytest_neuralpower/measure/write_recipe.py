"""The recipe of a calibration: what was measured, how, and how to fit it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from pytest_neuralpower.errors import ProfileError

if TYPE_CHECKING:
    from pytest_neuralpower.measure.options import CalibrationOptions
    from pytest_neuralpower.measure.plan import Plan
    from pytest_neuralpower.measure.preflight import Place

__all__ = ["write_recipe"]


#: Boosting on the residual of rows timed in place helps layers and hurts whole networks.
_CANDIDATES: Final = ("physical", "neuralpower", "neuralpower-relative", "tree")
#: The paper's Lasso takes as long to fit as all others, and is there to compare with.
_QUICK_CANDIDATES: Final = ("physical", "neuralpower-relative", "tree")


def write_recipe(
    options: CalibrationOptions, place: Place, facts: Mapping[str, str], plan: Plan
) -> None:
    """Write ``recipe.yaml`` of a new calibration; one that is there stays as it is."""
    content = recipe_content(options, place, facts, plan)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=96)
    path = options.directory / "recipe.yaml"
    if path.exists():
        return
    partial = path.with_suffix(".part")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ProfileError(f"recipe {path}: it cannot be written ({error})") from None


def recipe_content(
    options: CalibrationOptions, place: Place, facts: Mapping[str, str], plan: Plan
) -> dict[str, Any]:
    """The recipe in YAML's types."""
    bench, source = place.bench, place.meter.source
    tiers = {"runtime": "measured"}
    if source is not None:
        tiers["power"] = source
    clock = "thread time of one thread" if not bench.is_cuda else "CUDA events"
    content: dict[str, Any] = {
        "name": options.name,
        "device": facts["device"],
        "dtype": bench.dtype,
        "mode": f"PyTorch {facts['torch']} {bench.mode}, inference mode, layers timed in place "
        f"inside random networks, {clock}{'' if bench.is_cuda else ', freed memory kept'}",
        "tiers": tiers,
        "hardware": {key: float(value) for key, value in bench.hardware.items()},
        "sources": [
            {
                "title": f"rows measured by `neuralpower calibrate {options.name}`",
                "profile": Path(options.profile.name).name,
            }
        ],
        "candidates": list(_QUICK_CANDIDATES if options.preset == "quick" else _CANDIDATES),
        "totals": "in place",
        "plan": dict(plan.recipe),
    }
    if source == "estimated":
        content["power"] = {"watts": options.watts}
    if "power_limit_w" in facts:
        content["hardware"]["limit_w"] = float(facts["power_limit_w"])
    return content
