"""What CI servers show: GitHub's step summary and annotations, and properties in JUnit's XML.

https://docs.github.com/actions/reference/workflow-commands-for-github-actions
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET

from pytest_neuralpower.report.markdown import render

if TYPE_CHECKING:
    from pytest_neuralpower.guard.finding import Finding, Report

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


def publish(report: Report, rootpath: Path) -> tuple[list[str], bool]:
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


def error_commands(report: Report, rootpath: Path) -> list[str]:
    """One workflow command for each prediction that broke something, at its test."""
    return [_annotation(each, rootpath) for each in report.predictions if each.failure]


def _annotation(finding: Finding, rootpath: Path) -> str:
    title = _TITLES.get(finding.outcome, finding.outcome)
    properties = {
        "file": _path(rootpath / finding.file),
        "line": finding.line,
        "title": f"{title}: {finding.model or finding.test} on {finding.platform}",
    }
    written = ",".join(
        f"{name}={_escaped(str(value), ':', ',')}"
        for name, value in properties.items()
        if value is not None
    )
    # The table of layers is in the log and the summary: an annotation has little room.
    message = finding.failure.partition("\n\n")[0]
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


_FACTS: Final = ("platform", "platform_sha256", "model", "batch", "outcome")
_VALUES: Final = ("energy_mj", "runtime_ms", "power_w")
_BUDGETS: Final = {
    "energy": "energy_budget_mj",
    "runtime": "runtime_budget_ms",
    "power": "power_budget_w",
}


def properties(findings: Sequence[Finding]) -> list[tuple[str, Any]]:
    """Pairs for ``item.user_properties``, which xdist carries to the process that writes the XML.

    Parameters
    ----------
    findings
        Of one test; with more than one, names are numbered: ``neuralpower.2.energy_mj``.

    Returns
    -------
    list of tuple
        Scalars only; ``baseline_energy_mj`` and ``baseline_runtime_ms`` are those of the baseline,
        predicted again with the platform of now. What is not known is left out.
    """
    pairs: list[tuple[str, Any]] = []
    for number, finding in enumerate(findings, 1):
        prefix = "neuralpower" if len(findings) == 1 else f"neuralpower.{number}"
        found = {name: getattr(finding, name) for name in (*_FACTS, *_VALUES)}
        found |= {
            f"{_BUDGETS[each.quantity]}_per_{each.per}": each.limit for each in finding.budgets
        }
        if finding.comparison is not UNSET:
            names = {"energy": "baseline_energy_mj", "runtime": "baseline_runtime_ms"}
            for quantity, total in finding.comparison.known().items():
                found[names[quantity]] = total.base
        pairs += [(f"{prefix}.{name}", value) for name, value in found.items() if value is not None]
    return pairs
