"""What a GitHub workflow shows: a step summary, and an annotation at each test that broke.

https://docs.github.com/actions/reference/workflow-commands-for-github-actions
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pytest_neuralpower.reports.markdown import render

__all__ = ["SUMMARY_VARIABLE", "error_commands", "publish"]

SUMMARY_VARIABLE: Final = "GITHUB_STEP_SUMMARY"

#: The checkout, from which GitHub counts paths.
_WORKSPACE_VARIABLE: Final = "GITHUB_WORKSPACE"

#: GitHub refuses a larger summary of one step.
_LIMIT_BYTES: Final = 1024 * 1024

_TITLES: Final = {
    "over": "budget exceeded",
    "untrusted": "prediction not trusted",
    "regressed": "costs more than its baseline",
    "missing": "no baseline",
    "misused": "budget misused",
}


def publish(report: Mapping[str, Any], rootpath: Path) -> tuple[list[str], bool]:
    """Append the Markdown report to the step summary.

    Returns
    -------
    list of str
        Lines for the terminal: annotations, and what could not be done.
    bool
        Whether the summary could not be written. Outside a workflow there is none to write.
    """
    lines = error_commands(report, rootpath)
    target = os.environ.get(SUMMARY_VARIABLE)
    if not target:
        advice = "run it in a GitHub workflow, or write a file with --np-report=report.md"
        return [*lines, f"no step summary: {SUMMARY_VARIABLE} is not set; {advice}"], False
    try:
        with Path(target).open("a", encoding="utf-8", newline="\n") as file:
            room = _LIMIT_BYTES - file.tell()
            file.write(_fitted(render(report), room))
    except OSError as error:
        reason = error.strerror or str(error)
        return [*lines, f"step summary {target} cannot be written ({reason})"], True
    return [*lines, "report added to the step summary"], False


def _fitted(text: str, room: int) -> str:
    """The text, or its first line and what to do where GitHub would refuse the whole."""
    if len(text.encode()) <= room:
        return text
    return f"{text.splitlines()[0]}\n\nToo long to show here: write it with --np-report=report.md\n"


def error_commands(report: Mapping[str, Any], rootpath: Path) -> list[str]:
    """One workflow command for each prediction that broke something, at its test."""
    return [_annotation(each, rootpath) for each in report["predictions"] if each["failure"]]


def _annotation(record: Mapping[str, Any], rootpath: Path) -> str:
    title = _TITLES.get(record["outcome"], record["outcome"])
    properties = {
        "file": _path(rootpath / record["file"]),
        "line": record["line"],
        "title": f"{title}: {record['model'] or record['test']} on {record['platform']}",
    }
    written = ",".join(
        f"{name}={_escaped(str(value), ':', ',')}"
        for name, value in properties.items()
        if value is not None
    )
    # The table of layers is in the log and the summary: an annotation has little room.
    message = record["failure"].partition("\n\n")[0]
    return f"::error {written}::{_escaped(message)}"


def _path(file: Path) -> str:
    """Relative to the checkout, or to where pytest runs if there is none."""
    workspace = os.environ.get(_WORKSPACE_VARIABLE)
    for folder in (workspace, Path.cwd()):
        if folder and file.is_relative_to(folder):
            return file.relative_to(folder).as_posix()
    return file.as_posix()


def _escaped(text: str, *more: str) -> str:
    """As GitHub's runner reads it; ``%`` first, so that nothing is escaped twice."""
    for character in ("%", "\r", "\n", *more):
        text = text.replace(character, f"%{ord(character):02X}")
    return text
