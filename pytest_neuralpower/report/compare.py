"""What has changed since a baseline, for terminals: from the records of comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pytest_neuralpower.units import Quantity, show, show_percent

__all__ = [
    "change_cell",
    "changes_text",
    "compare_text",
    "regression_text",
    "signed",
    "signed_percent",
]

Record = Mapping[str, Any]

_QUANTITIES: Final[tuple[Quantity, ...]] = ("energy", "runtime")
_FIELDS: Final = {"energy": "energy_mj", "runtime": "runtime_ms"}


def signed(quantity: Quantity, value: float) -> str:
    """``+1.20 mJ``: an amount by which something differs."""
    return f"{'-' if value < 0 else '+'}{show(quantity, abs(value))}"


def signed_percent(before: float, after: float) -> str:
    """``+12.5%``; in times where it has more than doubled."""
    if not before:
        return "new" if after else "+0.0%"
    ratio = after / before
    if ratio >= 2:
        return f"x{ratio:,.3g}"
    if abs(ratio - 1) < 1e-9:  # sums of equal layers in another order
        return "+0.0%"
    return f"{'-' if ratio < 1 else '+'}{show_percent(abs(ratio - 1))}"


def change_cell(whole: Record | None, quantity: Quantity) -> str:
    """``1.20 J -> 1.47 J, +22.5%``; a dash where the quantity is not known."""
    if whole is None:
        return "-"
    before, after = whole["base"], whole["head"]
    if before == after or abs(after - before) <= 1e-9 * abs(before):
        return f"{show(quantity, after)}, unchanged"
    return f"{show(quantity, before)} -> {show(quantity, after)}, {signed_percent(before, after)}"


def regression_text(record: Record, *, platform: str, path: str, top: int, accept: str) -> str:
    """What people read when a model costs more than its baseline allows."""
    model = record["model"][1]
    wholes = [each for each in record["breaches"] if each["layer"] is None]
    layers = [each for each in record["breaches"] if each["layer"] is not None]
    lines = [f"costs more than its baseline: {model} on {platform}"]
    for breach in wholes:
        quantity = breach["quantity"]
        lines += [
            f"  {quantity:8} {_breach_text(breach)} per {breach['per']}",
            *_interval_lines(record[quantity], quantity),
        ]
    shown = layers[:top] if top else layers
    for breach in shown:
        lines.append(
            f"  {breach['quantity']} of layer {breach['layer'] or '(root)'}: {_breach_text(breach)}"
        )
    if len(shown) < len(layers):
        lines.append(f"  and {len(layers) - len(shown)} more layers")
    lines += [f"  {line}".rstrip() for line in changes_text(record, top=top).splitlines()]
    lines += ["", f"  baseline: {path}", f"  accept:   {accept}"]
    return "\n".join(lines)


def _breach_text(breach: Record) -> str:
    quantity, before, after = breach["quantity"], breach["before"], breach["after"]
    allowed = breach["allowed"]
    limit = "no growth" if not allowed else signed(quantity, allowed)
    return (
        f"{show(quantity, before)} -> {show(quantity, after)}, {signed_percent(before, after)} "
        f"({signed(quantity, after - before)}; allowed: {limit})"
    )


def _interval_lines(whole: Record, quantity: Quantity) -> list[str]:
    if whole["interval"] is None:
        return []
    low, high, coverage = whole["interval"]
    sure = "not sure to be more"
    if low > 0:
        sure = f"{coverage:.0%} sure to be more"
    return [
        f"           change between {signed(quantity, low)} and {signed(quantity, high)}: {sure}"
    ]


def changes_text(record: Record, *, top: int) -> str:
    """What is calibration, what is the model and why, and the ``top`` layers that changed most."""
    lines = [*_calibration_lines(record), *_batch_lines(record)]
    if not record["layers"]:
        return "\n".join([*lines, f"the model is unchanged: {record['unchanged']} layers"])
    basis: Quantity = "energy" if record["energy"] is not None else "runtime"
    field = _FIELDS[basis]
    lines += ["", "why, of the model:"]
    rows = [
        (signed(basis, each[field]), _layer_count(each["layers"]), _cause_text(each))
        for each in record["causes"]
    ]
    lines += _columns(rows, indent=2)
    changed = [each for each in record["layers"] if each[field][0] != each[field][1]]
    changed.sort(key=lambda each: -abs(each[field][1] - each[field][0]))
    shown = changed[:top] if top else changed
    if shown:
        lines += ["", f"the {len(shown)} layers that changed most, of {len(changed)}:"]
        table = [
            (
                signed(basis, each[field][1] - each[field][0]),
                signed_percent(*each[field]),
                each["op"],
                "; ".join(cause["name"] for cause in each["causes"]),
                each["path"] or "(root)",
            )
            for each in shown
        ]
        lines += _columns(table, indent=2, right=2)
    return "\n".join(lines)


def _calibration_lines(record: Record) -> list[str]:
    if not record["recalibrated"]:
        return []
    lines = ["the platform was calibrated anew since: its part is no change of the model"]
    for quantity in _QUANTITIES:
        whole = record[quantity]
        if whole is not None and whole["calibration"] is not None:
            stored, base, head = whole["stored"], whole["base"], whole["head"]
            lines.append(
                f"  {quantity:8} {show(quantity, stored)} -> {show(quantity, head)} in all: "
                f"calibration {signed(quantity, whole['calibration'])} "
                f"({signed_percent(stored, base)}), model {signed(quantity, head - base)} "
                f"({signed_percent(base, head)})"
            )
    return lines


def _batch_lines(record: Record) -> list[str]:
    before, after = record["batches"]
    if before == after or not before or not after:
        return []
    parts = []
    for quantity in _QUANTITIES:
        if record[quantity] is not None:
            one, other = record[quantity]["base"] / before, record[quantity]["head"] / after
            parts.append(
                f"{show(quantity, one)} -> {show(quantity, other)} ({signed_percent(one, other)})"
            )
    return [f"the batch changed from {before} to {after}: per sample {', '.join(parts)}"]


def _layer_count(count: int) -> str:
    return f"{count} layer{'' if count == 1 else 's'}"


def _cause_text(cause: Record) -> str:
    example = cause["detail"] or (cause["example"] or "(root)")
    more = "" if cause["layers"] == 1 else ", ..."
    return f"{cause['cause']}: {example}{more}"


def _columns(rows: Sequence[tuple[str, ...]], *, indent: int, right: int = 1) -> list[str]:
    """Aligned columns, the first ``right`` to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        (
            " " * indent
            + "  ".join(
                cell.rjust(width) if place < right else cell.ljust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        ).rstrip()
        for row in rows
    ]


