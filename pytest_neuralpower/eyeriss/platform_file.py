"""The file of an analytic platform: short JSON that people write, where all but ``format`` has a
default.

    {"format": "pytest-neuralpower eyeriss",
     "bits": {"input_map": 8, "weight": 8, "output_map": 16},
     "costs": "accelergy-40nm"}

``costs`` is the name of a known table or a table with every field of
:class:`~pytest_neuralpower.eyeriss.hardware.CostTable`, where one number prices all data types.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from pytest_neuralpower.errors import PlatformError
from pytest_neuralpower.eyeriss.hardware import (
    COST_TABLES,
    EYERISS_65NM,
    Bits,
    CostTable,
    Hardware,
    TypeCosts,
)
from pytest_neuralpower.eyeriss.platform import EyerissPlatform

__all__ = ["FORMAT", "parse_platform"]

FORMAT: Final = "pytest-neuralpower eyeriss"

_FIELDS: Final = ("format", "name", "hardware", "costs", "bits")
_LEVELS: Final = ("register_file", "array", "buffer", "dram")


def parse_platform(path: Path, data: Mapping[str, Any]) -> EyerissPlatform:
    """The platform that a file's content describes; its name defaults to the file's.

    Raises
    ------
    PlatformError
        A field is missing, unknown, or no positive number; one line names it.
    """
    try:
        _no_others(data, _FIELDS, "field")
        name = data.get("name", path.stem)
        if not isinstance(name, str) or not name:
            raise ValueError(f"name must be a string, not {name!r}")
        return EyerissPlatform(
            name,
            Hardware(**_sizes(data.get("hardware", {}), Hardware, "hardware")),
            _costs(data.get("costs", EYERISS_65NM.name)),
            Bits(**_sizes(data.get("bits", {}), Bits, "bits")),
        )
    except ValueError as error:
        raise PlatformError(f"platform file {path}: {error}; correct it") from None


def _sizes(data: Any, kind: type, where: str) -> dict[str, Any]:
    """Whole numbers from 1 by the names of a dataclass's fields (a boolean where it has one)."""
    defaults = {each.name: each.default for each in fields(kind)}
    found = _mapping(data, where)
    _no_others(found, tuple(defaults), where)
    for name, value in found.items():
        default = defaults[name]
        if type(default) is int and not (type(value) is int and value >= 1):
            raise ValueError(f"{where} {name} must be a whole number from 1, not {value!r}")
        if type(default) is float:
            _positive(value, f"{where} {name}")
        if type(default) is bool and type(value) is not bool:
            raise ValueError(f"{where} {name} must be true or false, not {value!r}")
    return found


def _costs(data: Any) -> CostTable:
    if isinstance(data, str):
        if data not in COST_TABLES:
            raise ValueError(f"unknown costs {data!r}; known: {', '.join(COST_TABLES)}")
        return COST_TABLES[data]
    names = tuple(each.name for each in fields(CostTable))
    found = _mapping(data, "costs")
    _no_others(found, names, "costs")
    missing = sorted(set(names) - {"mac"} - set(found))
    if missing:
        raise ValueError(f"costs need the field {missing[0]!r}")
    for name in ("name", "source"):
        if not isinstance(found[name], str) or not found[name]:
            raise ValueError(f"costs {name} must be a string, not {found[name]!r}")
    register_file, array, buffer, dram = (
        _level(found[level], f"costs {level}") for level in _LEVELS
    )
    return CostTable(
        found["name"],
        found["source"],
        register_file,
        array,
        buffer,
        dram,
        pj_per_mac=_positive(found["pj_per_mac"], "costs pj_per_mac"),
        mac=_positive(found.get("mac", 1.0), "costs mac"),
    )


def _level(data: Any, where: str) -> TypeCosts:
    """One number for all data types, or one each."""
    if not isinstance(data, dict):
        return TypeCosts.same(_positive(data, where))
    names = tuple(each.name for each in fields(TypeCosts))
    if sorted(data) != sorted(names):
        raise ValueError(f"{where} must be a number or have {', '.join(names)}, not {data!r}")
    return TypeCosts(**{name: _positive(data[name], f"{where} {name}") for name in names})


def _positive(value: Any, where: str) -> float:
    if type(value) not in (int, float) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"{where} must be a number above 0, not {value!r}")
    return float(value)


def _mapping(data: Any, where: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ValueError(f"{where} must be an object, not {data!r}")
    return data


def _no_others(data: Mapping[str, Any], allowed: tuple[str, ...], where: str) -> None:
    unknown = sorted(set(data) - set(allowed))
    if unknown:
        raise ValueError(f"unknown {where} {unknown[0]!r}; allowed: {', '.join(allowed)}")
