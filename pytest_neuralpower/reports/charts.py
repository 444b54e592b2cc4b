"""Charts as self-contained HTML pages: plotly's own script goes inside, nothing is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_neuralpower.errors import MissingExtraError

if TYPE_CHECKING:
    from pytest_neuralpower.epr import Ranked

_HEIGHT = 620


def write_page(figure: Any, path: Path) -> None:
    """Write a plotly figure as one HTML file that works from ``file://`` without network."""
    path.write_text(figure.to_html(include_plotlyjs=True, full_html=True), encoding="utf-8")


def plotly_graphs() -> Any:
    """``plotly.graph_objects``, or an error that names the extra which brings it."""
    try:
        import plotly.graph_objects as graphs  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtraError(
            "charts need plotly, which is not installed: pip install 'pytest-neuralpower[html]'"
        ) from error
    return graphs


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
