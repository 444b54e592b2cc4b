"""The card of a platform: what it is, where its rows come from, how wrong it is. Generated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tabulate import tabulate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pytest_neuralpower.platform import Platform


def write_card(platform: Platform, directory: Path) -> Path:
    """Write ``README.md`` of a calibration folder; returns its path."""
    path = directory / "README.md"
    path.write_text(card_text(platform), encoding="utf-8")
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
        _held_out(platform.accuracy["runtime"]),
        "Errors are of runtime, relative to the measured one. All batch sizes of a shape are held "
        "out together. Other kinds of layer are priced by their traffic at "
        f"{platform.fallback.bandwidth_gbs:g} GB/s, or their operations at "
        f"{platform.fallback.gflops:g} GFLOP/s, and flagged.",
        *_networks(platform.accuracy.get("networks")),
        *_power(platform.accuracy.get("power")),
        "## Calibrated ranges",
        _ranges(platform),
        "A layer outside is flagged as extrapolated.",
        "## Sources",
        "\n".join(_source(source) for source in platform.provenance.get("sources", ())),
        *_notes(platform.provenance.get("notes", ())),
    ]
    return "\n\n".join(sections) + "\n"


def _table(rows: list[list[Any]], headers: list[str]) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _percent(value: float) -> str:
    return f"{value:.1f}%"


def _held_out(found: Mapping[str, Any]) -> str:
    rows = []
    for name, each in found.items():
        for candidate, score in each["held_out"].items():
            chosen = "yes" if candidate == each["chosen"] else ""
            size = [str(each["rows"]), str(each["groups"])]
            if "refused" in score:
                rows.append([name, candidate, chosen, *size, "refused", "", "", ""])
                continue
            figures = [score[key] for key in ("mape", "median_ape", "rmspe", "bias")]
            rows.append([name, candidate, chosen, *size, *map(_percent, figures)])
    headers = ["family", "estimator", "chosen", "rows", "shapes"]
    return _table(rows, [*headers, "MAPE", "median", "RMSPE", "bias"])


def _networks(found: Mapping[str, Any] | None) -> list[str]:
    if not found:
        return []
    rows = []
    for name, each in found["networks"].items():
        error = each["predicted_ms"] / each["measured_ms"] - 1
        row = [name, f"{each['measured_ms']:.2f}", f"{each['predicted_ms']:.2f}", f"{error:+.1%}"]
        if "measured_j" in each:
            error = each["predicted_j"] / each["measured_j"] - 1
            row += [f"{each['measured_j']:.2f}", f"{each['predicted_j']:.2f}", f"{error:+.1%}"]
        rows.append(row)
    headers = ["network", "measured ms", "predicted ms", "off", "measured J", "predicted J", "off"]
    text = f"Runtime RMSPE {_percent(found['runtime']['rmspe'])}"
    if "energy" in found:
        text += f", energy RMSPE {_percent(found['energy']['rmspe'])}"
    text += (
        ". Paleo's runtime RMSPE on the same networks is 28%, NeuralPower's in sample 11.8%. No "
        "network's runtime was fitted."
    )
    return ["## Whole networks", _table(rows, headers[: len(rows[0])]), text]


def _power(found: Mapping[str, Any] | None) -> list[str]:
    if not found:
        return []
    rows = [
        [name, *(f"{each[key]:.1f}" for key in ("measured_w", "held_out_w", "fitted_w"))]
        for name, each in found["networks"].items()
    ]
    text = (
        f"{found['free_parameters']} free parameters, fitted to the networks' mean power. RMSPE "
        f"with the network left out {_percent(found['leave_one_network_out']['rmspe'])}, fitted "
        f"{_percent(found['fitted']['rmspe'])}; the mean of the others "
        f"{_percent(found['mean_of_the_others']['rmspe'])}."
    )
    headers = ["network", "measured W", "left out W", "fitted W"]
    return ["## Power", _table(rows, headers), text]


def _ranges(platform: Platform) -> str:
    rows = [
        [name, column, f"{low:g}", f"{high:g}"]
        for name, model in platform.families.items()
        for column, (low, high) in model.ranges.items()
    ]
    return _table(rows, ["family", "size", "from", "to"])


def _source(source: Mapping[str, Any]) -> str:
    facts = [f"**{source.get('title', 'measured rows')}**"]
    facts += [str(source[key]) for key in ("url", "commit", "license") if key in source]
    note = f" {_sentence(source['note'])}." if "note" in source else ""
    return f"- {', '.join(facts)}.{note}"


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:]


def _notes(notes: Any) -> list[str]:
    return ["## Notes", "\n".join(f"- {_sentence(note)}" for note in notes)] if notes else []
