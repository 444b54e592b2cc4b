"""The report of one session as plain data: what every format is made of.

It has no dates, durations or names of machines: the same models on the same platforms give the same
report, byte for byte, on one process or on many. ``docs/report-format.md`` says what each field is.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from pytest_neuralpower import __version__
from pytest_neuralpower.regression.layer_record import flow, layer_texts, rounded

if TYPE_CHECKING:
    from pytest_neuralpower.prediction import Interval, LayerPrediction, Prediction

__all__ = [
    "FORMAT",
    "VERSION",
    "details",
    "layers_text",
    "session_report",
    "torch_version",
    "with_layers",
]

FORMAT: Final = "pytest-neuralpower report"
VERSION: Final = 1


def session_report(
    records: Mapping[str, Sequence[Mapping[str, Any]]], stale: Sequence[str]
) -> dict[str, Any]:
    """The report of records by node id, sorted by test and platform.

    Parameters
    ----------
    stale
        Paths of baselines that no test predicts any more.
    """
    predictions = [
        {"name": _name(record, number), **record}
        for nodeid in sorted(records)
        for number, record in enumerate(records[nodeid], 1)
    ]
    return {
        "format": FORMAT,
        "version": VERSION,
        "plugin": __version__,
        "torch": torch_version(),
        "predictions": predictions,
        "stale_baselines": list(stale),
    }


def _name(record: Mapping[str, Any], number: int) -> str:
    """What a prediction is compared by: its baseline's name, or its test's."""
    if "baseline" in record:
        return str(record["baseline"]["name"])
    from pytest_neuralpower.regression.stale import without_platform  # noqa: PLC0415
    from pytest_neuralpower.regression.store import baseline_name  # noqa: PLC0415

    return baseline_name(without_platform(record["test"], record["platform"]), number)


@cache
def torch_version() -> str:
    """Without the part that says what torch was built for: tracing needs no device."""
    return importlib.metadata.version("torch").partition("+")[0]


def details(prediction: Prediction) -> dict[str, Any]:
    """What a report has beside the record of a verdict and the layers: intervals and notes."""
    return {
        "energy_interval_mj": _interval(prediction.energy_interval_mj),
        "runtime_interval_ms": _interval(prediction.runtime_interval_ms),
        "power_interval_w": _interval(prediction.power_interval_w),
        "energy_basis": prediction.energy_basis,
        "notes": list(prediction.notes),
    }


def layers_text(prediction: Prediction) -> str:
    """Every layer as JSON, one a line: lists of thousands of objects would be slow to send from
    an xdist worker, and to keep."""
    return ",\n".join(layer_texts(prediction.layers, _more_text))


def with_layers(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with lists of layers instead of their text."""
    predictions = [
        {**each, "layers": json.loads(f"[{each['layers']}]")} if "layers" in each else each
        for each in report["predictions"]
    ]
    return {**report, "predictions": predictions}


def _more_text(item: LayerPrediction) -> str:
    cost = item.layer.cost
    return (
        f', "flops": {cost.flops}, "bytes": {cost.bytes_moved}, "flags": {flow(list(item.flags))}, '
        f'"estimator": {flow(item.estimator)}, '
        f'"runtime_interval_ms": {_interval_text(item.runtime_interval_ms)}, '
        f'"energy_interval_mj": {_interval_text(item.energy_interval_mj)}'
    )


def _interval_text(interval: Interval | None) -> str:
    return "null" if interval is None else f"[{', '.join([f'{each:.6g}' for each in interval])}]"


def _interval(interval: Interval | None) -> list[float | None] | None:
    return None if interval is None else [rounded(each) for each in interval]
