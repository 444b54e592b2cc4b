"""The card of a platform: what it is, where its rows come from, how wrong it is. Generated."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from tabulate import tabulate

from pytest_neuralpower.calibrate.calibration_card import calibration_sections
from pytest_neuralpower.files import write_atomically
from pytest_neuralpower.reports.accuracy import (
    intervals_table,
    layers_table,
    networks_line,
    networks_table,
    overhead_table,
    percent,
    power_table,
    split_table,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pytest_neuralpower.platform import Platform


def write_card(platform: Platform, directory: Path) -> Path:
    """Write ``README.md`` of a calibration folder; returns its path."""
    path = directory / "README.md"
    write_atomically(path, card_text(platform))
    return path


def card_text(platform: Platform) -> str:
    """The card in Markdown, from nothing but the platform."""
    tiers = ", ".join(f"{quantity} {tier}" for quantity, tier in platform.tiers.items())
    sections = [
        f"# {platform.name}",
        "Generated from the platform file; do not edit.",
        f"{platform.device}, {platform.dtype}. {platform.mode}.",
        f"Tiers: {tiers}. Content hash `{platform.sha256[:16]}`.",
        "## Layers, held out by shape",
        layers_table(platform.accuracy, "github"),
        "A family that does not beat both baselines is not shipped. "
        "Errors are relative to the measured one. All batch sizes of a shape are held "
        "out together. Other kinds of layer are priced by their traffic at "
        f"{platform.fallback.bandwidth_gbs:g} GB/s, or their operations at "
        f"{platform.fallback.gflops:g} GFLOP/s, and flagged.",
        *_split(platform.accuracy),
        *_overhead(platform.accuracy),
        *_intervals(platform),
        *_networks(platform.accuracy),
        *calibration_sections(platform),
        *_power(platform.accuracy),
        "## Calibrated ranges",
        _ranges(platform),
        "A layer outside any of these is flagged as extrapolated.",
        "## Sources",
        "\n".join(_source(source) for source in platform.provenance.get("sources", ())),
        *_notes(platform.provenance.get("notes", ())),
    ]
    return "\n\n".join(sections) + "\n"


def _split(accuracy: Mapping[str, Any]) -> list[str]:
    table = split_table(accuracy, "github")
    if not table:
        return []
    return ["## Rows set apart to judge", table, "The estimators judged here saw none of these."]


def _overhead(accuracy: Mapping[str, Any]) -> list[str]:
    table = overhead_table(accuracy, "github")
    if not table:
        return []
    each = "; ".join(
        f"{name} {found['overhead']['removed_ms']['recipe']:.2f} ms by the recipe, "
        f"{min(found['overhead']['removed_ms']['folds']):.2f} to "
        f"{max(found['overhead']['removed_ms']['folds']):.2f} ms by the folds"
        for section in ("runtime", "not_shipped")
        for name, found in (accuracy.get(section) or {}).items()
        if "overhead" in found
    )
    text = (
        "Latencies that grow along their table hold an overhead that no layer causes; it was taken "
        "off before the fit, and the tables above judge rows without it. Here layer and overhead "
        f"are both estimated from the other folds alone. In the last row it is: {each}."
    )
    return ["## Overhead of the place in the table", table, text]


#: How the error of a whole call is known -> what the card says of it.
_WHOLE: Final = {
    "networks": "as its measured networks were, few as they are (Student's t takes the place of "
    "the quantile)",
    "alone": "as sums of layers timed alone were in an experiment on another device: no network "
    "was measured in this mode",
    "trials": "as the random networks of the calibration were",
    "in place": "as sums of layers timed inside networks were in an experiment on another device: "
    "no network was measured in this mode",
}


def _intervals(platform: Platform) -> list[str]:
    table = intervals_table(platform.accuracy, "github")
    if not table or platform.intervals is None:
        return []
    whole = math.exp(platform.intervals.runtime.whole)
    why = _WHOLE[platform.accuracy["intervals"]["totals"]]
    text = (
        f"Intervals are made to hold {platform.intervals.coverage:.0%} of the values. What they "
        "hold is counted on shapes (each once) and rows that neither the estimator nor the "
        "interval saw; on networks, with each network left out in turn. Layers outside the "
        "calibrated ranges have wider ones. Beside its layers' errors the runtime of a whole call "
        f"may be off by a factor of {whole:.2f}, {why}."
    )
    return ["## Intervals", table, text]


def _networks(accuracy: Mapping[str, Any]) -> list[str]:
    table = networks_table(accuracy, "github")
    if not table:
        return []
    text = (
        f"{_sentence(networks_line(accuracy))}. Paleo's runtime RMSPE on the same networks is 28%, "
        "NeuralPower's in sample 11.8%. No network's runtime was fitted."
    )
    return ["## Whole networks", table, text]


def _power(accuracy: Mapping[str, Any]) -> list[str]:
    table = power_table(accuracy, "github")
    if not table:
        return []
    found = accuracy["power"]
    if "fitted" not in found:  # not learnt from these networks, only judged by them
        return ["## Power", table, _transferred(found)]
    text = (
        f"{found['free_parameters']} free parameters, fitted to the networks' mean power. RMSPE "
        f"with the network left out {percent(found['leave_one_network_out']['rmspe'])}, fitted "
        f"{percent(found['fitted']['rmspe'])}; the mean of the others "
        f"{percent(found['mean_of_the_others']['rmspe'])}."
    )
    return ["## Power", table, text]


def _transferred(found: Mapping[str, Any]) -> str:
    rows, networks = found["held_out_rows"], found["transferred"]
    return (
        f"Power was learnt from {found['rows']} rows of {found['transferred_from']} (MAPE of rows "
        f"held out {percent(rows['mape'])}) and carried over by shares of peak and bandwidth. "
        f"Carried over likewise to {found['judged_on']}, whose networks were measured and have no "
        f"say in it, it errs by RMSPE {percent(networks['rmspe'])}, bias "
        f"{networks['bias']:+.1f}%; fitted to these very networks, "
        f"{percent(found['fitted_to_networks']['fitted']['rmspe'])}. What it errs by on this "
        "device is not known."
    )


def _ranges(platform: Platform) -> str:
    rows = [
        [name, column, f"{low:g}", f"{high:g}"]
        for name, model in platform.families.items()
        for column, (low, high) in model.ranges.items()
    ]
    headers = ["family", "size", "from", "to"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _source(source: Mapping[str, Any]) -> str:
    facts = [f"**{source.get('title', 'measured rows')}**"]
    facts += [str(source[key]) for key in ("url", "commit", "license") if key in source]
    note = f" {_sentence(source['note'])}." if "note" in source else ""
    return f"- {', '.join(facts)}.{note}{_left_out(source)}"


def _left_out(source: Mapping[str, Any]) -> str:
    """How many rows were used, and why the others were not; empty where all were."""
    reasons = source.get("left_out")
    if not reasons:
        return ""
    each = "; ".join(f"{number:,} ({reason})" for reason, number in reasons.items())
    return f" {source['rows']:,} rows used; left out: {each}."


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:]


def _notes(notes: Any) -> list[str]:
    return ["## Notes", "\n".join(f"- {_sentence(note)}" for note in notes)] if notes else []
