"""Baseline files: YAML with one line a layer, so that a small change is a small diff.

The lines are JSON too, and are read as such: PyYAML alone takes hundreds of times as long.
A file that a formatter has laid out anew is read as the YAML it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pytest_neuralpower.errors import BaselineError
from pytest_neuralpower.files import write_atomically
from pytest_neuralpower.regression.baseline import Baseline
from pytest_neuralpower.regression.layer_record import (
    PricedLayer,
    flow,
    layer_texts,
    priced_layer,
    rounded,
)

__all__ = ["FORMAT", "baseline_text", "parse_baseline", "read_baseline", "write_baseline"]

FORMAT: Final = "pytest-neuralpower baseline"
VERSION: Final = 1

_FIELDS: Final[Mapping[str, type]] = {
    "test": str,
    "model": str,
    "batch": int,
    "platform": str,
    "platform_sha256": str,
    "torch": str,
}
_ALLOWED: Final = ("format", "version", *_FIELDS, "totals", "layers")
_TOTALS: Final = ("energy_mj", "runtime_ms", "power_w")
_START: Final = "\nlayers:\n"


def baseline_text(baseline: Baseline) -> str:
    """The file's content."""
    totals = {name: rounded(value) for name, value in baseline.totals._asdict().items()}
    lines = [
        "# Written by pytest --np-update-baseline; review changes, do not edit.",
        f"format: {FORMAT}",
        f"version: {VERSION}",
        *(f"{name}: {flow(getattr(baseline, name))}" for name in _FIELDS),
        f"totals: {flow(totals)}",
    ]
    return "\n".join(lines) + _START + _body(baseline)


def _body(baseline: Baseline) -> str:
    return "".join([f"- {each}\n" for each in layer_texts(baseline.layers)])


def write_baseline(path: Path, text: str) -> bool:
    """Write :func:`baseline_text`; False where the file has that text already.

    Raises
    ------
    BaselineError
        The file cannot be written.
    """
    try:
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            return False
        write_atomically(path, text)
    except (OSError, UnicodeDecodeError) as error:
        raise BaselineError(
            f"baseline {path} cannot be written ({_reason(error)}): make the folder writable, or "
            "choose another with --np-baselines=DIR"
        ) from None
    return True


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def read_baseline(path: Path, expected: Baseline | None = None) -> Baseline:
    """Read and check a baseline file; ``expected`` as :func:`parse_baseline` takes it.

    Raises
    ------
    BaselineError
        With one line: the file cannot be read, or :func:`parse_baseline` says why.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BaselineError(f"baseline {path} cannot be read ({_reason(error)})") from None
    return parse_baseline(text, str(path), expected)


def parse_baseline(text: str, name: str, expected: Baseline | None = None) -> Baseline:
    """The baseline of a file's text.

    Parameters
    ----------
    name
        Where it came from, for messages.
    expected
        What the file probably says: layers that it writes alike need not be read.

    Raises
    ------
    BaselineError
        It is not YAML, no baseline, of a later version, or has a field that is missing, unknown or
        wrong; the line where that is known.
    """
    head, found, body = text.partition(_START)
    data, first = (_header(head + "\n", name), head.count("\n") + 3) if found else ({}, 0)
    layers = expected.layers if expected and body == _body(expected) else None
    if layers is None:
        records = _json_lines(body) if found else None
        if records is None:
            data, first = _header(text, name), 0
            records = data.get("layers")
        _check(data, name)
        layers = tuple(_layers(records, name, first))
    else:
        _check(data, name)
    baseline = Baseline(**{key: data[key] for key in _FIELDS}, layers=layers)
    _check_totals(data["totals"], baseline, name)
    return baseline


def _json_lines(body: str) -> list[Any] | None:
    """The layers, where each is one line of JSON; None where they are written otherwise."""
    lines = body.removesuffix("\n").split("\n")
    if not all(line.startswith("- {") for line in lines):
        return None
    try:
        found: list[Any] = json.loads("[" + ",".join([line[2:] for line in lines]) + "]")
    except json.JSONDecodeError:
        return None
    return found if len(found) == len(lines) else None


def _header(text: str, name: str) -> dict[str, Any]:
    data = _plain_header(text)
    if data is None:
        data = _yaml(text, name)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise _error(name, f"not a baseline (its format is not {FORMAT!r})")
    return data


def _plain_header(text: str) -> dict[str, Any] | None:
    """The fields, where each is a line of its own in JSON, the format alone without quotes."""
    data = {}
    for line in text.splitlines():
        key, separator, value = line.partition(": ")
        if line.startswith("#"):
            continue
        if not separator or not key.isidentifier() or key in data:
            return None
        try:
            data[key] = value if key == "format" else json.loads(value)
        except json.JSONDecodeError:
            return None
    return data


def _yaml(text: str, name: str) -> Any:
    import yaml  # noqa: PLC0415 - only once a baseline is read

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise _error(f"{name}{where}", f"not YAML ({problem})") from None


def _check(data: Mapping[str, Any], name: str) -> None:
    version = data.get("version")
    if type(version) is not int or version < 1:
        raise _error(name, f"version {version!r} is not a positive whole number")
    if version > VERSION:
        raise BaselineError(
            f"baseline {name}: version {version}, this release reads up to {VERSION}: upgrade "
            "pytest-neuralpower"
        )
    for key in data:
        if key not in _ALLOWED:
            raise _error(name, f"unknown key {key!r}; allowed: {', '.join(_ALLOWED)}")
    for key, kind in _FIELDS.items():
        if type(data.get(key)) is not kind:
            raise _error(name, f"{key} must be a {_KIND_NAMES[kind]}, not {data.get(key)!r}")
    totals = data.get("totals")
    if not isinstance(totals, dict) or sorted(totals) != sorted(_TOTALS):
        raise _error(name, f"totals must have {', '.join(_TOTALS)}, not {totals!r}")


_KIND_NAMES: Final = {str: "string", int: "whole number"}


def _layers(data: Any, name: str, first: int) -> list[PricedLayer]:
    if not isinstance(data, list) or not data:
        raise _error(name, "it has no layers")
    found = []
    for index, each in enumerate(data):
        try:
            found.append(priced_layer(each))
        except ValueError as error:
            where = f"{name}:{first + index}" if first else f"{name}, layer {index + 1}"
            raise _error(where, str(error)) from None
    return found


def _check_totals(totals: Mapping[str, Any], baseline: Baseline, name: str) -> None:
    """A merge that takes layers of one version and totals of another is no baseline of either."""
    for key, value in baseline.totals._asdict().items():
        stored = totals[key]
        if (stored is None) != (value is None) or (
            value is not None and not abs(stored - value) <= 1e-4 * abs(value)
        ):
            raise _error(name, f"{key} of its totals ({stored!r}) is not that of its layers")


def _error(where: str, what: str) -> BaselineError:
    return BaselineError(
        f"baseline {where}: {what}: restore the file, or write it again with --np-update-baseline"
    )
