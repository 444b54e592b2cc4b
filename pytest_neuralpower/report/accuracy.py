"""How accurate a platform is: its held-out errors as tables, for the terminal and for its card."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import yaml
from msgspec import Struct, to_builtins
from tabulate import tabulate

from pytest_neuralpower.estimators.selection import COMPARED

if TYPE_CHECKING:
    from pytest_neuralpower.platform.protocol import Platform, Summary

#: Columns of tables of errors, and of what is read on any terminal.
_WIDTH: Final = 100
_NARROW: Final = 80

#: Name of a score in a platform file -> its heading.
_HEADINGS: Final = {
    "mape": "MAPE",
    "median_ape": "median",
    "rmspe": "RMSPE",
    "bias": "bias",
    "total": "in sum",
    "within_5": "within 5%",
    "within_10": "10%",
    "within_20": "20%",
}
_SIGNED: Final = ("bias", "total")

#: Those of a card.
_SCORES: Final = {key: heading for key, heading in _HEADINGS.items() if key != "total"}

#: Sections of a platform's accuracy -> heading. ``energy`` is only there when it was just measured;
#: a platform file has ``layer_energy``, of the families where it was learnt.
_SECTIONS: Final = {
    "runtime": "Runtime",
    "not_shipped": "Runtime of families that do not ship: no better than a baseline",
    "layer_power": "Power",
    "energy": "Energy",
    "layer_energy": "Energy",
}


class _Group(NamedTuple):
    """Scores of one family under a head line of their own; ``chosen`` is marked."""

    head: str
    scores: Mapping[str, Mapping[str, Any]]
    chosen: str = ""


def _held_out_sections(accuracy: Mapping[str, Any]) -> list[str]:
    """A heading and a table for each quantity: by family every candidate, then the baselines."""
    sections = []
    for section, heading in _SECTIONS.items():
        found = accuracy.get(section)
        if not found or (section == "layer_energy" and "energy" in accuracy):
            continue
        groups = [
            _Group(
                f"{name}: {each['rows']:,} rows of {each['groups']:,} "
                + (" x ".join(each["held_out_by"]) if each.get("held_out_by") else "shapes"),
                {**each["held_out"], **each.get("baselines", {})},
                "" if section == "not_shipped" else each["chosen"],
            )
            for name, each in found.items()
        ]
        sections.append(f"{heading}\n{_score_table_of(groups)}")
    return [*sections, *_split(accuracy), *_overhead(accuracy)]


def _split(accuracy: Mapping[str, Any]) -> list[str]:
    groups = [
        _Group(
            f"{name}: fitted to {split['trained']:,} rows, judged on {split['judged']:,}",
            split["scores"],
            split["chosen"],
        )
        for name, split in _parts(accuracy, "split")
    ]
    heading = "Rows set apart to judge, by estimators that saw none of them"
    return [f"{heading}\n{_score_table_of(groups)}"] if groups else []


def _overhead(accuracy: Mapping[str, Any]) -> list[str]:
    groups = [
        _Group(
            f"{name}: {found['rows']:,} rows",
            {how.replace("removed", "taken off"): each for how, each in found["scores"].items()},
        )
        for name, found in _parts(accuracy, "overhead")
    ]
    heading = (
        "Rows whose latency holds an overhead of their place in the table: ignored, added to\n"
        "what is predicted, or taken off the rows"
    )
    return [f"{heading}\n{_score_table_of(groups)}"] if groups else []


def _parts(accuracy: Mapping[str, Any], part: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """By family, that part of what is known of its runtime."""
    for section in ("runtime", "not_shipped"):
        for name, found in (accuracy.get(section) or {}).items():
            if part in found:
                yield name, found[part]


def _percent_cell(value: float | None, *, signed: bool = False) -> str:
    """``12.3%``; beyond a factor of ten a figure says no more than that."""
    if value is None:
        return ""
    if abs(value) >= 1000:
        return ">999%" if value > 0 else "<-999%"
    return f"{value:+.1f}%" if signed else f"{value:.1f}%"


def _score_table(
    rows: Sequence[tuple[str, Mapping[str, Any]]], first: str, style: str = "plain"
) -> str:
    """One line a score; ``first`` heads the column of their names."""
    return tabulate(
        [
            [name, *(_percent_cell(score.get(key), signed=key in _SIGNED) for key in _HEADINGS)]
            for name, score in rows
        ],
        [first, *_HEADINGS.values()],
        tablefmt=style,
        disable_numparse=True,
        colalign=("left", *["right"] * len(_HEADINGS)),
    )


def _score_table_of(groups: Sequence[_Group]) -> str:
    rows = [
        (f"{name} *" if name == group.chosen else name, score)
        for group in groups
        for name, score in group.scores.items()
    ]
    header, *lines = _score_table(rows, "").splitlines()
    shown = iter(zip(rows, lines, strict=True))
    text = [header]
    for group in groups:
        text.append(group.head)
        for _ in group.scores:
            (label, score), line = next(shown)
            refused = f"{label}: refused, {score.get('refused')}"
            text.append(textwrap.shorten(refused, _WIDTH - 2) if "refused" in score else line)
            text[-1] = f"  {text[-1]}"
    return "\n".join([f"  {text[0]}", *text[1:]])


#: Section of a platform's accuracy -> the quantity whose layers it judges.
_LAYERS: Final = {
    "runtime": "runtime",
    "layer_power": "power",
    "layer_energy": "energy",
    "not_shipped": "runtime, not shipped",
}


class Figure(Struct, frozen=True):
    """One line of the table of what prices and intervals reach.

    Attributes
    ----------
    what
        Is judged.
    figure, reach
        What was found, and what is to be reached, in words; nothing by default.
    met
        Whether it is; None (default) where nothing is to be reached.
    """

    what: str
    figure: str
    reach: str = ""
    met: bool | None = None


#: What the rows that judge prices were looked at for beside judging: nobody should take the figures
#: that hang on it for blind ones.
_SEEN: Final = (
    "No row was fitted where it judges, but rows that judge chose\n"
    "two constants of processors' pools, the power of small boards, input `depth`."
)


def reach_text(figures: Sequence[Figure]) -> str:
    """Table of what prices and intervals reach, for the terminal, and what is not blind in it."""
    marks = {True: "yes", False: "no", None: ""}
    rows = [
        ["\n".join(textwrap.wrap(each.what, 56)), each.figure, each.reach, marks[each.met]]
        for each in figures
    ]
    judged = [each.met for each in figures if each.met is not None]
    table = tabulate(rows, headers=["what", "figure", "reach", "met"], disable_numparse=True)
    return f"{table}\n\n{sum(judged)} of {len(judged)} met. {_SEEN}"


def accuracy_text(name: str, accuracy: Mapping[str, Any]) -> str:
    """Every table of one platform's accuracy, for the terminal."""
    layers = f"{name}: layers held out by shape, error relative to the measured value; * is shipped"
    sections = [layers, *_held_out_sections(accuracy)] if accuracy.get("runtime") else [name]
    intervals = intervals_table(accuracy)
    if intervals and accuracy.get("runtime"):
        sections += [
            f"Intervals made to hold {accuracy['intervals']['coverage']:.0%} of what was held out",
            intervals,
        ]
    if calls := calls_table(accuracy):
        sections += ["Whole calls of networks whose family no fit has seen", calls]
    networks = networks_table(accuracy)
    if networks:
        scores = [
            (key, accuracy["networks"][key])
            for key in ("runtime", "energy", "neuralpower")
            if key in accuracy["networks"]
        ]
        sections += ["Whole networks, none fitted", networks, _score_table(scores, "networks")]
    power = power_table(accuracy)
    if power:
        sections += [power_title(accuracy["power"]), power]
    return "\n\n".join(sections)


