"""The platform file: JSON that is data and never code, checked before anything is used of it."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Final

from pytest_neuralpower.errors import PlatformError
from pytest_neuralpower.estimators import from_json
from pytest_neuralpower.estimators.terms import is_term
from pytest_neuralpower.files import write_atomically
from pytest_neuralpower.platform.intervals import Intervals
from pytest_neuralpower.platform.ranges import is_range

FORMAT: Final = "pytest-neuralpower platform"
VERSION: Final = 1

#: Quantities that a family may have an estimator of.
FAMILY_QUANTITIES: Final = ("runtime", "power")

#: Every field and its type; all are required but ``intervals``, which not every platform knows.
_FIELDS: Final[dict[str, type | tuple[type, ...]]] = {
    "name": str,
    "device": str,
    "dtype": str,
    "mode": str,
    "tiers": dict,
    "hardware": dict,
    "fallback": dict,
    "families": dict,
    "power": (dict, type(None)),
    "intervals": dict,
    "provenance": dict,
    "accuracy": dict,
}
_FALLBACK: Final = ("bandwidth_gbs", "gflops", "floor_ms")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a platform file, unchecked but for its numbers, which are finite.

    Raises
    ------
    PlatformError
        The file is absent, cannot be read, or holds no JSON object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise _error(path, "there is no such file", "check the path") from None
    except IsADirectoryError:
        raise _error(path, "it is a directory", "give a platform file (.json)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _error(path, f"it cannot be read ({error})", "check the file") from None
    try:
        data = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}: {error.msg}"
        raise _error(path, f"not JSON, or truncated ({where})", "restore or refit it") from None
    except RecursionError:
        raise _error(path, "not JSON, or truncated (nested)", "restore or refit it") from None
    except ValueError as error:
        raise _error(path, str(error), "refit it") from None
    if not isinstance(data, dict):
        raise _error(path, f"not a platform (its format is not {FORMAT!r})", "refit it")
    return data


def _refuse_constant(text: str) -> float:
    """Python's JSON has NaN and Infinity; a platform's does not."""
    raise ValueError(f"{text} is not a finite number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse_constant(text)  # 1e999


def read(path: Path, data: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Check the object of a fitted platform's file (:func:`read_json`).

    Returns
    -------
    content, sha256
        The fields, with estimators as objects; the hash, which matches them.

    Raises
    ------
    PlatformError
        It is no platform, of a later version, edited by hand, or has a field of a wrong type.
    """
    if data.get("format") != FORMAT:
        raise _error(path, f"not a platform (its format is not {FORMAT!r})", "refit it")
    _check_version(path, data)
    claimed = data.pop("sha256", None)
    if claimed != content_hash(data):
        raise _error(
            path,
            "its content does not match its sha256: it was edited by hand or damaged",
            "restore it, or change the recipe and refit it",
        )
    return _content(path, data), claimed


