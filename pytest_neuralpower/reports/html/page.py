"""One self-contained page: the template, our style and scripts, the data, and plotly's script.

The page's content security policy names the hash of each script: nothing else can run in it, and
nothing can be fetched, whatever the names of tests, models and layers hold.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
from collections.abc import Mapping
from importlib.resources import files
from string import Template
from typing import Any, Final

from pytest_neuralpower.errors import MissingExtraError
from pytest_neuralpower.reports.html.data import page_data
from pytest_neuralpower.reports.session_report import with_layers

__all__ = ["check_plotly", "render"]

#: In the order in which they need each other.
_SCRIPTS: Final = ("values.js", "overview.js", "table.js", "modules.js", "charts.js", "page.js")

_OURS = files("pytest_neuralpower.reports.html") / "assets"


def check_plotly() -> None:
    """Look for plotly without loading it.

    Raises
    ------
    MissingExtraError
        It is not installed.
    """
    if importlib.util.find_spec("plotly") is None:
        raise MissingExtraError(
            "an HTML report needs plotly, which is not installed: "
            "pip install 'pytest-neuralpower[html]'"
        )


def render(report: Mapping[str, Any]) -> str:
    """The page of a session's report; the same report gives the same bytes.

    Raises
    ------
    MissingExtraError
        plotly is not installed.
    """
    check_plotly()
    # The file alone: importing what reads it, plotly.offline, takes a quarter of a second.
    plotly = (files("plotly") / "package_data" / "plotly.min.js").read_text("utf-8")
    ours = "\n".join(_asset(name) for name in _SCRIPTS)
    return Template(_asset("page.html")).substitute(
        policy=_policy(ours, plotly),
        style=_asset("style.css"),
        data=_embedded(page_data(with_layers(report))),
        script=ours,
        plotly=plotly,
    )


def _asset(name: str) -> str:
    return (_OURS / name).read_text("utf-8")


def _policy(*scripts: str) -> str:
    hashes = " ".join(f"'sha256-{_digest(each)}'" for each in scripts)
    # plotly makes style elements of its own, and images of charts that are saved.
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:"
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _embedded(data: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")
