"""Report formats by the suffix of the file: what ``--np-report`` can write."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pytest_neuralpower.errors import ReportError

__all__ = ["RENDERERS", "Renderer", "check_targets", "write_reports"]

#: Takes what :func:`~pytest_neuralpower.reports.session_report.session_report` made.
Renderer = Callable[[Mapping[str, Any]], str]

#: Suffix -> ``module:function`` of its :data:`Renderer`; loaded when a report is written.
RENDERERS: dict[str, str] = {
    ".json": "pytest_neuralpower.reports.json:render",
    ".md": "pytest_neuralpower.reports.markdown:render",
    ".html": "pytest_neuralpower.reports.html:render",
}


def check_targets(targets: Sequence[str]) -> None:
    """Check what ``--np-report`` was given, before any test runs.

    Raises
    ------
    ReportError
        With one line: no such format, one file twice, or a folder that cannot be written.
    """
    seen: set[Path] = set()
    for target in targets:
        path = Path(target)
        if path.suffix not in RENDERERS:
            raise ReportError(
                f"--np-report={target}: no format for {path.suffix or 'a path without suffix'!r}; "
                f"allowed: {', '.join(RENDERERS)}"
            )
        if path.absolute() in seen:
            raise ReportError(f"--np-report={target} is given twice; name another file")
        seen.add(path.absolute())
        place = path.absolute().parent
        while not place.exists() and place != place.parent:
            place = place.parent
        if path.is_dir() or not place.is_dir() or not os.access(place, os.W_OK):
            what = "it is a folder" if path.is_dir() else f"{place} cannot be written"
            raise ReportError(f"--np-report={target}: {what}; name another file")


def write_reports(
    targets: Sequence[str],
    records: Mapping[str, Sequence[Mapping[str, Any]]],
    stale: Sequence[str],
) -> tuple[list[str], bool]:
    """Write every report; lines for the terminal, and whether any could not be written."""
    from pytest_neuralpower.files import write_atomically  # noqa: PLC0415
    from pytest_neuralpower.reports.session_report import session_report  # noqa: PLC0415

    content = session_report(records, stale)
    lines, failed = [], False
    for target in targets:
        text = _renderer(Path(target).suffix)(content)
        try:
            write_atomically(Path(target), text)
            lines.append(f"report written: {target}")
        except OSError as error:
            reason = error.strerror or str(error)
            lines.append(f"report {target} cannot be written ({reason}): name another file")
            failed = True
    return lines, failed


def _renderer(suffix: str) -> Renderer:
    module, _, name = RENDERERS[suffix].partition(":")
    return cast("Renderer", getattr(importlib.import_module(module), name))
