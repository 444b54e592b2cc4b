"""How wrong a platform is: tables of its held-out errors, for the terminal and for its card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from tabulate import tabulate

from pytest_neuralpower.reports.held_out import held_out_sections, score_table

#: Name of a score in a platform file -> its heading.
_SCORES: Final = {
    "mape": "MAPE",
    "median_ape": "median",
    "rmspe": "RMSPE",
    "bias": "bias",
    "within_5": "within 5%",
    "within_10": "10%",
    "within_20": "20%",
}

#: Section of a platform's accuracy -> the quantity whose layers it judges.
_LAYERS: Final = {
    "runtime": "runtime",
    "layer_power": "power",
    "layer_energy": "energy",
    "not_shipped": "runtime, not shipped",
}


def accuracy_text(name: str, accuracy: Mapping[str, Any]) -> str:
    """Every table of one platform's accuracy, for the terminal."""
    sections = [
        f"{name}: layers held out by shape, error relative to the measured value; * is shipped",
        *held_out_sections(accuracy),
    ]
    intervals = intervals_table(accuracy)
    if intervals:
        sections += [f"Intervals made to hold {_aim(accuracy)} of what was held out", intervals]
    networks = networks_table(accuracy)
    if networks:
        scores = [
            (key, accuracy["networks"][key])
            for key in ("runtime", "energy")
            if key in accuracy["networks"]
        ]
        sections += ["Whole networks, none fitted", networks, score_table(scores, "networks")]
    power = power_table(accuracy)
    if power:
        sections += [f"Power of whole networks{_carried_over(accuracy['power'])}", power]
    return "\n\n".join(sections)


def _carried_over(power: Mapping[str, Any]) -> str:
    """Of power that was not learnt on this device: from which it was, and what it errs by where."""
    if "transferred" not in power:
        return ""
    error = percent(power["transferred"]["rmspe"])
    return (
        f": carried over from {power['transferred_from']}, judged on\n{power['judged_on']} "
        f"(RMSPE {error}), as nobody measured it here"
    )


def layers_table(accuracy: Mapping[str, Any], style: str = "plain") -> str:
    """Every candidate's held-out error by family, baselines last; the chosen one is marked."""
    rows: list[list[str]] = []
    several = any(accuracy.get(section) for section in list(_LAYERS)[1:])
    for section, quantity in _LAYERS.items():
        for name, found in (accuracy.get(section) or {}).items():
            for candidate, score in _candidates(found):
                head = [*([quantity] if several else []), name, candidate]
                head.append("yes" if candidate == found["chosen"] else "")
                head += [str(found["rows"]), str(found["groups"])]
                if "refused" in score:
                    rows.append([*head, "refused", *[""] * (len(_SCORES) - 1)])
                else:
                    rows.append([*head, *(percent(score.get(key)) for key in _SCORES)])
    headers = [*(["quantity"] if several else []), "family", "estimator", "chosen"]
    return _table(rows, [*headers, "rows", "shapes", *_SCORES.values()], style)


