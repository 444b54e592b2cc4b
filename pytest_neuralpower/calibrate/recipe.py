"""Recipes: how a platform is made of measured rows. YAML, one a platform in ``calibration/``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from pytest_neuralpower.calibrate.recipe_checks import check_recipe
from pytest_neuralpower.errors import ProfileError

_REQUIRED: Final = ("name", "device", "mode", "hardware")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to fit from which rows.

    Attributes
    ----------
    name, device, dtype, mode, tiers
        As in :class:`~pytest_neuralpower.platform.Platform`.
    hardware
        ``peak_gflops`` and ``bandwidth_gbs`` are required; ``multiprocessors`` (1) and
        ``limit_w`` are used where given.
    sources
        ``reader``, ``path`` (relative to the public tables) and the reader's options; or
        ``profile`` (relative to the recipe). ``title``, ``license``, ``url``, ``note`` are
        copied to the platform's provenance.
    designs
        Candidates by family, where they differ from the defaults of
        :mod:`pytest_neuralpower.calibrate.designs`.
    candidates
        Of the families whose design names none; empty for all.
    surcharges
        By family, the terms of traffic (MB) that the execution mode adds to the measured
        kernels; priced at the bandwidth that streaming layers reached.
    power
        How power is known: ``networks``, ``from``, ``transfer`` or, as the user gave it,
        ``watts``; empty for rows with power, or none.
    networks
        File and name of whole measured networks to judge the platform by.
    totals
        What tells how far a call is from the sum of its layers: ``networks`` (the default where
        there are any; they must have run in this mode), or how the rows were timed: ``alone``
        (the other default) or ``in place``, inside networks.
    plan
        What ``neuralpower calibrate`` measured: arguments of
        :func:`pytest_neuralpower.measure.plan.make_plan`.
    notes
        Sentences for the card: what a reader must know before trusting the platform.
    """

    name: str
    device: str
    mode: str
    hardware: Mapping[str, float]
    dtype: str = "float32"
    tiers: Mapping[str, str] = field(default_factory=dict)
    sources: tuple[Mapping[str, Any], ...] = ()
    designs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    candidates: tuple[str, ...] = ()
    surcharges: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    power: Mapping[str, Any] = field(default_factory=dict)
    networks: str = ""
    totals: str = ""
    plan: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    folder: Path = Path()


def read_recipe(directory: Path) -> Recipe:
    """The recipe of a calibration folder.

    Raises
    ------
    ProfileError
        There is none, or it is not a recipe.
    """
    if directory.is_file():
        raise ProfileError(
            f"{directory} is a file: give the folder with recipe.yaml, {directory.parent}"
        )
    path = directory / "recipe.yaml"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ProfileError(
            f"{path}: there is no recipe; give the folder that `neuralpower calibrate NAME` wrote"
        ) from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ProfileError(f"recipe {path}: not readable YAML ({reason})") from None
    if not isinstance(data, dict):
        raise ProfileError(f"recipe {path}: not a mapping of {', '.join(_REQUIRED)}, ...")
    missing = [name for name in _REQUIRED if name not in data]
    if missing:
        raise ProfileError(f"recipe {path}: {missing[0]!r} is missing")
    unknown = sorted(set(data) - set(Recipe.__dataclass_fields__))
    if unknown:
        raise ProfileError(f"recipe {path}: unknown field {unknown[0]!r}")
    check_recipe(path, data)
    for name in ("sources", "notes", "candidates"):
        data[name] = tuple(data.get(name) or ())
    # A field that is there and empty is as one that is not.
    data = {name: value for name, value in data.items() if value is not None}
    return Recipe(**{**data, "folder": directory})
