"""The report as one HTML file that needs no network, made from the session's findings alone."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import UNSET, Struct, structs

from pytest_neuralpower.errors import MissingExtraError

if TYPE_CHECKING:
    from pytest_neuralpower.guard.compare import Comparison, LayerChange
    from pytest_neuralpower.guard.finding import Finding, Report

#: Fields of a finding, and of its comparison, that are laid out by column.
_LAID_OUT: Final = ("name", "measured", "comparison", "layers")
_COMPARISON_LAID_OUT: Final = ("model", "breaches", "layers", "unchanged")


class _Layer(Struct, rename={"inputs": "in", "outputs": "out"}):
    """A layer of the JSON report."""

    path: str
    op: str
    kind: str
    dtype: str
    inputs: list[str]
    weights: list[str]
    outputs: list[str]
    params: dict[str, Any]
    runtime_ms: float | None
    power_w: float | None
    energy_mj: float | None
    flops: int
    bytes: int
    flags: list[str]
    estimator: str
    runtime_interval_ms: list[float] | None
    energy_interval_mj: list[float] | None


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


def page_data(report: Report) -> dict[str, object]:
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
    predictions = [_prediction(each, texts) for each in report.predictions]
    return {
        "plugin": report.plugin,
        "torch": report.torch,
        "stale_baselines": report.stale_baselines,
        "predictions": predictions,
        "texts": texts.all(),
    }


def _prediction(finding: Finding, texts: _Texts) -> dict[str, object]:
    layers = msgspec.json.decode(finding.layers or b"[]", type=list[_Layer])
    facts = structs.replace(finding, comparison=UNSET, layers=UNSET)
    compared = None
    if finding.comparison is not UNSET:
        compared = _comparison(finding.comparison, len(layers), texts)
    return {
        **{k: v for k, v in msgspec.to_builtins(facts).items() if k not in _LAID_OUT},
        "layers": _columns(layers, texts),
        "comparison": compared,
    }


def _columns(layers: Sequence[_Layer], texts: _Texts) -> dict[str, object]:
    return {
        **{
            name: texts.column(getattr(each, name) for each in layers)
            for name in ("path", "op", "kind", "dtype", "estimator")
        },
        "out": texts.column(", ".join(each.outputs) for each in layers),
        "configuration": texts.column(map(_configuration, layers)),
        "flags": texts.column(" ".join(each.flags) for each in layers),
        **{
            name: [getattr(each, name) for each in layers]
            for name in ("energy_mj", "runtime_ms", "power_w", "flops", "bytes")
        },
        # One coverage holds for the whole of a prediction, where it is shown.
        "energy_interval_mj": [
            each.energy_interval_mj and each.energy_interval_mj[:2] for each in layers
        ],
        "runtime_interval_ms": [
            each.runtime_interval_ms and each.runtime_interval_ms[:2] for each in layers
        ],
    }


def _configuration(layer: _Layer) -> str:
    parts = [f"in {', '.join(layer.inputs)}"]
    if layer.weights:
        parts.append(f"weights {', '.join(layer.weights)}")
    parts.append(f"out {', '.join(layer.outputs)}")
    parts += [f"{name} {_value(value)}" for name, value in layer.params.items()]
    return "; ".join(parts)


def _value(value: object) -> str:
    return "x".join(map(_value, value)) if isinstance(value, list) else str(value).lower()


def _comparison(found: Comparison, layers: int, texts: _Texts) -> dict[str, object]:
    changed, gone = {}, []
    heads = _heads_by_base(found.layers, layers)
    for each in found.layers:
        entry: dict[str, object] = {
            "energy_mj": _six_digits(each.energy_mj[0]),
            "runtime_ms": _six_digits(each.runtime_ms[0]),
            "new": each.base_index is None,
            "causes": texts.column(
                f"{cause.name}: {cause.detail}" if cause.detail else cause.name
                for cause in each.causes
            ),
            "breaches": each.breaches,
        }
        if each.head_index is not None:
            changed[each.head_index] = entry
            continue
        assert each.base_index is not None  # a layer is on one side at least
        stood_after = max((base for base in heads if base < each.base_index), default=None)
        entry |= {name: texts.number(getattr(each, name)) for name in ("path", "op", "kind")}
        gone.append({**entry, "at": 0 if stood_after is None else heads[stood_after] + 1})
    facts = msgspec.to_builtins(found)
    kept = {name: value for name, value in facts.items() if name not in _COMPARISON_LAID_OUT}
    return {**kept, "changed": changed, "gone": gone}


def _heads_by_base(changes: Sequence[LayerChange], layers: int) -> dict[int, int]:
    """Index of each layer that still exists: in the baseline, and now.

    Layers that are equal are not listed among the changes; they are paired in order.
    """
    listed_bases = {each.base_index for each in changes} - {None}
    listed_heads = {each.head_index for each in changes} - {None}
    heads = [index for index in range(layers) if index not in listed_heads]
    count = len(heads) + len(listed_bases)
    bases = [index for index in range(count) if index not in listed_bases]
    return dict(zip(bases, heads, strict=True)) | {
        each.base_index: each.head_index
        for each in changes
        if each.base_index is not None and each.head_index is not None
    }


def _six_digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


# -- The page.
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


def render(report: Report) -> str:
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
        data=_embedded(page_data(report)),
        script=ours,
        plotly=plotly,
    )


def _asset(name: str) -> str:
    return (_OURS / name).read_text("utf-8")


def _policy(*scripts: str) -> str:
    digests = (hashlib.sha256(each.encode()).digest() for each in scripts)
    hashes = " ".join(f"'sha256-{base64.b64encode(each).decode()}'" for each in digests)
    # plotly makes style elements of its own, and images of charts that are saved.
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:"
    )


def _embedded(data: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")
