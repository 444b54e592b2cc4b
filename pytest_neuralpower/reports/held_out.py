"""Held-out errors of layers for the terminal: one table a quantity, at most 100 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from tabulate import tabulate

WIDTH: Final = 100

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

#: Sections of a platform's accuracy -> heading. ``energy`` is only there when it is measured anew;
#: a platform file has ``layer_energy``, of the families where it was learnt.
_SECTIONS: Final = {
    "runtime": "Runtime",
    "not_shipped": "Runtime of families that do not ship: no better than a baseline",
    "layer_power": "Power",
    "energy": "Energy",
    "layer_energy": "Energy",
}


#: How rows with an overhead of their place in the table were judged -> what was done about it.
_OVERHEADS: Final = {"ignored": "ignored", "added": "added", "removed": "taken off"}


class _Group(NamedTuple):
    """Scores of one family under a head line of their own; ``chosen`` is marked."""

    head: str
    scores: Mapping[str, Mapping[str, Any]]
    chosen: str = ""


def held_out_sections(accuracy: Mapping[str, Any]) -> list[str]:
    """A heading and a table for each quantity: by family every candidate, then the baselines."""
    sections = []
    for section, heading in _SECTIONS.items():
        found = accuracy.get(section)
        if not found or (section == "layer_energy" and "energy" in accuracy):
            continue
        groups = [
            _Group(
                f"{name}: {each['rows']:,} rows of {each['groups']:,} shapes",
                {**each["held_out"], **each.get("baselines", {})},
                "" if section == "not_shipped" else each["chosen"],
            )
            for name, each in found.items()
        ]
        sections.append(f"{heading}\n{_table(groups)}")
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
    return [f"{heading}\n{_table(groups)}"] if groups else []


def _overhead(accuracy: Mapping[str, Any]) -> list[str]:
    groups = [
        _Group(
            f"{name}: {found['rows']:,} rows",
            {_OVERHEADS[how]: score for how, score in found["scores"].items()},
        )
        for name, found in _parts(accuracy, "overhead")
    ]
    heading = (
        "Rows whose latency holds an overhead of their place in the table: ignored, added to\n"
        "what is predicted, or taken off the rows"
    )
    return [f"{heading}\n{_table(groups)}"] if groups else []


def _parts(accuracy: Mapping[str, Any], part: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """By family, that part of what is known of its runtime."""
    for section in ("runtime", "not_shipped"):
        for name, found in (accuracy.get(section) or {}).items():
            if part in found:
                yield name, found[part]


def percent_cell(value: float | None, *, signed: bool = False) -> str:
    """``12.3%``; beyond a factor of ten a figure says no more than that."""
    if value is None:
        return ""
    if abs(value) >= 1000:
        return ">999%" if value > 0 else "<-999%"
    return f"{value:+.1f}%" if signed else f"{value:.1f}%"


def score_cells(score: Mapping[str, Any]) -> list[str]:
    """The cells of one score, in the order of the headings."""
    return [percent_cell(score.get(key), signed=key in _SIGNED) for key in _HEADINGS]


def score_table(rows: Sequence[tuple[str, Mapping[str, Any]]], first: str) -> str:
    """One line a score; ``first`` heads the column of their names."""
    return tabulate(
        [[name, *score_cells(score)] for name, score in rows],
        [first, *_HEADINGS.values()],
        tablefmt="plain",
        disable_numparse=True,
        colalign=("left", *["right"] * len(_HEADINGS)),
    )


def _table(groups: Sequence[_Group]) -> str:
    rows = [
        (f"{name} *" if name == group.chosen else name, score)
        for group in groups
        for name, score in group.scores.items()
    ]
    header, *lines = score_table(rows, "").splitlines()
    shown = iter(zip(rows, lines, strict=True))
    text = [header]
    for group in groups:
        text.append(group.head)
        for _ in group.scores:
            (label, score), line = next(shown)
            refused = f"{label}: refused, {score.get('refused')}"
            text.append(textwrap.shorten(refused, WIDTH - 2) if "refused" in score else line)
            text[-1] = f"  {text[-1]}"
    return "\n".join([f"  {text[0]}", *text[1:]])
