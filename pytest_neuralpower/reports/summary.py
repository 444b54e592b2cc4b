"""The summary section: what each guarded test predicted, beside its budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pytest_neuralpower.reports.compare import signed_percent
from pytest_neuralpower.units import Quantity, show, show_in

__all__ = ["short_id", "summary_lines"]

_WIDTH: Final = 80
_LEAST_WIDTH: Final = 20

#: Outcome of a record -> how a summary line starts.
_STATUS = {
    "ok": "ok",
    "over": "OVER",
    "untrusted": "UNSURE",
    "misused": "ERROR",
    "regressed": "WORSE",
    "missing": "MISSING",
    "failed": "failed",
    "unbounded": "-",
}


def summary_lines(records: Sequence[Mapping[str, Any]], *, whole_ids: bool = False) -> list[str]:
    """What each guarded test predicted (records of session.judge), in lines of 80 columns.

    One aligned line a prediction, its test last; where one would be too long, all take two, the
    test first. A test's id too long for a line is shortened, unless ``whole_ids``.
    """
    rows = [
        [
            _STATUS[record["outcome"]],
            *_cells(record),
            _since_baseline(record),
            f"{record['untrusted_share']:.0%} unsure" if record["untrusted_share"] > 0 else "",
            record["platform"],
            record["test"],
        ]
        for record in sorted(records, key=_order)
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if sum(width + 2 for width in widths if width) - 2 <= _WIDTH:
        return [
            "  ".join(
                f"{cell:{width}}" for cell, width in zip(row, widths, strict=True) if width
            ).rstrip()
            for row in rows
        ]
    indent = widths[0] + 2
    lines = []
    for status, *cells, test in rows:
        shown = test if whole_ids else short_id(test, _WIDTH - indent)
        lines += [f"{status:{indent}}{shown}", " " * indent + "  ".join(filter(None, cells))]
    return lines


def _since_baseline(record: Mapping[str, Any]) -> str:
    """How the model's cost stands to its baseline; empty where it has none to do with one."""
    comparison = record.get("comparison")
    if comparison is None:
        missing = record.get("baseline", {}).get("status") == "missing"
        return "no baseline" if missing else ""
    whole = comparison["energy"] or comparison["runtime"]
    change = signed_percent(whole["base"], whole["head"])
    return "as baseline" if change == "+0.0%" else f"{change} on baseline"


def short_id(nodeid: str, width: int) -> str:
    """A test's id within ``width`` columns: folders go first, then the file, then its classes and
    at last the middle of its name, of which a few letters always stay.

    >>> short_id("tests/unit/test_net.py::TestNet::test_small[8]", 24)
    '…::test_small[8]'
    """
    path, separator, names = nodeid.partition("::")
    name, bracket, case = names.partition("[")  # a case may have colons of its own
    parts = name.split("::")
    parts[-1] += bracket + case
    shorter = [nodeid, f"…/{path.rpartition('/')[2]}{separator}{names}"]
    shorter += ["…::" + "::".join(parts[index:]) for index in range(len(parts))]
    for each in shorter:
        if len(each) <= width:
            return each
    last, width = shorter[-1], max(width, _LEAST_WIDTH)
    if len(last) <= width:
        return last
    start = (width - 1) // 2
    return f"{last[:start]}…{last[start + 1 - width :]}"


def _order(record: Mapping[str, Any]) -> tuple[str, str]:
    """By test, so that a run on xdist reads the same; its workers finish in any order."""
    return record["test"], record["platform"]


#: Whether the limit lies outside the interval -> what the summary adds.
_SURE: Mapping[bool | None, str] = {None: "", True: " (sure)", False: " (not sure)"}


def _cells(record: Mapping[str, Any]) -> list[str]:
    values: tuple[tuple[Quantity, str], ...] = (
        ("energy", "energy_mj"), ("runtime", "runtime_ms"), ("power", "power_w"),
    )  # fmt: skip
    cells = []
    for quantity, key in values:
        budgets = [each for each in record["budgets"] if each["quantity"] == quantity]
        if budgets:
            # Of several budgets of one quantity the tightest is shown: a broken one, if any.
            budget = max(budgets, key=lambda each: each["value"] / each["limit"])
            per = ""
            if budget["per"] == "sample":
                per = f" per sample of {budget['samples'] or record['batch']}"
            value, limit = (
                show_in(quantity, budget[name], budget["unit"]) for name in ("value", "limit")
            )
            cells.append(f"{value} of {limit}{per}{_SURE[budget['sure']]}")
        else:
            cells.append("" if record[key] is None else show(quantity, record[key]))
        if cells[-1] and quantity != "runtime" and record.get("estimated_power"):
            cells[-1] += " estimated"
    return cells
