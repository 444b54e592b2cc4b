"""The report as one HTML file that needs no network; drawn from the session's record alone."""

from __future__ import annotations

from pytest_neuralpower.reports.html.page import check_plotly, render

__all__ = ["check_plotly", "render"]
