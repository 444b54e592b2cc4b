"""What has changed since a baseline, as Markdown for a pull request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pytest_neuralpower.reports.compare import change_cell, changes_text

__all__ = ["compare_markdown", "escape"]

_ICONS: Final = {
    "ok": "✅",
    "regressed": "❌",
    "new": "🆕",
    "removed": "🗑️",
    "failed": "⚠️",
}


def escape(text: str) -> str:
    """Text that stays in one cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def compare_markdown(found: Sequence[Mapping[str, Any]], *, top: int) -> str:
    """The table of :func:`~pytest_neuralpower.reports.compare.compare_text`, details folded."""
    worse = sum(each["outcome"] == "regressed" for each in found)
    failed = sum(each["outcome"] == "failed" for each in found)
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
        comparison = each["comparison"]
        cells = ["-", "-"]
        if comparison is not None:
            cells = [
                change_cell(comparison["energy"], "energy"),
                change_cell(comparison["runtime"], "runtime"),
            ]
            if comparison["layers"] or comparison["recalibrated"]:
                details += _details(each, top)
        elif each["outcome"] == "failed":
            cells = [each["error"], "-"]
        row = [_ICONS[each["outcome"]], f"`{each['name']}`", each["platform"], *cells]
        lines.append("| " + " | ".join(map(escape, row)) + " |")
    return "\n".join([*lines, *details]) + "\n"


def _details(each: Mapping[str, Any], top: int) -> list[str]:
    return [
        "",
        f"<details><summary>{each['name']} on {each['platform']}: what changed</summary>",
        "",
        "```",
        changes_text(each["comparison"], top=top).strip("\n"),
        "```",
        "",
        "</details>",
    ]
