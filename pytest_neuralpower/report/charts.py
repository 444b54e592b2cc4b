"""Charts as self-contained HTML pages drawn by plotly, and as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from xml.sax.saxutils import escape

from pytest_neuralpower.errors import MissingExtraError, ReportError
from pytest_neuralpower.files import write_atomically

if TYPE_CHECKING:
    from pytest_neuralpower.report.epr import Ranked

_HEIGHT = 620


@dataclass(frozen=True, slots=True)
class Point:
    """One measured value and what was predicted without it.

    Attributes
    ----------
    group
        The layer's family, or ``networks``.
    text
        The layer, or the network's name.
    measured, predicted
        ms.
    """

    group: str
    text: str
    measured: float
    predicted: float


def check_page(path: Path) -> None:
    """Raise now what :func:`write_page` would later, when minutes may have been spent.

    Raises
    ------
    MissingExtraError
        plotly is not installed.
    ReportError
        There is no such folder.
    """
    _plotly_graphs()
    if not path.parent.is_dir():
        raise ReportError(f"--html {path}: there is no folder {path.parent}; make it first")


def write_page(figure: Any, path: Path) -> None:
    """Write a plotly figure as one HTML file that works from ``file://`` without network.

    Raises
    ------
    ReportError
        It cannot be written; a page that is there stays as it was.
    """
    try:
        write_atomically(path, figure.to_html(include_plotlyjs=True, full_html=True))
    except OSError as error:
        raise ReportError(f"--html {path}: it cannot be written ({error})") from None


def _plotly_graphs() -> Any:
    """``plotly.graph_objects``, or an error that names the extra which brings it."""
    try:
        import plotly.graph_objects as graphs  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtraError(
            "charts need plotly, which is not installed: pip install 'pytest-neuralpower[html]'"
        ) from error
    return graphs


def accuracy_figure(points: Sequence[Point], *, platform: str) -> Any:
    """Predicted against measured runtime, both logarithmic; one colour a family of layers."""
    graphs = _plotly_graphs()
    values = [value for point in points for value in (point.measured, point.predicted)]
    ends = [min(values), max(values)]
    figure = graphs.Figure()
    for off, dash in ((1.0, "solid"), (1.2, "dot"), (1 / 1.2, "dot")):
        figure.add_scatter(
            x=ends,
            y=[off * end for end in ends],
            mode="lines",
            line={"color": "grey", "width": 1, "dash": dash},
            name="as measured" if off == 1.0 else "a factor of 1.2 off",
            legendgroup=dash,
            showlegend=off >= 1.0,
            hoverinfo="skip",
        )
    for group in dict.fromkeys(point.group for point in points):
        members = [point for point in points if point.group == group]
        networks = group == "networks"
        figure.add_scatter(
            x=[point.measured for point in members],
            y=[point.predicted for point in members],
            mode="markers",
            text=[point.text for point in members],
            customdata=[100 * (point.predicted / point.measured - 1) for point in members],
            marker={"size": 12, "symbol": "diamond"} if networks else {"size": 6, "opacity": 0.7},
            hovertemplate="%{text}<br>measured %{x:.4g} ms, predicted %{y:.4g} ms, "
            "%{customdata:+.1f}%<extra></extra>",
            name=f"{group} ({len(members)})",
        )
    figure.update_layout(
        title=f"Runtime on {platform}: what was predicted of held-out shapes, and was measured",
        xaxis={"title": "measured, ms", "type": "log"},
        yaxis={"title": "predicted, ms", "type": "log"},
        height=_HEIGHT,
        template="plotly_white",
    )
    return figure


def energy_error_figure(ranked: Sequence[Ranked], *, platform: str, alpha: float) -> Any:
    """Energy per sample against error, the Pareto front as a line."""
    from pytest_neuralpower.report.epr import pareto_front  # noqa: PLC0415 - avoids a cycle

    graphs = _plotly_graphs()
    front = pareto_front(ranked)
    points = [item.candidate for item in ranked]
    figure = graphs.Figure()
    figure.add_scatter(
        x=[each.energy_mj for each in front],
        y=[100 * each.error for each in front],
        mode="lines",
        line={"shape": "hv", "dash": "dot"},
        name="Pareto front",
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=[each.energy_mj for each in points],
        y=[100 * each.error for each in points],
        mode="markers+text",
        text=[each.name for each in points],
        textposition="top center",
        marker={"size": [14 if item.efficient else 9 for item in ranked]},
        customdata=[item.ratio for item in ranked],
        hovertemplate="%{text}<br>%{x:.4g} mJ, error %{y:.3g}%<br>EPR %{customdata:.4g} mJ"
        "<extra></extra>",
        name="models",
    )
    figure.update_layout(
        title=f"Energy and error on {platform} (predicted; EPR = error^{alpha:g} x energy)",
        xaxis={"title": "energy per sample, mJ", "type": "log"},
        yaxis={"title": "error, %"},
        height=_HEIGHT,
        template="plotly_white",
    )
    return figure


# -- Predicted against measured as an SVG, which a repository's page shows as an image.

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


def scatter_svg(dots: Sequence[Point], *, title: str) -> str:
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
