"""Profiles: measured layers of one device as a CSV file that people and programs can write.

The file starts with provenance lines, ``# key: value`` (device, date, library versions, how it
was measured), then a header, then one measured layer a line::

    # device: NVIDIA GeForce GTX 1080 Ti
    # dtype: float32
    kind,op,inputs,weights,outputs,params,runtime_ms,power_w
    conv,conv2d,8x64x56x56,128x64x3x3,8x128x56x56,padding=1x1;stride=1x1,0.913,212.5

``inputs``, ``weights`` and ``outputs`` are shapes separated by ``;``, each with ``:dtype`` where
it is not the profile's own. ``params`` are the layer's hyper-parameters (see
:class:`pytest_neuralpower.layers.Layer`), tuples as ``1x1``. ``op`` and ``params`` may be empty.
``runtime_ms`` is required; ``power_w`` (mean gross board power) or ``energy_mj`` is optional.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_neuralpower.calibrate.rows import Row
from pytest_neuralpower.errors import ProfileError
from pytest_neuralpower.layers import KINDS, Layer, ParamValue, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

REQUIRED: Final = ("kind", "inputs", "outputs", "runtime_ms")
OPTIONAL: Final = ("op", "weights", "params", "dtype", "power_w", "energy_mj")


@dataclass(frozen=True, slots=True)
class Profile:
    """Measured rows of one device and the provenance lines above them."""

    rows: tuple[Row, ...]
    provenance: Mapping[str, str]


def read_profile(path: Path) -> Profile:
    """Read a profile.

    Raises
    ------
    ProfileError
        The file or one of its lines cannot be used; one line names it and what it should be.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"profile {path}: it cannot be read ({error})") from None
    provenance: dict[str, str] = {}
    for line in lines:
        if not line.startswith("#"):
            break
        key, _, value = line.lstrip("# ").partition(":")
        provenance[key.strip()] = value.strip()
    reader = csv.DictReader(lines[len(provenance) :])
    names = reader.fieldnames or ()
    _check_header(path, names)
    dtype = provenance.get("dtype", "float32")
    rows = []
    for offset, record in enumerate(reader, start=len(provenance) + 2):
        try:
            rows.append(_row(record, dtype, offset))
        except (ValueError, TypeError, AttributeError) as error:
            raise ProfileError(f"profile {path}, line {offset}: {error}") from None
    if not rows:
        raise ProfileError(f"profile {path}: no measured rows; write one layer a line")
    return Profile(tuple(rows), provenance)


def _check_header(path: Path, names: Iterable[str]) -> None:
    names = list(names)
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise ProfileError(
            f"profile {path}: no column {missing[0]!r}; columns are {', '.join(REQUIRED)} and, "
            f"if known, {', '.join(OPTIONAL)}"
        )
    unknown = [name for name in names if name not in REQUIRED + OPTIONAL]
    if unknown:
        raise ProfileError(
            f"profile {path}: unknown column {unknown[0]!r}; columns are "
            f"{', '.join(REQUIRED + OPTIONAL)}"
        )


def _row(record: Mapping[str, str], dtype: str, line: int) -> Row:
    kind = record["kind"]
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
    dtype = record.get("dtype") or dtype
    layer = Layer(
        kind,
        record.get("op") or kind,
        "",
        _tensors(record["inputs"], dtype),
        _tensors(record.get("weights") or "", dtype),
        _tensors(record["outputs"], dtype),
        dtype,
        _params(record.get("params") or ""),
    )
    runtime = _number(record, "runtime_ms")
    power = _number(record, "power_w") if record.get("power_w") else None
    if power is None and record.get("energy_mj"):
        power = _number(record, "energy_mj") / runtime
    return Row(layer, runtime, power, line)


def _number(record: Mapping[str, str], column: str) -> float:
    try:
        value = float(record[column])
    except ValueError:
        raise ValueError(f"{column} {record[column]!r} is not a number") from None
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{column} {record[column]!r} must be positive: measure it again")
    return value


def _tensors(text: str, dtype: str) -> tuple[TensorSpec, ...]:
    found = []
    for part in filter(None, text.split(";")):
        shape, _, own = part.partition(":")
        found.append(TensorSpec(_sizes(shape), own or dtype))
    return tuple(found)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split("x"))
    except ValueError:
        raise ValueError(f"{text!r} is not a shape such as 8x64x56x56") from None


def _params(text: str) -> tuple[tuple[str, ParamValue], ...]:
    found: dict[str, ParamValue] = {}
    for part in filter(None, text.split(";")):
        name, separator, value = part.partition("=")
        if not separator:
            raise ValueError(f"parameter {part!r} is not name=value")
        found[name] = _value(value)
    return tuple(sorted(found.items()))


def _value(text: str) -> ParamValue:
    if text in ("true", "false"):
        return text == "true"
    parts = text.split("x")
    if all(part.lstrip("-").isdigit() for part in parts):
        sizes = tuple(int(part) for part in parts)
        return sizes if len(sizes) > 1 else sizes[0]
    try:
        return float(text)
    except ValueError:
        return text