def calls_table(accuracy: Mapping[str, Any], style: str = "plain") -> str:
    """Errors of whole calls that a platform was fitted to, held out by family of networks; empty
    where there were none."""
    found = accuracy.get("calls")
    if found is None:
        return ""
    families = f"{found['families']:,} families"
    if found["families"] == found["calls"]:
        families = "each alone"
    scores = [
        (f"{found['calls']:,} calls, {families}", found["held_out"]),
        ("by 20 calls of others", found["from_20"]),
        ("by no call", found["prior"]),
        ("their energy", found.get("energy")),
        (f"{found['waiting']:,} that wait", found.get("host", {}).get("held_out")),
    ]
    return _score_table([each for each in scores if each[1]], "runtime", style)


def parts_table(accuracy: Mapping[str, Any], style: str = "plain") -> str:
    """How calls of each part of a table are predicted and ranked; empty where it has no parts."""
    rows = [
        [part, f"{found['calls']:,}", percent(found["mape"]), f"{found['spearman']:.4f}"]
        for part, found in accuracy.get("calls", {}).get("parts", {}).items()
    ]
    return _table(rows, ["part", "calls", "MAPE", "Spearman"], style) if rows else ""


def layers_table(accuracy: Mapping[str, Any], style: str = "plain") -> str:
    """Every candidate's held-out error by family, baselines last; the chosen one is marked."""
    several = any(accuracy.get(section) for section in list(_LAYERS)[1:])
    rows = [
        [
            *([quantity] if several else []),
            name,
            candidate,
            "yes" if candidate == found["chosen"] else "",
            str(found["rows"]),
            str(found["groups"]),
            *_card_cells(score),
        ]
        for section, quantity in _LAYERS.items()
        for name, found in (accuracy.get(section) or {}).items()
        for candidate, score in {**found["held_out"], **found.get("baselines", {})}.items()
    ]
    headers = [*(["quantity"] if several else []), "family", "estimator", "chosen"]
    return _table(rows, [*headers, "rows", "shapes", *_SCORES.values()], style)


