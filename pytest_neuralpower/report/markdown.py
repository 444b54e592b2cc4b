"""Markdown for a pull request or a step summary: short, details folded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from msgspec import UNSET

from pytest_neuralpower.report.compare import changes_text, signed_percent, total_cells, values_of
from pytest_neuralpower.units import Quantity, show

if TYPE_CHECKING:
    from pytest_neuralpower.guard.compare_sources import ComparedModel
    from pytest_neuralpower.guard.finding import Finding, Report

#: Outcome of a prediction -> what its row starts with.
_ICONS: Final = {"ok": "✅", "failed": "💥", "unbounded": "", "misused": "💥"}
_BROKEN: Final = "❌"
_COMPARED_ICONS: Final = {
    "ok": "✅",
    "regressed": "❌",
    "new": "🆕",
    "removed": "🗑️",
    "failed": "⚠️",
}

#: Layers that the details of a changed model show.
_TOP: Final = 5


def render(report: Report) -> str:
    """One row a prediction; what has changed since the baseline, and failures, folded below."""
    broken = [each for each in report.predictions if each.failure]
    count = len(report.predictions)
    verdict = f"{count - len(broken)} of {count} within budget and baseline"
    lines = [f"### Predicted energy and runtime: {verdict}", ""]
    if report.predictions:
        lines += [
            "| | test | platform | energy of one call | runtime | power | since baseline |",
            "|---|---|---|---|---|---|---|",
            *map(_finding_row, report.predictions),
        ]
    for each in broken:
        lines += _folded(f"{each.test}: {each.outcome}", each.failure)
    for each in report.predictions:
        if each.comparison is not UNSET and each.comparison.changed and not each.failure:
            text = changes_text(each.comparison, top=_TOP)
            lines += _folded(f"{each.test}: what changed", text)
    if report.stale_baselines:
        stale = ", ".join(f"`{each}`" for each in report.stale_baselines)
        lines += ["", f"Stale baselines, of tests that predict no more: {stale}"]
    return "\n".join(lines) + "\n"


def _finding_row(finding: Finding) -> str:
    cells = [_cell(finding, quantity, value) for quantity, value in values_of(finding).items()]
    icon = _ICONS.get(finding.outcome, _BROKEN)
    return _row([icon, f"`{finding.test}`", finding.predicted_by, *cells, _since(finding)])


def _cell(finding: Finding, quantity: Quantity, value: float | None) -> str:
    if value is None:
        return "-"
    verdict = finding.tightest(quantity)
    if verdict is None:
        return show(quantity, value)
    return f"{verdict.show(verdict.value)} of {verdict.show(verdict.limit)}{verdict.per_suffix}"


def _since(finding: Finding) -> str:
    if finding.comparison is UNSET:
        status = "" if finding.baseline is UNSET else finding.baseline.status
        return {"missing": "no baseline", "written": "accepted"}.get(status, "")
    total = finding.comparison.main_change()
    change = signed_percent(total.base, total.head)
    before, now = finding.comparison.estimators
    return change if before == now else f"{change} (baseline of estimator {before})"


def compare_markdown(found: Sequence[ComparedModel], *, top: int) -> str:
    """The table of :func:`~pytest_neuralpower.report.compare.compare_text`, details folded."""
    worse = sum(each.outcome == "regressed" for each in found)
    failed = sum(each.outcome == "failed" for each in found)
    verdict = f"{worse} of {len(found)} cost more than the tolerance allows" if worse else (
        "nothing costs more than the tolerance allows"
    )  # fmt: skip
    if failed:
        verdict += f"; {failed} could not be compared"
    lines = [
        f"### Predicted energy and runtime: {verdict}",
        "",
        "| | model | platform | energy of one call | runtime of one call |",
        "|---|---|---|---|---|",
    ]
    details = []
    for each in found:
        cells = total_cells(each) if each.error is None else (each.error, "-")
        lines.append(_row([_COMPARED_ICONS[each.outcome], f"`{each.name}`", each.platform, *cells]))
        if each.comparison is not None and each.comparison.changed:
            title = f"{each.name} on {each.platform}: what changed"
            details += _folded(title, changes_text(each.comparison, top=top))
    return "\n".join([*lines, *details]) + "\n"


def escape(text: str) -> str:
    """Text that stays in one cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(map(escape, cells)) + " |"


def _folded(title: str, text: str) -> list[str]:
    summary = f"<details><summary>{title}</summary>"
    return ["", summary, "", "```", text.strip("\n"), "```", "", "</details>"]
