"""Platforms as people choose them: which device, how it is known, how far it was off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from tabulate import tabulate

#: Families whose error a reader looks at first; `neuralpower platforms NAME` shows them all.
_HEADLINE = ("conv", "linear")


def platforms_text(summaries: Sequence[Mapping[str, Any]]) -> str:
    """One line a platform: tier and held-out error of runtime and of power."""
    rows = [
        (
            summary["name"],
            summary["dtype"],
            _tier(summary, "runtime"),
            *(_layer_error(summary, family) for family in _HEADLINE),
            _network_error(summary),
            _tier(summary, "power"),
            _power_error(summary),
            summary["device"],
        )
        for summary in summaries
    ]
    headers = (
        "platform", "dtype", "runtime", "conv", "linear", "networks", "power", "error", "device",
    )  # fmt: skip
    return "\n".join(
        [
            tabulate(rows, headers, tablefmt="plain", disable_numparse=True),
            "",
            "conv, linear: MAPE of held-out configurations; networks: RMSPE of whole networks",
            "that were not fitted; error: RMSPE of power, each network left out in turn, or, where",
            "it is transferred, on networks of the board that the transfer was judged on.",
            "One platform in full: neuralpower platforms NAME",
        ]
    )


def platform_text(summary: Mapping[str, Any]) -> str:
    """Everything a platform says of itself, as YAML."""
    return yaml.safe_dump(dict(summary), sort_keys=False, allow_unicode=True, width=96).rstrip()


def _tier(summary: Mapping[str, Any], quantity: str) -> str:
    return str(summary["tiers"].get(quantity, "none"))


def _layer_error(summary: Mapping[str, Any], family: str) -> str:
    found = summary["held_out"].get(family)
    return f"{found['mape_percent']:.1f}%" if found else "-"


def _network_error(summary: Mapping[str, Any]) -> str:
    networks = summary["networks"]
    return f"{networks['runtime']['rmspe']:.1f}%" if networks else "-"


def _power_error(summary: Mapping[str, Any]) -> str:
    power = summary["power"]
    score = (power or {}).get("leave_one_network_out") or (power or {}).get("transferred")
    return f"{score['rmspe']:.1f}%" if score else "-"
