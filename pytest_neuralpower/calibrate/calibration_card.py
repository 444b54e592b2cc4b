"""What the card of a measured platform says beside: how it was measured, and a figure."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tabulate import tabulate

from pytest_neuralpower.calibrate.measured import repeatability_text
from pytest_neuralpower.files import write_atomically
from pytest_neuralpower.reports.scatter_svg import NETWORKS, Dot, scatter_svg

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_neuralpower.calibrate.fit import Fitted
    from pytest_neuralpower.platform import Platform

__all__ = ["calibration_sections", "write_figure"]

#: Figure beside the card of a measured platform.
FIGURE: Final = "accuracy.svg"

#: p95 of the closing differences, %, above which a calibration is called not repeatable.
LEAST_REPEATABLE: Final = 5.0


def calibration_sections(platform: Platform) -> list[str]:
    """Sections of the card; empty for a platform that was not measured by trials."""
    records = platform.provenance.get("calibration", ())
    if not records:
        return []
    return [
        "## Measured",
        "\n\n".join(_record(record) for record in records),
        *_trials(platform),
        "A kind of layer is kept where it beats the fallback, which would price it instead, even "
        "if a baseline that was fitted to it does as well.",
        *_not_fitted(platform),
        f"![predicted against measured runtime]({FIGURE})",
        f"To see whether it still holds on the device: `neuralpower verify {platform.name}.json`.",
    ]


def write_figure(fitted: Fitted, directory: Path) -> None:
    """Draw held-out layers and networks of a measured platform; nothing for others."""
    platform = fitted.platform
    if not platform.provenance.get("calibration"):
        return
    dots = [
        Dot(name, row.runtime_ms, predicted)
        for name, fit in fitted.families.items()
        for row, predicted in zip(fit.rows, fit.runtime.held_out.tolist(), strict=True)
    ]
    trials = platform.accuracy.get("intervals", {}).get("trials", {})
    pairs = zip(trials.get("measured_ms", ()), trials.get("predicted_ms", ()), strict=True)
    dots += [Dot(NETWORKS, measured, predicted) for measured, predicted in pairs]
    title = f"Runtime on {platform.name}: held-out shapes, and random networks as their sums"
    write_atomically(directory / FIGURE, scatter_svg(dots, title=title))


def _record(record: Mapping[str, Any]) -> str:
    found = record["repeatability"]
    lines = [
        f"{record['networks']} random networks, {record['layers']} layers timed in place"
        + (f", {record['flawed']} left out" if record["flawed"] else "")
        + f". Repeatability: {repeatability_text(found)}."
    ]
    if found is not None and found["p95_percent"] > LEAST_REPEATABLE:
        lines.append(
            f"**Its 95th percentile is above {LEAST_REPEATABLE:g}%: the machine was not quiet, and "
            "no difference smaller than that means anything.**"
        )
    rows = [(key.replace("_", " "), value) for key, value in record["facts"].items() if value]
    return "\n\n".join([*lines, tabulate(rows, ("fact", "value"), "github", disable_numparse=True)])


def _not_fitted(platform: Platform) -> list[str]:
    found = platform.accuracy.get("not_fitted") or {}
    if not found:
        return []
    return ["Priced by their traffic, for too few rows could be predicted: " + ", ".join(found)]


def _trials(platform: Platform) -> list[str]:
    found = platform.accuracy.get("intervals", {}).get("trials")
    if not found or platform.intervals is None:
        return []
    score, count = found["runtime"], found["networks"]
    whole = math.expm1(platform.intervals.runtime.whole)
    return [
        f"Sums of held-out layers against the {count} whole random networks: MAPE "
        f"{score['mape']:.1f}%, bias {score['bias']:+.1f}%, "
        f"{score['within_10']:.0f}% within 10%. 90% intervals held {found['inside']} of {count}; "
        f"beside its layers' errors a call may be off by {whole:.0%}."
    ]