def choices_table(accuracy: Mapping[str, Any], style: str = "plain") -> str:
    """By family the estimator of runtime that was chosen and why, and the paper's beside it."""
    paper = accuracy.get("neuralpower", {})
    rows = []
    for name, found in (accuracy.get("runtime") or {}).items():
        beside = paper.get(name, {}).get("runtime")
        rows.append(
            [
                name,
                found["chosen"],
                _why_chosen(found),
                percent(found["held_out"][found["chosen"]]["rmspe"]),
                *(_paper_cells(beside) if beside else ["-"] * 4),
            ]
        )
    headers = ["family", "chosen", "because it has", "RMSPE"]
    beside = ["NeuralPower's RMSPE", "on the rows", "degree", "terms"]
    return _table(rows, [*headers, *beside], style)


def _why_chosen(found: Mapping[str, Any]) -> str:
    """``the least MAPE``, or what it is simpler than and as good as the rows can tell."""
    chosen = found["chosen"]
    errors = {
        name: score["mape"]
        for name, score in found["held_out"].items()
        if "mape" in score and (name == chosen or name not in COMPARED)
    }
    least = min(errors, key=lambda name: (errors[name], name != chosen))
    if least == chosen:
        return "the least MAPE"
    return f"no more than {least}, by a standard error"


def _paper_cells(score: Mapping[str, Any]) -> list[str]:
    held_out = score["held_out"]
    return [
        percent(held_out.get("rmspe")) if "rmspe" in held_out else "refused",
        percent(score["fitted"]["rmspe"]),
        str(score["degree"]),
        str(score["terms"]),
    ]


def _card_cells(score: Mapping[str, Any]) -> list[str]:
    if "refused" in score:
        return ["refused", *[""] * (len(_SCORES) - 1)]
    return [percent(score.get(key)) for key in _SCORES]


def split_table(accuracy: Mapping[str, Any], style: str = "plain") -> str:
    """Errors on the rows that a source was set apart for; empty where none was."""
    rows = [
        [
            name,
            candidate,
            "yes" if candidate == split["chosen"] else "",
            str(split["trained"]),
            str(split["judged"]),
            *_card_cells(score),
        ]
        for name, split in _parts(accuracy, "split")
        for candidate, score in split["scores"].items()
    ]
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
        [name, _OVERHEADS[how], str(found["rows"]), *_card_cells(score)]
        for name, found in _parts(accuracy, "overhead")
        for how, score in found["scores"].items()
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
        row.append(f"{each['seen_percent']:.0f}%")
        if "neuralpower_ms" in each:
            row += _pair(each["measured_ms"], each["neuralpower_ms"])[1:]
        rows.append(row)
    headers = ["network", "ms", "predicted", "off"]
    any_network = next(iter(found["networks"].values()))
    if "measured_j" in any_network:
        headers += ["J", "predicted", "off"]
    headers.append("seen")
    if "neuralpower_ms" in any_network:
        headers += ["NeuralP.", "off"]
    return _table(rows, headers, style)


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
    """Power of whole networks, each left out of the fit in turn, or of other devices, each left out
    in turn, where it is theirs; empty where rows have it."""
    found = accuracy.get("power") or {}
    if devices := found.get("devices"):
        rows = [[name, percent(error)] for name, error in devices.items()]
        return _table([*rows, ["mean", percent(found["mape"])]], ["left out", "MAPE"], style)
    if not found.get("networks"):
        return ""
    keys = {"measured_w": "measured W", "held_out_w": "left out W", "fitted_w": "fitted W"}
    rows = [
        [name, *(f"{each[key]:.1f}" if key in each else "" for key in keys)]
        for name, each in found["networks"].items()
    ]
    return _table(rows, ["network", *keys.values()], style)


