"""Is each field of a recipe what it must be? Checked before minutes are spent on a fit."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

import yaml

from pytest_neuralpower.calibrate.fit.designs import runtime_makers
from pytest_neuralpower.errors import ProfileError
from pytest_neuralpower.estimators.features import FAMILIES

__all__ = [
    "check_recipe",
]


#: Estimators that can compete for a runtime: convolutions have them all.
CANDIDATES: Final = tuple(runtime_makers("conv", {}, {}))

#: How a quantity can be known.
TIERS: Final = ("measured", "public", "transferred", "datasheet", "estimated")

_QUANTITIES: Final = ("runtime", "power")
_CEILINGS: Final = ("peak_gflops", "bandwidth_gbs")
_REQUIRED: Final = ("name", "device", "mode")
_TEXTS: Final = (*_REQUIRED, "dtype", "networks", "totals")
_MAPPINGS: Final = ("tiers", "designs", "overheads", "power", "plan")
_LISTS: Final = ("sources", "candidates", "notes")


def check_recipe(path: Path, data: Mapping[str, Any]) -> None:
    """Check the fields of a recipe that are there.

    Raises
    ------
    ProfileError
        One line: the recipe, the field, its value, and what is allowed.
    """
    _check_types(path, data)
    if Path(data["name"]).name != data["name"]:
        _refuse(path, "name", data["name"], "a name without folders: files are named for it")
    _check_hardware(path, data["hardware"])
    for quantity, tier in (data.get("tiers") or {}).items():
        _one_of(path, "tiers", quantity, _QUANTITIES)
        _one_of(path, f"tiers: {quantity}", tier, TIERS)
    for number, source in enumerate(data.get("sources") or (), 1):
        _check_source(path, f"source {number}", source)
    _check_candidates(path, "candidates", data.get("candidates"))
    for family, design in (data.get("designs") or {}).items():
        _check_design(path, family, design)
    for family in data.get("overheads") or ():
        _one_of(path, "overheads", family, FAMILIES)


def _check_types(path: Path, data: Mapping[str, Any]) -> None:
    """Texts, mappings and lists; those that need not be there may be empty."""
    for name in _TEXTS:
        if name in _REQUIRED or data.get(name) is not None:
            _check_text(path, name, data[name])
    kinds = ((_MAPPINGS, dict, "a mapping (key: value)"), (_LISTS, list, "a list (- value)"))
    for fields, kind, allowed in kinds:
        for name in fields:
            if data.get(name) is not None and not isinstance(data[name], kind):
                _refuse(path, name, data[name], allowed)
    for note in data.get("notes") or ():
        _check_text(path, "notes", note)


def _check_text(path: Path, field: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        _refuse(path, field, value, "a text that is not empty")


def _check_design(path: Path, family: str, design: Any) -> None:
    _one_of(path, "designs", family, FAMILIES)
    if not isinstance(design, dict):
        _refuse(path, f"designs: {family}", design, "a mapping (regimes: ..., inputs: ...)")
    _check_candidates(path, f"designs: {family}: candidates", design.get("candidates"))


def _check_hardware(path: Path, hardware: Any) -> None:
    if not isinstance(hardware, dict) or not hardware:
        _refuse(path, "hardware", hardware, "a mapping with peak_gflops and bandwidth_gbs")
    for ceiling in _CEILINGS:
        if ceiling not in hardware:
            raise ProfileError(f"recipe {path}: hardware needs {ceiling!r}")
    for name, value in hardware.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and math.isfinite(value) and value > 0):
            _refuse(path, f"hardware: {name}", value, "a number above 0")


def _check_source(path: Path, field: str, source: Any) -> None:
    allowed = "a mapping with 'profile', or with 'reader' and 'path'"
    if not isinstance(source, dict) or not (
        "profile" in source or {"reader", "path"} <= source.keys()
    ):
        _refuse(path, field, source, allowed)
    for name in ("profile", "reader", "path"):
        if name in source:
            _check_text(path, f"{field}: {name}", source[name])


def _check_candidates(path: Path, field: str, names: Any) -> None:
    if names is not None and not isinstance(names, list):
        _refuse(path, field, names, f"a list of {', '.join(CANDIDATES)}")
    for name in names or ():
        _one_of(path, field, name, CANDIDATES)


def _one_of(path: Path, field: str, value: Any, allowed: Collection[str]) -> None:
    if not isinstance(value, str) or value not in allowed:
        _refuse(path, field, value, f"one of {', '.join(allowed)}")


def _refuse(path: Path, field: str, value: Any, allowed: str) -> NoReturn:
    shown = "empty" if value is None else repr(value)
    raise ProfileError(f"recipe {path}: {field}: {shown} must be {allowed}")


# -- Recipes: how a platform is made of measured rows. YAML, one a platform in ``calibration/``.

_REQUIRED_FIELDS: Final = ("name", "device", "mode", "hardware")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to fit from which rows.

    Attributes
    ----------
    name, device, dtype, mode, tiers
        As in :class:`~pytest_neuralpower.platform.price.Platform`.
    hardware
        ``peak_gflops`` and ``bandwidth_gbs`` are required; ``multiprocessors`` (1) and
        ``limit_w`` are used where given.
    sources
        ``reader``, ``path`` (relative to the public tables) and the reader's options; or
        ``profile`` (relative to the recipe). ``title``, ``license``, ``url``, ``note`` are
        copied to the platform's provenance.
    designs
        Candidates by family, where they differ from the defaults of
        :mod:`pytest_neuralpower.calibrate.fit.designs`.
    candidates
        Of the families whose design names none; empty for all.
    overheads
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
        :func:`pytest_neuralpower.calibrate.measure.plan.make_plan`.
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
    overheads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
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
        raise ProfileError(f"recipe {path}: not a mapping of {', '.join(_REQUIRED_FIELDS)}, ...")
    missing = [name for name in _REQUIRED_FIELDS if name not in data]
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
