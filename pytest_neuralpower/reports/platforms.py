"""The table of platforms and one platform in full, as text; pure functions on summaries."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import yaml
from tabulate import tabulate

WIDTH: Final = 100

#: What is known of errors by quantity: the key of a summary with its families' errors.
_LAYERS: Final = {
    "runtime": "held_out",
    "power": "held_out_power",
    "energy": "held_out_energy",
}


_MORE: Final = "A platform in full: neuralpower platforms NAME"


def platforms_text(summaries: Sequence[Mapping[str, Any]]) -> str:
    """A line a platform with its tiers of runtime and power, and below it its held-out errors."""
    heads = [
        (
            summary["name"],
            summary["dtype"],
            _tier(summary, "runtime"),
            _tier(summary, "power"),
            summary["device"],
        )
        for summary in summaries
    ]
    headers = ("platform", "dtype", "runtime", "power", "device")
    header, *lines = tabulate(heads, headers, tablefmt="plain", disable_numparse=True).splitlines()
    text = [header]
    for summary, line in zip(summaries, lines, strict=True):
        text.append(line if len(line) <= WIDTH else f"{line[: WIDTH - 3].rstrip()}...")
        for errors in _errors(summary):
            text += textwrap.wrap(errors, WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 6)
    legend = (
        "Figures are held-out errors in %: of kinds of layers MAPE, of whole networks RMSPE. Power "
        "that is transferred was judged on another board's networks; what it errs by here nobody "
        "knows."
    )
    shown = "\n".join([*text, "", *textwrap.wrap(legend, WIDTH), _MORE])
    return shown.replace("\N{NO-BREAK SPACE}", " ")


def platform_text(summary: Mapping[str, Any]) -> str:
    """Everything a platform says of itself, as YAML."""
    return yaml.safe_dump(dict(summary), sort_keys=False, allow_unicode=True, width=96).rstrip()


def _tier(summary: Mapping[str, Any], quantity: str) -> str:
    return str(summary["tiers"].get(quantity, "none"))


def _errors(summary: Mapping[str, Any]) -> Iterator[str]:
    """A line a quantity: the error of each kind of layer, then of whole networks."""
    for quantity, key in _LAYERS.items():
        found = [
            _figure(name, each["mape_percent"]) for name, each in (summary.get(key) or {}).items()
        ]
        found += _networks(summary, quantity)
        if found:
            yield f"{quantity}: {', '.join(found)}"


def _figure(what: str, percent: float) -> str:
    return f"{what}\N{NO-BREAK SPACE}{percent:.1f}"  # a line never breaks between the two


def _networks(summary: Mapping[str, Any], quantity: str) -> list[str]:
    if quantity == "power":
        power = summary.get("power") or {}
        left_out, transferred = power.get("leave_one_network_out"), power.get("transferred")
        if left_out:
            return [_figure("networks", left_out["rmspe"])]
        if transferred and _tier(summary, "power") == "transferred":
            return [_figure(f"networks of {power['judged_on']}", transferred["rmspe"])]
        return []
    score = (summary.get("networks") or {}).get(quantity)
    return [_figure("networks", score["rmspe"])] if score else []