def _candidates(found: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield from found["held_out"].items()
    yield from found.get("baselines", {}).items()


def split_table(accuracy: Mapping[str, Any], style: str = "plain") -> str:
    """Errors on the rows that a source was set apart for; empty where none was."""
    rows: list[list[str]] = []
    for section in ("runtime", "not_shipped"):
        for name, found in (accuracy.get(section) or {}).items():
            split = found.get("split") or {"scores": {}}
            for candidate, score in split["scores"].items():
                head = [name, candidate, "yes" if candidate == split["chosen"] else ""]
                head += [str(split["trained"]), str(split["judged"])]
                if "refused" in score:
                    rows.append([*head, "refused", *[""] * (len(_SCORES) - 1)])
                else:
                    rows.append([*head, *(percent(score.get(key)) for key in _SCORES)])
    headers = ["family", "estimator", "chosen", "trained on", "judged", *_SCORES.values()]
    return _table(rows, headers, style) if rows else ""


#: How the rows with an overhead of their place were judged -> what was done about it.
_OVERHEADS: Final = {
    "ignored": "as published, overhead ignored",
    "added": "as published, overhead of the row's place added",
    "removed": "overhead taken off",
}


def overhead_table(accuracy: Mapping[str, Any], style: str = "plain") -> str:
    """Held-out errors of rows whose latency holds an overhead of their place in the table, the
    overhead estimated without them; empty where there are none."""
    rows = [
        [name, _OVERHEADS[how], str(found["overhead"]["rows"])]
        + [percent(score[key]) for key in _SCORES]
        for section in ("runtime", "not_shipped")
        for name, found in (accuracy.get(section) or {}).items()
        for how, score in found.get("overhead", {"scores": {}})["scores"].items()
    ]
    headers = ["family", "judged", "rows", *_SCORES.values()]
    return _table(rows, headers, style) if rows else ""


def intervals_table(accuracy: Mapping[str, Any], style: str = "plain") -> str:
    """Width and held-out coverage of the intervals by family and of networks; empty if none."""
    found = accuracy.get("intervals")
    if not found:
        return ""
    rows = [
        [quantity, name, f"{each['factor']:.2f}"]
        + [percent(each[key]) for key in ("shapes_percent", "rows_percent")]
        for quantity in ("runtime", "power", "energy")
        for name, each in (found.get(quantity) or {}).items()
    ]
    rows += [
        [quantity, "whole networks", "", f"{each['inside']} of {each['networks']}", ""]
        for quantity, each in (found.get("networks") or {}).items()
    ]
    return _table(
        rows, ["quantity", "family", "within a factor", "holds shapes", "holds rows"], style
    )


def _aim(accuracy: Mapping[str, Any]) -> str:
    return f"{accuracy['intervals']['coverage']:.0%}"


def networks_table(accuracy: Mapping[str, Any], style: str = "plain") -> str:
    """Measured and predicted runtime and energy of whole networks; empty if none."""
    found = accuracy.get("networks")
    if not found:
        return ""
    rows = []
    for name, each in found["networks"].items():
        row = [name, *_pair(each["measured_ms"], each["predicted_ms"])]
        if "measured_j" in each:
            row += _pair(each["measured_j"], each["predicted_j"])
        rows.append(row)
    headers = ["network", "measured ms", "predicted ms", "off", "measured J", "predicted J", "off"]
    return _table(rows, headers[: len(rows[0])], style)


def _pair(measured: float, predicted: float) -> list[str]:
    return [f"{measured:.2f}", f"{predicted:.2f}", f"{predicted / measured - 1:+.1%}"]


def networks_line(accuracy: Mapping[str, Any]) -> str:
    """The networks' scores in one line."""
    found = accuracy["networks"]
    parts = []
    for quantity in ("runtime", "energy"):
        if quantity in found:
            score = found[quantity]
            keys = ("rmspe", "mape", "bias")
            figures = (f"{_SCORES[key]} {percent(score[key])}" for key in keys)
            parts.append(f"{quantity} {', '.join(figures)}")
    return "; ".join(parts)


def power_table(accuracy: Mapping[str, Any], style: str = "plain") -> str:
    """Power of whole networks, each left out of the fit in turn; empty where it was not learnt
    from networks."""
    found = accuracy.get("power")
    if not found or not found.get("networks"):
        return ""
    keys = {"measured_w": "measured W", "held_out_w": "left out W", "fitted_w": "fitted W"}
    rows = [
        [name, *(f"{each[key]:.1f}" if key in each else "" for key in keys)]
        for name, each in found["networks"].items()
    ]
    return _table(rows, ["network", *keys.values()], style)


def percent(value: float | None) -> str:
    """``12.3%``, or nothing."""
    return "" if value is None else f"{value:.1f}%"


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str], style: str) -> str:
    return tabulate(rows, headers, tablefmt=style, disable_numparse=True)
