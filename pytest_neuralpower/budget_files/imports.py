"""Import paths of a budget file: those of files start where the budget file is."""

from __future__ import annotations

import os.path
from pathlib import Path

__all__ = ["in_folder"]


def in_folder(target: str, folder: Path) -> str:
    """``networks.py:vgg16`` as seen from ``folder``; other import paths as they are."""
    place, _, name = target.rpartition(":")
    return f"{os.path.normpath(folder / place)}:{name}" if place.endswith(".py") else target