def power_title(power: Mapping[str, Any]) -> str:
    """What the table of power has."""
    if "devices" in power:
        return "Power, not measured here: of devices that were metered, each left out"
    return "Power of whole networks"


def percent(value: float | None) -> str:
    """``12.3%``, or nothing."""
    return "" if value is None else f"{value:.1f}%"


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str], style: str) -> str:
    return tabulate(rows, headers, tablefmt=style, disable_numparse=True)


_MORE: Final = "A platform in full: neuralpower platforms show NAME"


def platforms_text(summaries: Sequence[Summary]) -> str:
    """A line a platform with its tiers of runtime and power; below it, within 80 columns, what the
    device is and its held-out errors."""
    heads = [
        (summary.name, summary.dtype, _tier(summary, "runtime"), _tier(summary, "power"))
        for summary in summaries
    ]
    headers = ("platform", "dtype", "runtime", "power")
    header, *lines = tabulate(heads, headers, tablefmt="plain", disable_numparse=True).splitlines()
    text, judged = [header], False
    for summary, line in zip(summaries, lines, strict=True):
        errors = tuple(_errors(summary))
        judged = judged or bool(errors)
        text.append(line)
        for said in (summary.device, *errors):
            text += textwrap.wrap(said, _NARROW, initial_indent=" " * 4, subsequent_indent=" " * 6)
    legend = (
        "Figures are held-out errors in %: of kinds of layers and of families of networks MAPE, of "
        "whole networks RMSPE. Power that is transferred was judged on other devices, each left "
        "out in turn; its error on this one is not known."
    )
    figures = textwrap.wrap(legend, _NARROW) if judged else []
    shown = "\n".join([*text, "", *figures, _MORE])
    return shown.replace("\N{NO-BREAK SPACE}", " ")


def platform_text(summary: Summary) -> str:
    """Everything a platform says of itself, as YAML."""
    return yaml.safe_dump(
        to_builtins(summary), sort_keys=False, allow_unicode=True, width=96
    ).rstrip()


def _tier(summary: Summary, quantity: str) -> str:
    return summary.tiers.get(quantity, "none")


def _errors(summary: Summary) -> Iterator[str]:
    """A line a quantity: the error of each kind of layer, then of whole networks."""
    by_quantity = {
        "runtime": summary.held_out,
        "power": summary.held_out_power or {},
        "energy": summary.held_out_energy or {},
    }
    for quantity, held_out in by_quantity.items():
        found = [_figure(name, each.mape_percent) for name, each in held_out.items()]
        found += _networks(summary, quantity)
        if found:
            yield f"{quantity}: {', '.join(found)}"


def _figure(what: str, percent: float) -> str:
    return f"{what}\N{NO-BREAK SPACE}{percent:.1f}"  # a line never breaks between the two


def _networks(summary: Summary, quantity: str) -> list[str]:
    held_out = {"runtime": "held_out", "energy": "energy"}.get(quantity, "")
    if summary.calls and summary.calls.get(held_out):
        return [_figure("families of networks", summary.calls[held_out]["mape"])]
    if quantity == "power":
        power = summary.power or {}
        if left_out := power.get("leave_one_network_out"):
            return [_figure("networks", left_out["rmspe"])]
        return [_figure("other devices left out", power["mape"])] if "devices" in power else []
    score = (summary.networks or {}).get(quantity)
    return [_figure("networks", score["rmspe"])] if score else []


def platform_facts(platform: Platform) -> dict[str, str]:
    """Device, data type, mode, how each quantity is known, and the sources of its rows."""
    facts = {"device": platform.device, "dtype": platform.dtype, "mode": platform.mode}
    estimator = getattr(platform, "estimator", "best")
    if estimator != "best":
        facts["estimator"] = estimator
    facts |= {f"{quantity} is": tier for quantity, tier in platform.tiers.items()}
    sources = platform.provenance.get("sources", ())
    titles = [str(each.get("title", "")) for each in sources]
    if any(titles):
        facts["sources"] = "; ".join(filter(None, titles))
    return facts
