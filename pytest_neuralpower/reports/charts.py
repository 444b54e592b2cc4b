"""Charts as self-contained HTML pages: plotly's own script goes inside, nothing is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_neuralpower.errors import MissingExtraError, ReportError
from pytest_neuralpower.files import write_atomically

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.accuracy import Point
    from pytest_neuralpower.epr import Ranked

_HEIGHT = 620


def check_page(path: Path) -> None:
    """Raise now what :func:`write_page` would later, when minutes may have been spent.

    Raises
    ------
    MissingExtraError
        plotly is not installed.
    ReportError
        There is no such folder.
    """
    plotly_graphs()
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


def plotly_graphs() -> Any:
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
    graphs = plotly_graphs()
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
    from pytest_neuralpower.epr import pareto_front  # noqa: PLC0415 - avoids a cycle

    graphs = plotly_graphs()
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
