"""Is each field of a recipe what it must be? Checked before minutes are spent on a fit."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from pytest_neuralpower.calibrate.designs import runtime_makers
from pytest_neuralpower.errors import ProfileError
from pytest_neuralpower.features import FAMILIES

__all__ = ["check_recipe"]

#: Estimators that can compete for a runtime: convolutions have them all.
CANDIDATES: Final = tuple(runtime_makers("conv", {}, {}))

#: How a quantity can be known.
TIERS: Final = ("measured", "public", "transferred", "datasheet", "estimated")

_QUANTITIES: Final = ("runtime", "power")
_CEILINGS: Final = ("peak_gflops", "bandwidth_gbs")
_REQUIRED: Final = ("name", "device", "mode")
_TEXTS: Final = (*_REQUIRED, "dtype", "networks", "totals")
_MAPPINGS: Final = ("tiers", "designs", "surcharges", "power", "plan")
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
    for family in data.get("surcharges") or ():
        _one_of(path, "surcharges", family, FAMILIES)


def _check_types(path: Path, data: Mapping[str, Any]) -> None:
    """Texts, mappings and lists; those that need not be there may be empty."""
    for field in _TEXTS:
        if field in _REQUIRED or data.get(field) is not None:
            _check_text(path, field, data[field])
    kinds = ((_MAPPINGS, dict, "a mapping (key: value)"), (_LISTS, list, "a list (- value)"))
    for fields, kind, allowed in kinds:
        for field in fields:
            if data.get(field) is not None and not isinstance(data[field], kind):
                _refuse(path, field, data[field], allowed)
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
