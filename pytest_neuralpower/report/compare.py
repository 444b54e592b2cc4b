"""What has changed since a baseline, for terminals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pytest_neuralpower.text import printable
from pytest_neuralpower.units import Quantity, show, show_percent

if TYPE_CHECKING:
    from pytest_neuralpower.guard.compare import Breach, CauseSum, Comparison, TotalChange
    from pytest_neuralpower.guard.compare_sources import ComparedModel
    from pytest_neuralpower.guard.finding import Finding
    from pytest_neuralpower.guard.tolerance import ComparedQuantity
    from pytest_neuralpower.platform.prediction import Prediction


def values_of(found: Finding | Prediction) -> dict[Quantity, float | None]:
    """Energy (mJ), runtime (ms) and power (W) of one call; None for what is not known."""
    return {"energy": found.energy_mj, "runtime": found.runtime_ms, "power": found.power_w}


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


def change_cell(total: TotalChange | None, quantity: Quantity) -> str:
    """``1.20 J -> 1.47 J, +22.5%``; a dash where the quantity is not known."""
    if total is None:
        return "-"
    before, after = total.base, total.head
    if before == after or abs(after - before) <= 1e-9 * abs(before):
        return f"{show(quantity, after)}, unchanged"
    return f"{show(quantity, before)} -> {show(quantity, after)}, {signed_percent(before, after)}"


def regression_text(found: Comparison, *, platform: str, path: str, top: int, accept: str) -> str:
    """What people read when a model costs more than its baseline allows."""
    lines = [f"costs more than its baseline: {found.model[1]} on {platform}"]
    totals = found.known()
    for breach in found.breaches:
        if breach.layer is None:
            lines += [
                f"  {breach.quantity:8} {_breach_text(breach)} per {breach.per}",
                *_interval_lines(totals[breach.quantity], breach.quantity),
            ]
    layers = [each for each in found.breaches if each.layer is not None]
    shown = layers[:top] if top else layers
    lines += [f"  {each.quantity}{_of_layer(each)}: {_breach_text(each)}" for each in shown]
    if len(shown) < len(layers):
        lines.append(f"  and {len(layers) - len(shown)} more layers")
    lines += [f"  {line}".rstrip() for line in changes_text(found, top=top).splitlines()]
    return "\n".join([*lines, "", f"  baseline: {path}", f"  accept:   {accept}"])


def _of_layer(breach: Breach) -> str:
    return "" if breach.layer is None else f" of layer {printable(breach.layer) or '(root)'}"


def _breach_text(breach: Breach) -> str:
    quantity, before, after = breach.quantity, breach.before, breach.after
    limit = signed(quantity, breach.allowed) if breach.allowed else "no growth"
    return (
        f"{show(quantity, before)} -> {show(quantity, after)}, {signed_percent(before, after)} "
        f"({signed(quantity, after - before)}; allowed: {limit})"
    )


def _interval_lines(total: TotalChange, quantity: Quantity) -> list[str]:
    if total.interval is None:
        return []
    low, high, coverage = total.interval
    sure = f"{coverage:.0%} sure to be more" if low > 0 else "may be no more than before"
    if low == 0:  # what the comparison knows of the layers' work
        sure = "not less, as no layer does less"
    return [
        f"           change between {signed(quantity, low)} and {signed(quantity, high)}: {sure}"
    ]


def changes_text(found: Comparison, *, top: int) -> str:
    """What is calibration, what is the model and why, and the ``top`` layers that changed most."""
    lines = [*_calibration_lines(found), *_batch_lines(found)]
    if not found.layers:
        return "\n".join([*lines, f"the model is unchanged: {found.unchanged} layers"])
    basis: ComparedQuantity = "energy" if found.energy is not None else "runtime"
    rows = [
        (
            signed(basis, each.energy_mj if basis == "energy" else each.runtime_ms),
            f"{each.layers} layer{'' if each.layers == 1 else 's'}",
            _cause_text(each),
        )
        for each in found.causes
    ]
    lines += ["", "why, of the model:", *_columns(rows, indent=2)]
    changed = [each for each in found.layers if each.delta(basis)]
    changed.sort(key=lambda each: -abs(each.delta(basis)))
    shown = changed[:top] if top else changed
    if shown:
        lines += ["", f"the {len(shown)} layers that changed most, of {len(changed)}:"]
        table = [
            (
                signed(basis, each.delta(basis)),
                signed_percent(*each.values(basis)),
                each.op,
                "; ".join(cause.name for cause in each.causes),
                printable(each.path) or "(root)",
            )
            for each in shown
        ]
        lines += _columns(table, indent=2, right=2)
    return "\n".join(lines)


def _calibration_lines(found: Comparison) -> list[str]:
    if not found.recalibrated:
        return []
    lines = ["the platform was recalibrated since: its share is not a change of the model"]
    before, now = found.estimators
    if before != now:
        lines = [
            f"the baseline was accepted with estimator {before} and is predicted again with {now}: "
            "their difference, below as calibration, is not a change of the model"
        ]
    for quantity, total in found.known().items():
        if total.stored is not None and total.calibration is not None:
            lines.append(
                f"  {quantity:8} {show(quantity, total.stored)} -> {show(quantity, total.head)} "
                f"in all: calibration {signed(quantity, total.calibration)} "
                f"({signed_percent(total.stored, total.base)}), "
                f"model {signed(quantity, total.head - total.base)} "
                f"({signed_percent(total.base, total.head)})"
            )
    return lines


def _batch_lines(found: Comparison) -> list[str]:
    before, after = found.batches
    if before == after or not before or not after:
        return []
    parts = []
    for quantity, total in found.known().items():
        one, other = total.base / before, total.head / after
        parts.append(
            f"{show(quantity, one)} -> {show(quantity, other)} ({signed_percent(one, other)})"
        )
    return [f"the batch changed from {before} to {after}: per sample {', '.join(parts)}"]


def _cause_text(cause: CauseSum) -> str:
    example = printable(cause.detail or cause.example) or "(root)"
    return f"{cause.cause}: {example}{'' if cause.layers == 1 else ', ...'}"


def _columns(rows: Sequence[tuple[str, ...]], *, indent: int, right: int = 1) -> list[str]:
    """Aligned columns, the first ``right`` to the right."""
    from tabulate import tabulate  # noqa: PLC0415 - an idle plugin loads nothing

    align = ["right"] * right + ["left"] * (len(rows[0]) - right)
    text = tabulate(rows, tablefmt="plain", colalign=align, disable_numparse=True)
    return [" " * indent + line.rstrip() for line in text.splitlines()]


#: Outcome of a comparison -> how its line starts.
_STATUS: Final = {"ok": "ok", "regressed": "WORSE", "new": "new", "removed": "removed",
                  "failed": "ERROR"}  # fmt: skip


def compare_text(found: Sequence[ComparedModel], *, top: int) -> str:
    """Every model of two sets of predictions in one table, then what changed in each."""
    rows = [("", "model", "platform", "energy", "runtime")]
    details = []
    for each in found:
        rows.append((_STATUS[each.outcome], each.title, each.platform, *total_cells(each)))
        title = f"{each.name} on {each.platform}"
        if each.error is not None:
            details += ["", f"{title}: {each.error}"]
        elif each.comparison is not None and each.comparison.changed:
            lines = _detail_lines(each.comparison, top)
            details += ["", title, *(f"  {line}".rstrip() for line in lines)]
    return "\n".join([*_columns(rows, indent=0, right=0), *details])


def total_cells(each: ComparedModel) -> tuple[str, str]:
    """Energy and runtime of a model before and after, or on the one side where it is."""
    if each.comparison is None:
        values: tuple[tuple[Quantity, float | None], ...] = (
            ("energy", each.energy_mj),
            ("runtime", each.runtime_ms),
        )
        energy, runtime = (
            "-" if value is None else show(quantity, value) for quantity, value in values
        )
        return energy, runtime
    return (
        change_cell(each.comparison.energy, "energy"),
        change_cell(each.comparison.runtime, "runtime"),
    )


def _detail_lines(comparison: Comparison, top: int) -> list[str]:
    lines = [
        f"beyond the tolerance: {each.quantity}{_of_layer(each)} {_breach_text(each)} "
        f"per {each.per}"
        for each in (comparison.breaches[:top] if top else comparison.breaches)
    ]
    return [*lines, *changes_text(comparison, top=top).strip("\n").splitlines()]
