"""What a calibration says when it is done: how well it repeats, how wrong it is, what to type."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pytest_neuralpower.calibrate.calibration_card import LEAST_REPEATABLE
from pytest_neuralpower.calibrate.measured import repeatability_text

if TYPE_CHECKING:
    from pytest_neuralpower.platform import Platform

__all__ = ["closing_lines", "is_repeatable"]


def closing_lines(path: Path, platform: Platform, directory: Path) -> list[str]:
    """Lines for the terminal about a platform that was just written."""
    lines = []
    for record in platform.provenance.get("calibration", ()):
        found = record["repeatability"]
        lines.append(f"repeatability: {repeatability_text(found)}")
        if found is not None and found["p95_percent"] > LEAST_REPEATABLE:
            lines.append(
                f"  p95 above {LEAST_REPEATABLE:g}%: the machine was not quiet; stop what else "
                "runs and measure again, or take smaller differences for noise"
            )
    trials = platform.accuracy.get("intervals", {}).get("trials")
    if trials:
        score = trials["runtime"]
        lines.append(
            f"held-out layers summed to {trials['networks']} random networks: runtime MAPE "
            f"{score['mape']:.1f}%, {score['within_10']:.0f}% within 10%"
        )
    lines.append(f"energy: {_energy(platform)}")
    shown = path if path.is_absolute() else f"./{path}"
    lines += [
        f"wrote {path} and its card {directory / 'README.md'}",
        f"next: pytest --np-platform={shown}",
    ]
    return lines


def _energy(platform: Platform) -> str:
    tier = platform.tiers.get("power")
    if tier is not None:
        return f"{tier}, not measured" if tier == "estimated" else tier
    records = platform.provenance.get("calibration", ())
    if any(record["facts"].get("meter", "none") != "none" for record in records):
        return "none: the meter read too few trials; measure longer, into another folder (--out)"
    return (
        "none: no meter was used; if you know the power under load, --watts W estimates it, in "
        "another folder (--out)"
    )


def is_repeatable(platform: Platform) -> bool:
    """Whether closing trials of a GPU agree with what they repeat; a CPU is only told of it.

    A processor is seldom alone: its differences are published, and no calibration fails of them.
    """
    for record in platform.provenance.get("calibration", ()):
        found = record["repeatability"]
        on_gpu = record["facts"].get("torch_device", "cpu") != "cpu"
        if on_gpu and found is not None and found["p95_percent"] > LEAST_REPEATABLE:
            return False
    return True
