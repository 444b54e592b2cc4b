"""Traces and predictions as records of JSON types, and as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Layer, Trace
    from pytest_neuralpower.prediction import Interval, LayerPrediction, Prediction

__all__ = [
    "csv_text",
    "interval_record",
    "layer_prediction_record",
    "layer_record",
    "prediction_record",
    "trace_record",
]


def trace_record(trace: Trace) -> dict[str, Any]:
    """A trace, layer by layer."""
    return {
        "model": trace.model,
        "batch": trace.batch,
        "route": trace.route,
        "fallbacks": list(trace.fallbacks),
        "notes": list(trace.notes),
        "layers": [layer_record(layer) for layer in trace],
    }


def layer_record(layer: Layer) -> dict[str, Any]:
    """A layer's configuration and what it must do (operations, bytes)."""
    return {
        "path": layer.path,
        "kind": layer.kind,
        "op": layer.op,
        "dtype": layer.dtype,
        "inputs": [list(tensor.shape) for tensor in layer.inputs],
        "weights": [list(tensor.shape) for tensor in layer.weights],
        "outputs": [list(tensor.shape) for tensor in layer.outputs],
        "params": dict(layer.params),
        **layer.cost._asdict(),
    }


def layer_prediction_record(item: LayerPrediction) -> dict[str, Any]:
    """A layer with its predicted runtime (ms), power (W) and energy (mJ)."""
    values = item._asdict()
    del values["layer"]
    parts = values.pop("energy_parts_mj")
    named = {f"{part}_mj": energy for part, energy in (parts or {}).items()}
    return {**layer_record(item.layer), **_plain(values), **named}


def prediction_record(prediction: Prediction) -> dict[str, Any]:
    """A whole prediction: totals first, then its layers."""
    named = ((each.name, getattr(prediction, each.name)) for each in fields(prediction))
    return {
        **_plain({name: value for name, value in named if name not in ("layers", "errors")}),
        "energy_mj": prediction.energy_mj,
        "runtime_ms": prediction.runtime_ms,
        "power_w": prediction.power_w,
        **{f"{part}_mj": energy for part, energy in (prediction.energy_parts_mj or {}).items()},
        "layers": [layer_prediction_record(layer) for layer in prediction.layers],
    }


def interval_record(interval: Interval | None) -> dict[str, float] | None:
    """``{"low": ..., "high": ..., "coverage": ...}``; None where there is no interval."""
    return None if interval is None else interval._asdict()


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Intervals as objects with names, other tuples as lists."""
    return {
        name: interval_record(value)
        if "_interval_" in name
        else list(value)
        if isinstance(value, tuple)
        else value
        for name, value in values.items()
    }


def csv_text(records: Iterable[Mapping[str, Any]]) -> str:
    """Records as CSV with a header; lists and objects are JSON in their cell."""
    rows = list(records)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})
    return text.getvalue()


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value
