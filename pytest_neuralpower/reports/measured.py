"""Measured beside predicted or calibrated, as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from tabulate import tabulate

from pytest_neuralpower.units import Quantity, show

if TYPE_CHECKING:
    from pytest_neuralpower.measure.network import MeasuredCall
    from pytest_neuralpower.measure.verify import Verification
    from pytest_neuralpower.prediction import Interval, Prediction

__all__ = [
    "comparison_record",
    "comparison_text",
    "measured_lines",
    "verification_record",
    "verification_text",
]

#: Quantity, its attribute, and its interval's.
_QUANTITIES = (
    ("runtime", "runtime_ms", "runtime_interval_ms"),
    ("power", "power_w", "power_interval_w"),
    ("energy", "energy_mj", "energy_interval_mj"),
)


def comparison_record(
    measured: MeasuredCall, prediction: Prediction, device: str
) -> dict[str, Any]:
    """Every quantity that was measured, with its prediction, in JSON types."""
    record: dict[str, Any] = {
        "model": prediction.model,
        "platform": prediction.platform,
        "device": device,
        "calls": measured.calls,
        "median_ms": measured.median_ms,
    }
    for quantity, key, interval_key in _QUANTITIES:
        value = getattr(measured, key)
        if value is None:
            continue
        interval: Interval | None = getattr(prediction, interval_key)
        predicted = getattr(prediction, key)
        record[quantity] = {
            "measured": value,
            "predicted": predicted,
            "error_percent": None if not predicted else 100 * (predicted / value - 1),
            "inside_interval": None
            if interval is None
            else bool(interval.low <= value <= interval.high),
        }
    return record


def measured_lines(record: Mapping[str, Any]) -> list[str]:
    """One line a quantity: ``runtime: measured 12.3 ms, predicted 12.9 ms (+4.9%), ...``."""
    lines = []
    for quantity, *_ in _QUANTITIES:
        found = record.get(quantity)
        if found is None:
            continue
        name = cast("Quantity", quantity)
        text = f"{quantity}: measured {show(name, found['measured'])}"
        if found["predicted"] is not None:
            text += f", predicted {show(name, found['predicted'])} ({found['error_percent']:+.1f}%)"
        if found["inside_interval"] is not None:
            place = "inside" if found["inside_interval"] else "outside"
            text += f", {place} its interval"
        lines.append(text)
    return lines


def comparison_text(record: Mapping[str, Any]) -> str:
    """What ``neuralpower measure`` prints."""
    return "\n".join(
        [
            f"{record['model']} on {record['device']}, platform {record['platform']}",
            *measured_lines(record),
            f"least of {record['calls']} calls, their median {show('runtime', record['median_ms'])}"
            + ("" if "energy" in record else "; energy was not measured: no meter"),
        ]
    )


def verification_record(found: Verification) -> dict[str, Any]:
    """The drifts in JSON types."""
    return {
        "platform": found.platform,
        "device": found.device,
        "holds": found.holds,
        "passes": found.passes,
        "drifts": [
            {
                "kind": drift.kind,
                "calibrated_ms": drift.calibrated_ms,
                "measured_ms": drift.measured_ms,
                "change_percent": 100 * drift.change,
                "limit_percent": None if drift.limit is None else 100 * drift.limit,
                "holds": drift.holds,
            }
            for drift in found.drifts
        ],
    }


def verification_text(found: Verification) -> str:
    """A table of drifts and what follows from it."""
    rows: Sequence[tuple[str, ...]] = [
        (
            drift.kind,
            show("runtime", drift.calibrated_ms),
            show("runtime", drift.measured_ms),
            f"{100 * drift.change:+.1f}%",
            "-" if drift.limit is None else f"{100 * drift.limit:.0f}%",
            "" if drift.holds else "too far",
        )
        for drift in found.drifts
    ]
    headers = ("kind", "calibrated", "now", "drift", "limit", "")
    align = ("left", "right", "right", "right", "right", "left")
    table = tabulate(rows, headers, tablefmt="plain", colalign=align, disable_numparse=True)
    specimen = "" if found.same_specimen else " (another specimen than the one calibrated)"
    verdict = (
        f"{found.platform} holds on this {found.device}{specimen}"
        if found.holds
        else f"{found.platform} no longer holds on this {found.device}{specimen}: calibrate anew "
        "with neuralpower calibrate, or see what changed (versions, clocks, load)"
    )
    passes = "pass" if found.passes == 1 else "passes"
    return f"{table}\n\n{verdict} ({found.passes} {passes})"
