"""Which platforms there are, and how one is loaded."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from pytest_neuralpower.errors import PlatformError
from pytest_neuralpower.platform import Platform, from_content
from pytest_neuralpower.platform_file import read, read_json

if TYPE_CHECKING:
    from pytest_neuralpower.eyeriss.platform import EyerissPlatform

__all__ = ["AnyPlatform", "list_platforms", "load_fitted", "load_platform"]

#: What predicts: a fitted platform or an analytic one.
AnyPlatform: TypeAlias = "Platform | EyerissPlatform"

_SHIPPED: Final = Path(__file__).parent / "platforms"


def list_platforms() -> tuple[str, ...]:
    """Names of the shipped platforms, sorted."""
    return tuple(sorted(path.stem for path in _SHIPPED.glob("*.json")))


def load_platform(name: str | Path) -> AnyPlatform:
    """Load a shipped platform by name, or any platform file by its path.

    Raises
    ------
    PlatformError
        There is no such platform, or its file is broken; one line says what to do.
    """
    path = Path(name)
    if isinstance(name, str) and not (path.suffix == ".json" or len(path.parts) > 1):
        path = _SHIPPED / f"{name}.json"
        if not path.is_file():
            raise PlatformError(_unknown(name))
    data = read_json(path)
    if data.get("format") == "pytest-neuralpower eyeriss":
        from pytest_neuralpower.eyeriss.platform_file import parse_platform  # noqa: PLC0415 - rare

        return parse_platform(path, data)
    return from_content(*read(path, data))


def load_fitted(name: str | Path) -> Platform:
    """:func:`load_platform` where only one whose estimators were fitted will do.

    Raises
    ------
    PlatformError
        Also for an analytic platform.
    """
    platform = load_platform(name)
    if not isinstance(platform, Platform):
        raise PlatformError(
            f"platform {platform.name} is analytic, without fitted estimators; name a fitted one "
            "(`neuralpower platforms`)"
        )
    return platform


def _unknown(name: str) -> str:
    shipped = list_platforms()
    close = difflib.get_close_matches(name.lower(), shipped, n=1, cutoff=0.5)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return (
        f"unknown platform {name!r}{hint}; shipped: {', '.join(shipped)}; "
        "or give the path of a platform file (.json)"
    )
