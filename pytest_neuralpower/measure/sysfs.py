"""Files of one line that the kernel shows."""

from __future__ import annotations

from pathlib import Path

__all__ = ["text"]


def text(path: Path) -> str:
    """What the file holds; empty when it is not there or may not be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
