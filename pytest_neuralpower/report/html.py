"""The report as one HTML file that needs no network; drawn from the session's record alone."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any, Final

from pytest_neuralpower.errors import MissingExtraError
from pytest_neuralpower.report.formats import with_layers

__all__ = [
    "check_plotly",
    "page_data",
    "render",
]


# -- What the page needs of a report, laid out by column so that thousands of layers stay small.

#: Fields of a prediction that the page takes as they are.
_FACTS: Final = (
    "test", "platform", "platform_sha256", "model", "batch", "energy_mj", "runtime_ms", "power_w",
    "untrusted_share", "budgets", "outcome", "failure", "baseline", "file", "line", "energy_basis",
    "energy_interval_mj", "runtime_interval_ms", "power_interval_w", "notes", "provenance",
    "estimated_power",
)  # fmt: skip

_NUMBERS: Final = ("energy_mj", "runtime_ms", "power_w", "flops", "bytes")
_INTERVALS: Final = ("energy_interval_mj", "runtime_interval_ms")

#: Fields of a comparison that the page takes as they are; its layers are laid out anew.
_COMPARED: Final = ("recalibrated", "stored_sha256", "batches", "energy", "runtime", "causes")


class _Texts:
    """Gives each different text a number: most configurations of layers repeat."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers))

    def column(self, texts: Iterable[str]) -> list[int]:
        return [self.number(text) for text in texts]

    def all(self) -> list[str]:
        return list(self._numbers)


def page_data(report: Mapping[str, Any]) -> dict[str, Any]:
    """The page's data.

    Returns
    -------
    dict
        ``texts``; ``predictions``, each with its facts, ``layers`` (one list a column, texts by
        their number) and ``comparison`` or None, in which ``changed`` has the layers that differ
        by their index and ``gone`` those that no longer exist, with ``at``, the layer they stood
        before.
    """
    texts = _Texts()
    predictions = [_prediction(each, texts) for each in report["predictions"]]
    return {
        **{name: report[name] for name in ("plugin", "torch", "stale_baselines")},
        "predictions": predictions,
        "texts": texts.all(),
    }


def _prediction(record: Mapping[str, Any], texts: _Texts) -> dict[str, Any]:
    comparison = record.get("comparison")
    return {
        **{name: record[name] for name in _FACTS if name in record},
        "layers": _columns(record["layers"], texts),
        "comparison": None
        if comparison is None
        else _comparison(comparison, len(record["layers"]), texts),
    }


def _columns(layers: Sequence[Mapping[str, Any]], texts: _Texts) -> dict[str, Any]:
    columns: dict[str, Any] = {
        name: texts.column(each[name] for each in layers)
        for name in ("path", "op", "kind", "dtype", "estimator")
    }
    columns["out"] = texts.column(", ".join(each["out"]) for each in layers)
    columns["configuration"] = texts.column(map(_configuration, layers))
    columns["flags"] = texts.column(" ".join(each["flags"]) for each in layers)
    for name in _NUMBERS:
        columns[name] = [each[name] for each in layers]
    for name in _INTERVALS:
        # One coverage holds for the whole of a prediction, where it is shown.
        columns[name] = [each[name] and each[name][:2] for each in layers]
    return columns


def _configuration(layer: Mapping[str, Any]) -> str:
    parts = [f"in {', '.join(layer['in'])}"]
    if layer["weights"]:
        parts.append(f"weights {', '.join(layer['weights'])}")
    parts.append(f"out {', '.join(layer['out'])}")
    parts += [f"{name} {_value(value)}" for name, value in layer["params"].items()]
    return "; ".join(parts)


def _value(value: Any) -> str:
    return "x".join(map(_value, value)) if isinstance(value, list) else str(value).lower()


def _comparison(found: Mapping[str, Any], layers: int, texts: _Texts) -> dict[str, Any]:
    changed, gone = {}, []
    places = _heads_by_base(found["layers"], layers)
    for each in found["layers"]:
        entry: dict[str, Any] = {
            "energy_mj": _stored(each["energy_mj"][0]),
            "runtime_ms": _stored(each["runtime_ms"][0]),
            "new": each["base_index"] is None,
            "causes": texts.column(_cause(cause) for cause in each["causes"]),
            "breaches": each["breaches"],
        }
        if each["head_index"] is None:
            names = {name: texts.number(each[name]) for name in ("path", "op", "kind")}
            stood_after = max((base for base in places if base < each["base_index"]), default=None)
            at = 0 if stood_after is None else places[stood_after] + 1
            gone.append({**entry, **names, "at": at})
        else:
            changed[each["head_index"]] = entry
    return {**{name: found[name] for name in _COMPARED}, "changed": changed, "gone": gone}


def _heads_by_base(changes: Sequence[Mapping[str, Any]], layers: int) -> dict[int, int]:
    """Index of each layer that still exists: in the baseline, and now.

    Layers that are equal are not listed among the changes; they are paired in order.
    """
    pairs = [(each["base_index"], each["head_index"]) for each in changes]
    listed_bases, listed_heads = ({pair[side] for pair in pairs} - {None} for side in (0, 1))
    heads = [index for index in range(layers) if index not in listed_heads]
    count = len(heads) + len(listed_bases)
    bases = [index for index in range(count) if index not in listed_bases]
    return dict(zip(bases, heads, strict=True)) | {
        base: head for base, head in pairs if base is not None and head is not None
    }


def _stored(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _cause(cause: Mapping[str, Any]) -> str:
    return f"{cause['name']}: {cause['detail']}" if cause["detail"] else str(cause["name"])


# -- One self-contained page: the template, our style and scripts, the data, and plotly's script.
#
# The page's content security policy names the hash of each script: nothing else can run in it, and
# nothing can be fetched, whatever the names of tests, models and layers hold.

#: In the order in which they need each other.
_SCRIPTS: Final = ("values.js", "overview.js", "table.js", "modules.js", "charts.js", "page.js")

_OURS = files("pytest_neuralpower.report") / "assets"


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
