"""The report for a pull request or a step summary: short, details folded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pytest_neuralpower.report.compare import change_cell, changes_text, signed_percent
from pytest_neuralpower.units import Quantity, show, show_in

__all__ = [
    "compare_markdown",
    "escape",
    "render",
]


#: Outcome of a prediction -> what its row starts with.
_ICONS: Final = {"ok": "✅", "failed": "💥", "unbounded": "", "misused": "💥"}
_BROKEN: Final = "❌"
_QUANTITIES: Final[tuple[tuple[Quantity, str], ...]] = (
    ("energy", "energy_mj"), ("runtime", "runtime_ms"), ("power", "power_w"),
)  # fmt: skip

#: Layers that the details of a changed model show.
_TOP: Final = 5


def render(report: Mapping[str, Any]) -> str:
    """One row a prediction; what has changed since the baseline, and failures, folded below."""
    predictions: Sequence[Mapping[str, Any]] = report["predictions"]
    broken = [each for each in predictions if each["failure"]]
    count = len(predictions)
    verdict = f"{count - len(broken)} of {count} within budget and baseline"
    lines = [f"### Predicted energy and runtime: {verdict}", ""]
    if predictions:
        lines += [
            "| | test | platform | energy of one call | runtime | power | since baseline |",
            "|---|---|---|---|---|---|---|",
            *map(_row, predictions),
        ]
    for each in broken:
        lines += _folded(f"{each['test']}: {each['outcome']}", each["failure"])
    for each in predictions:
        comparison = each.get("comparison")
        if comparison is None or each["failure"]:
            continue
        if comparison["layers"] or comparison["recalibrated"]:
            lines += _folded(f"{each['test']}: what changed", changes_text(comparison, top=_TOP))
    if report["stale_baselines"]:
        stale = ", ".join(f"`{each}`" for each in report["stale_baselines"])
        lines += ["", f"Stale baselines, of tests that predict no more: {stale}"]
    return "\n".join(lines) + "\n"


def _row(prediction: Mapping[str, Any]) -> str:
    icon = _ICONS.get(prediction["outcome"], _BROKEN)
    cells = [_cell(prediction, quantity, field) for quantity, field in _QUANTITIES]
    cells = [icon, f"`{prediction['test']}`", prediction["platform"], *cells, _since(prediction)]
    return "| " + " | ".join(map(escape, cells)) + " |"


def _cell(prediction: Mapping[str, Any], quantity: Quantity, field: str) -> str:
    if prediction[field] is None:
        return "-"
    budgets = [each for each in prediction["budgets"] if each["quantity"] == quantity]
    if not budgets:
        return show(quantity, prediction[field])
    tightest = max(budgets, key=lambda each: each["value"] / each["limit"])
    value, limit = (
        show_in(quantity, tightest[name], tightest["unit"]) for name in ("value", "limit")
    )
    return f"{value} of {limit}" + (" per sample" if tightest["per"] == "sample" else "")


def _since(prediction: Mapping[str, Any]) -> str:
    comparison = prediction.get("comparison")
    if comparison is None:
        status = prediction.get("baseline", {}).get("status")
        return {"missing": "no baseline", "written": "accepted"}.get(status, "")
    whole = comparison["energy"] or comparison["runtime"]
    return signed_percent(whole["base"], whole["head"])


def _folded(title: str, text: str) -> list[str]:
    return [
        "",
        f"<details><summary>{title}</summary>",
        "",
        "```",
        text.strip("\n"),
        "```",
        "",
        "</details>",
    ]


# -- What has changed since a baseline, as Markdown for a pull request.

_COMPARED_ICONS: Final = {
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
    """The table of :func:`~pytest_neuralpower.report.compare.compare_text`, details folded."""
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
        row = [_COMPARED_ICONS[each["outcome"]], f"`{each['name']}`", each["platform"], *cells]
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
