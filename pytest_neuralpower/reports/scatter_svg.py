"""Predicted against measured as an SVG: plain shapes that a repository's page shows as an image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias
from xml.sax.saxutils import escape

__all__ = ["Dot", "scatter_svg"]

_Scale: TypeAlias = Callable[[float], float]

_SIZE: Final = 560
_LEFT, _TOP, _LEGEND = 70, 40, 190
#: Okabe and Ito's colours, which colour-blind readers tell apart, then greys.
_COLOURS: Final = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b3a200", "#7f7f7f",
)  # fmt: skip
#: Dots of one group, at most: more add bytes and no knowledge.
_MOST_DOTS: Final = 300
#: Group whose dots are drawn larger and on top.
NETWORKS: Final = "networks"


@dataclass(frozen=True, slots=True)
class Dot:
    """One value, measured and predicted, ms."""

    group: str
    measured: float
    predicted: float


def scatter_svg(dots: Sequence[Dot], *, title: str) -> str:
    """A logarithmic chart with the diagonal and a factor of 1.2 to both sides of it.

    Of groups with more than 300 dots every n-th is drawn.
    """
    values = [value for dot in dots for value in (dot.measured, dot.predicted) if value > 0]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)

    def x(value: float) -> float:
        return round(_LEFT + _SIZE * (math.log10(value) - low) / (high - low), 1)

    def y(value: float) -> float:
        return round(_TOP + _SIZE * (high - math.log10(value)) / (high - low), 1)

    groups = sorted({dot.group for dot in dots}, key=lambda name: (name == NETWORKS, name))
    parts = [_axes(low, high, x, y), _diagonals(low, high, x, y)]
    for index, group in enumerate(groups):
        members = [dot for dot in dots if dot.group == group and min(dot.measured, dot.predicted)]
        networks = group == NETWORKS
        colour = "#000000" if networks else _COLOURS[index % len(_COLOURS)]
        style = 'fill-opacity="0.85"' if networks else 'fill-opacity="0.45"'
        radius = 3.5 if networks else 2.2
        step = max(1, math.ceil(len(members) / _MOST_DOTS))
        circles = "".join(
            f'<circle cx="{x(dot.measured)}" cy="{y(dot.predicted)}" r="{radius}"/>'
            for dot in members[::step]
        )
        parts.append(f'<g fill="{colour}" {style}>{circles}</g>')
        height = _TOP + 16 + 20 * index
        parts.append(
            f'<circle cx="{_LEFT + _SIZE + 22}" cy="{height - 4}" r="5" fill="{colour}"/>'
            f'<text x="{_LEFT + _SIZE + 34}" y="{height}">{escape(group)} ({len(members)})</text>'
        )
    width, height = _LEFT + _SIZE + _LEGEND, _TOP + _SIZE + 60
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="13">'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
        f'<text x="{_LEFT}" y="24" font-size="15">{escape(title)}</text>'
        + "".join(parts)
        + "</svg>\n"
    )


def _axes(low: int, high: int, x: _Scale, y: _Scale) -> str:
    bottom, right = _TOP + _SIZE, _LEFT + _SIZE
    lines = []
    for power in range(low, high + 1):
        value, text = 10.0**power, f"{10.0**power:g}"
        lines.append(
            f'<path d="M{x(value)} {_TOP}V{bottom}M{_LEFT} {y(value)}H{right}" stroke="#dddddd"/>'
            f'<text x="{x(value)}" y="{bottom + 18}" text-anchor="middle">{text}</text>'
            f'<text x="{_LEFT - 8}" y="{y(value) + 4}" text-anchor="end">{text}</text>'
        )
    middle = _TOP + _SIZE / 2
    return (
        "".join(lines)
        + f'<text x="{_LEFT + _SIZE / 2}" y="{bottom + 42}" text-anchor="middle">measured, ms'
        f'</text><text transform="translate(20 {middle}) rotate(-90)" text-anchor="middle">'
        "predicted, ms</text>"
    )


def _diagonals(low: int, high: int, x: _Scale, y: _Scale) -> str:
    first, last = 10.0**low, 10.0**high
    dash = 'stroke="#888888" stroke-dasharray="4 4"'
    return (
        f'<path d="M{x(first)} {y(first)}L{x(last)} {y(last)}" stroke="#444444"/>'
        f'<path d="M{x(first)} {y(1.2 * first)}L{x(last / 1.2)} {y(last)}" {dash}/>'
        f'<path d="M{x(1.2 * first)} {y(first)}L{x(last)} {y(last / 1.2)}" {dash}/>'
    )