#: Outcome of a comparison -> how its line starts.
_STATUS: Final = {"ok": "ok", "regressed": "WORSE", "new": "new", "removed": "removed",
                  "failed": "ERROR"}  # fmt: skip


def compare_text(found: Sequence[Record], *, top: int) -> str:
    """Every model of two sets of predictions in one table, then what changed in each.

    Each of ``found`` has ``name``, ``platform``, ``outcome`` (``ok``, ``regressed``, ``new``,
    ``removed``, ``failed``), its ``comparison`` or None, and for one that failed its ``error``.
    """
    rows = [("", "model", "platform", "energy", "runtime")]
    details = []
    for each in found:
        comparison = each["comparison"]
        cells = ("-", "-")
        if comparison is not None:
            cells = (
                change_cell(comparison["energy"], "energy"),
                change_cell(comparison["runtime"], "runtime"),
            )
            if comparison["layers"] or comparison["recalibrated"]:
                title = f"{each['name']} on {each['platform']}"
                details += [
                    "",
                    title,
                    *(f"  {line}".rstrip() for line in _detail_lines(comparison, top)),
                ]
        if each["outcome"] == "failed":
            details += ["", f"{each['name']} on {each['platform']}: {each['error']}"]
        rows.append((_STATUS[each["outcome"]], each["name"], each["platform"], *cells))
    return "\n".join([*_columns(rows, indent=0, right=0), *details])


def _detail_lines(comparison: Record, top: int) -> list[str]:
    lines = [
        f"beyond the tolerance: {each['quantity']}"
        + ("" if each["layer"] is None else f" of layer {each['layer'] or '(root)'}")
        + f" {_breach_text(each)} per {each['per']}"
        for each in (comparison["breaches"][:top] if top else comparison["breaches"])
    ]
    return [*lines, *changes_text(comparison, top=top).strip("\n").splitlines()]
