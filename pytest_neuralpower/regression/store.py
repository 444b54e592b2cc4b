"""The folder of baselines: ``<folder>/<platform>/<name>.yaml``, one file a prediction."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_neuralpower.errors import BaselineError

if TYPE_CHECKING:
    from pytest_neuralpower.regression.baseline import Baseline

__all__ = ["BaselineStore", "baseline_name"]

_SUFFIXES: Final = (".budget.yaml", ".budget.yml", ".py")
_PLAIN: Final = re.compile(r"[\w.-]+", re.ASCII)
#: Longest file name without suffix: some file systems allow 143 bytes.
_LONGEST: Final = 120


def baseline_name(test: str, number: int = 1) -> str:
    """Name of the baseline of a test's ``number``-th prediction.

    >>> baseline_name("tests/test_models.py::TestSmall::test_resnet[18]")
    'tests.test_models.TestSmall.test_resnet-18'

    What has no place in a file name is replaced, and a hash keeps such names apart.
    """
    place, separator, function = test.partition("::")
    for suffix in _SUFFIXES:
        place = place.removesuffix(suffix)
    plain = place.replace("/", ".") + (separator and ".") + function.replace("::", ".")
    plain = plain.replace("[", "-").removesuffix("]")
    name = "_".join(_PLAIN.findall(plain)) or "test"
    if name != plain or len(name) > _LONGEST or name.startswith("."):
        digest = hashlib.sha256(test.encode()).hexdigest()[:8]
        name = f"{name.lstrip('.')[:_LONGEST]}-{digest}"
    return name if number == 1 else f"{name}.{number}"


@dataclass(frozen=True, slots=True)
class BaselineStore:
    """Where baselines are; ``root`` is what paths are shown relative to."""

    folder: Path
    root: Path

    def path(self, platform: str, name: str) -> Path:
        return self.folder / platform / f"{name}.yaml"

    def shown(self, path: Path) -> str:
        """The path for messages: relative to the root where it is below."""
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

    def in_use(self, platform: str) -> bool:
        """Whether any model has a baseline on the platform: then every guarded one has."""
        return next((self.folder / platform).glob("*.yaml"), None) is not None

    def names(self, platform: str) -> tuple[str, ...]:
        """Of all baselines of a platform, sorted."""
        return tuple(sorted(path.stem for path in (self.folder / platform).glob("*.yaml")))

    def read(self, platform: str, name: str, expected: Baseline) -> Baseline | None:
        """The baseline; None where there is none. It is read sooner where it is as ``expected``.

        Raises
        ------
        BaselineError
            It is broken, or of another platform.
        """
        from pytest_neuralpower.regression.baseline_file import read_baseline  # noqa: PLC0415

        path = self.path(platform, name)
        if not path.exists():
            return None
        found = read_baseline(path, expected)
        if found.platform != platform:
            raise BaselineError(
                f"baseline {self.shown(path)} is of platform {found.platform!r}, not {platform!r}: "
                f"move it to the folder {found.platform}, or write this one again with "
                "--np-update-baseline"
            )
        return found

    def check_writable(self) -> None:
        """Try to write where the folder is or will be.

        Raises
        ------
        BaselineError
            It cannot be written.
        """
        place = self.folder
        while not place.exists() and place != place.parent:
            place = place.parent
        try:
            if not place.is_dir():
                raise NotADirectoryError(f"{self.shown(place)} is a file")
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise BaselineError(
                f"baselines cannot be written to {self.shown(self.folder)} ({reason}): make the "
                "folder writable, or choose another with --np-baselines=DIR"
            ) from None