def write(path: Path, content: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Write a platform file atomically; return what :func:`read` would.

    Raises
    ------
    PlatformError
        The content is not a valid platform, or the file cannot be written.
    """
    try:
        text = json.dumps({"format": FORMAT, "version": VERSION, **content}, allow_nan=False)
    except ValueError:
        raise _error(path, "some value is not a finite number", "refit it") from None
    data = json.loads(text)
    checked = _content(path, dict(data))
    sha256 = content_hash(data)
    text = json.dumps({**data, "sha256": sha256}, indent=1, ensure_ascii=False) + "\n"
    try:
        write_atomically(path, text)
    except OSError as error:
        raise _error(path, f"it cannot be written ({error})", "check the folder") from None
    return checked, sha256


def content_hash(data: dict[str, Any]) -> str:
    """sha256 of the fields in canonical JSON (sorted keys, no spaces), without the hash itself."""
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _error(path: Path, what: str, remedy: str) -> PlatformError:
    return PlatformError(f"platform file {path}: {what}; {remedy}")


def _check_version(path: Path, data: dict[str, Any]) -> None:
    version = data.get("version")
    if type(version) is not int or version < 1:
        raise _error(path, f"version {version!r} is not a positive whole number", "refit it")
    if version > VERSION:
        raise _error(
            path,
            f"version {version}, this release reads up to {VERSION}",
            "upgrade pytest-neuralpower",
        )


def _content(path: Path, data: dict[str, Any]) -> dict[str, Any]:
    """The fields alone, checked, with estimators as objects."""
    content = {key: data[key] for key in data if key not in ("format", "version")}
    for key, kind in _FIELDS.items():
        if key not in content:
            if key == "intervals":
                continue
            raise _error(path, f"field {key!r} is missing", "refit it")
        if not isinstance(content[key], kind):
            wanted = "an object or null" if key == "power" else _JSON_NAMES[kind]  # type: ignore[index]
            raise _error(path, f"field {key!r} must be {wanted}", "refit it")
    unknown = sorted(set(content) - set(_FIELDS))
    if unknown:
        raise _error(path, f"unknown field {unknown[0]!r}", "refit it")
    _check_numbers(path, content["fallback"], content["hardware"])
    content["families"] = {
        name: _family(path, name, each) for name, each in content["families"].items()
    }
    if content["power"] is not None:
        content["power"] = _estimator(path, "power", content["power"])
    if "intervals" in content:
        content["intervals"] = _intervals(path, content["intervals"])
    return content


def _check_numbers(path: Path, fallback: dict[str, Any], hardware: dict[str, Any]) -> None:
    for key in _FALLBACK:
        value: Any = fallback.get(key)
        if not _is_number(value) or not math.isfinite(value) or value <= 0:
            raise _error(path, f"fallback {key} must be a positive number, not {value!r}", "refit")
    extra = sorted(set(fallback) - set(_FALLBACK))
    if extra:
        raise _error(path, f"unknown field {extra[0]!r} of fallback", "refit it")
    for key, value in hardware.items():
        if not _is_cost(value):
            raise _error(path, f"hardware {key} must be a number from 0, not {value!r}", "refit it")


_JSON_NAMES: Final = {str: "a string", dict: "an object"}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_cost(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _family(path: Path, name: str, data: Any) -> dict[str, Any]:
    if not isinstance(data, dict) or not isinstance(data.get("ranges"), dict):
        raise _error(path, f"family {name!r} must be an object with ranges", "refit it")
    for column, ends in data["ranges"].items():
        if not is_range(column):
            raise _error(path, f"range {column!r} of family {name!r} names no sizes", "refit it")
        if not (isinstance(ends, list) and len(ends) == 2 and all(map(_is_number, ends))):
            raise _error(path, f"range {column!r} of family {name!r} must be two numbers", "refit")
        if ends[0] > ends[1]:
            raise _error(path, f"range {column!r} of family {name!r} ends below its start", "refit")
    surcharges = data.get("surcharges")
    if not isinstance(surcharges, dict) or not all(map(_is_cost, surcharges.values())):
        raise _error(
            path, f"surcharges of family {name!r} must be numbers from 0 by term", "refit it"
        )
    for term in surcharges:
        if not is_term(term):
            raise _error(path, f"unknown surcharge {term!r} of family {name!r}", "refit it")
    unknown = sorted(set(data) - {"ranges", "surcharges", *FAMILY_QUANTITIES})
    if unknown:
        raise _error(path, f"unknown field {unknown[0]!r} of family {name!r}", "refit it")
    return {
        "ranges": data["ranges"],
        "surcharges": surcharges,
        **{
            quantity: _estimator(path, f"{quantity} of family {name!r}", data[quantity])
            for quantity in FAMILY_QUANTITIES
            if quantity in data
        },
    }


def _intervals(path: Path, data: Any) -> Intervals:
    try:
        return Intervals.from_json(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise _error(path, f"field 'intervals' is invalid ({reason})", "refit it") from None


def _estimator(path: Path, where: str, data: Any) -> Any:
    try:
        return from_json(data)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise _error(path, f"the estimator of {where} is invalid ({reason})", "refit it") from None
