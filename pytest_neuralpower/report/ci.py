"""What a GitHub workflow shows: a step summary, and an annotation at each test that broke.

https://docs.github.com/actions/reference/workflow-commands-for-github-actions
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pytest_neuralpower.report.markdown import render

__all__ = [
    "SUMMARY_VARIABLE",
    "error_commands",
    "properties",
    "publish",
]


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


# -- Properties of a test in JUnit's XML: what CI servers show beside its outcome.

_FACTS: Final = ("platform", "platform_sha256", "model", "batch", "outcome")
_VALUES: Final = ("energy_mj", "runtime_ms", "power_w")
_BUDGETS: Final = {
    "energy": "energy_budget_mj",
    "runtime": "runtime_budget_ms",
    "power": "power_budget_w",
}


def properties(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """Pairs for ``item.user_properties``, which xdist carries to the process that writes the XML.

    Parameters
    ----------
    records
        Of one test; with more than one, names are numbered: ``neuralpower.2.energy_mj``.

    Returns
    -------
    list of tuple
        Scalars only; ``baseline_energy_mj`` and ``baseline_runtime_ms`` are those of the baseline,
        predicted again with the platform of now. What is not known is left out.
    """
    pairs = []
    for number, record in enumerate(records, 1):
        prefix = "neuralpower" if len(records) == 1 else f"neuralpower.{number}"
        found = {name: record[name] for name in (*_FACTS, *_VALUES)}
        found |= {
            f"{_BUDGETS[budget['quantity']]}_per_{budget['per']}": budget["limit"]
            for budget in record["budgets"]
        }
        comparison = record.get("comparison") or {}
        found |= {
            f"baseline_{name}": comparison[quantity]["base"]
            for quantity, name in (("energy", "energy_mj"), ("runtime", "runtime_ms"))
            if comparison.get(quantity)
        }
        pairs += [(f"{prefix}.{name}", value) for name, value in found.items() if value is not None]
    return pairs
