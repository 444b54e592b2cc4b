"""Markdown for a pull request or a step summary: short, details folded."""

from __future__ import annotations

import html
import re
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
            "| | test | platform | energy of one call | runtime | power | not measured "
            "| since baseline |",
            "|---|---|---|---|---|---|---|---|",
            *map(_finding_row, report.predictions),
        ]
    for each in broken:
        lines += _folded(f"{each.test}: {each.outcome}", each.failure)
    for each in report.predictions:
        if each.comparison is not UNSET and each.comparison.changed and not each.failure:
            text = changes_text(each.comparison, top=_TOP)
            lines += _folded(f"{each.test}: what changed", text)
    if report.stale_baselines:
        stale = ", ".join(map(_code, report.stale_baselines))
        lines += ["", f"Stale baselines, of tests that predict no more: {stale}"]
    return "\n".join(lines) + "\n"


def _finding_row(finding: Finding) -> str:
    cells = [_cell(finding, quantity, value) for quantity, value in values_of(finding).items()]
    icon = _ICONS.get(finding.outcome, _BROKEN)
    by = _name(finding.predicted_by)
    unsure = f"{finding.untrusted_share:.0%}" if finding.untrusted_share > 0 else ""
    return _row([icon, _code(finding.test), by, *cells, unsure, _since(finding)])


def _cell(finding: Finding, quantity: Quantity, value: float | None) -> str:
    if value is None:
        return "-"
    verdict = finding.tightest(quantity)
    estimated = " estimated" if quantity != "runtime" and finding.estimated_power else ""
    if verdict is None:
        return f"{show(quantity, value)}{estimated}"
    sure = {None: "", True: " (sure)", False: " (not sure)"}[verdict.sure]
    limit = f"{verdict.show(verdict.limit)}{verdict.per_suffix}"
    return f"{verdict.show(verdict.value)} of {limit}{sure}{estimated}"


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
        cells = total_cells(each) if each.error is None else (_name(each.error), "-")
        names = _code(each.title), _name(each.platform)
        lines.append(_row([_COMPARED_ICONS[each.outcome], *names, *cells]))
        if each.comparison is not None and each.comparison.changed:
            title = f"{each.name} on {each.platform}: what changed"
            details += _folded(title, changes_text(each.comparison, top=top))
    return "\n".join([*lines, *details]) + "\n"


def escape(text: str) -> str:
    """Text that stays in one cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(map(escape, cells)) + " |"


#: Names that Markdown shows as they are.
_PLAIN: Final = re.compile(r"[\w .,:;()%/+-]*")


def _name(text: str) -> str:
    """A name: as it is where Markdown has nothing to read in it, else as code."""
    return text if _PLAIN.fullmatch(text) else _code(text)


def _code(text: str) -> str:
    """Text as code, in which Markdown reads nothing, whatever backticks it has."""
    ticks = "`" * (_longest_run(text) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{space}{text}{space}{ticks}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _folded(title: str, text: str) -> list[str]:
    summary = f"<details><summary>{html.escape(title, quote=False)}</summary>"
    fence = "`" * max(_longest_run(text) + 1, 3)
    return ["", summary, "", fence, text.strip("\n"), fence, "", "</details>"]
