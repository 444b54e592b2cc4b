"""The platform file: JSON that is data and never code, with a version and a hash of its content."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pytest_neuralpower.errors import PlatformError
from pytest_neuralpower.files import decode, read_text, write_atomically

FORMAT: Final = "pytest-neuralpower platform"
VERSION: Final = 3

#: How a broken file is made good, as errors say it.
REFIT: Final = "refit it"


#: What a platform may be called: files, folders of baselines, options and reports have its name.
_NAME: Final = re.compile(r"\w[\w .+@=,()-]{0,99}")


def check_name(name: str) -> None:
    """Raise ValueError where a platform cannot be called so: its name is part of paths."""
    if name in ("", ".", "..") or set("/\\") & set(name):
        raise ValueError(f"name {name!r} must be a file's name, without / and \\")
    if not name.isprintable():
        raise ValueError(f"name {name!r} must be printable")
    if not _NAME.fullmatch(name) or name[-1] in ". ":
        raise ValueError(
            f"name {name!r} must begin with a letter or digit, of which it may have 100 with "
            "blanks and . _ - + @ = , ( ) between them"
        )


def check_texts(path: Path, data: object) -> None:
    """Raise a PlatformError where any text of a file is not printable: all of it is shown."""
    left = [data]
    while left:
        value = left.pop()
        if isinstance(value, str) and not value.isprintable():
            raise PlatformError(f"{of_file(path)}: a text is not printable: {value!r}; {REFIT}")
        if isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list):
            left += value


def of_file(path: Path) -> str:
    """What errors of a platform file begin with."""
    return f"platform file {path}"


def read_json(path: Path) -> dict[str, object]:
    """The object in a platform file, unchecked but for its numbers, which are finite.

    Raises
    ------
    PlatformError
        The file is absent, cannot be read, or holds no JSON object.
    """
    file = of_file(path)
    text = read_text(path, file=file, error=PlatformError)
    data: Any = decode(Any, text, file=file, error=PlatformError, renew="restore or refit it")
    if not isinstance(data, dict):
        raise PlatformError(f"{file}: not a platform (its format is not {FORMAT!r}); {REFIT}")
    return data


def checked(path: Path, data: dict[str, object]) -> tuple[dict[str, object], str]:
    """Check the envelope of a fitted platform's file (:func:`read_json`).

    Returns
    -------
    content, sha256
        The platform's own fields; the hash, which matches them.

    Raises
    ------
    PlatformError
        It is no platform, of another version, or edited by hand.
    """
    file, version = of_file(path), data.get("version")
    if data.get("format") != FORMAT:
        raise PlatformError(f"{file}: not a platform (its format is not {FORMAT!r}); {REFIT}")
    if type(version) is not int or version < 1:
        raise PlatformError(f"{file}: version {version!r} is not a positive whole number; {REFIT}")
    if version > VERSION:
        raise PlatformError(
            f"{file}: version {version}, this release reads up to {VERSION}; "
            "upgrade pytest-neuralpower"
        )
    if version < VERSION:
        raise PlatformError(
            f"{file}: version {version} is of an earlier release, this one reads {VERSION}; renew "
            f"it: `neuralpower fit FOLDER --out {path.name}` from its calibration folder, or "
            "`neuralpower calibrate` on the device"
        )
    claimed, sha256 = data.pop("sha256", None), content_hash(data)
    if claimed != sha256:
        raise PlatformError(
            f"{file}: its content does not match its sha256: it was edited by hand or damaged; "
            "restore it, or change the recipe and refit it"
        )
    return {key: data[key] for key in data if key not in ("format", "version")}, sha256


def write(path: Path, content: Mapping[str, object]) -> str:
    """Write a platform file, all of it or nothing; return its hash.

    Raises
    ------
    PlatformError
        A value is not a finite number, or the file cannot be written.
    """
    try:
        text = json.dumps({"format": FORMAT, "version": VERSION, **content}, allow_nan=False)
    except ValueError:
        raise PlatformError(
            f"{of_file(path)}: some value is not a finite number; {REFIT}"
        ) from None
    data = json.loads(text)
    sha256 = content_hash(data)
    text = json.dumps({**data, "sha256": sha256}, indent=1, ensure_ascii=False) + "\n"
    try:
        write_atomically(path, text)
    except OSError as error:
        raise PlatformError(
            f"{of_file(path)}: it cannot be written ({error}); check the folder"
        ) from None
    return sha256


def content_hash(data: Mapping[str, object]) -> str:
    """sha256 of the fields in canonical JSON (sorted keys, no spaces), without the hash itself."""
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
