"""Traces, predictions and array energies as records of JSON types, and as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from pytest_neuralpower.eyeriss.energy import PARTS
from pytest_neuralpower.units import show, show_percent

if TYPE_CHECKING:
    from pytest_neuralpower.eyeriss.energy import LayerEnergy
    from pytest_neuralpower.eyeriss.table import TableRow
    from pytest_neuralpower.layers import Layer, Trace
    from pytest_neuralpower.platform.analytic import EyerissPlatform
    from pytest_neuralpower.platform.intervals import Interval
    from pytest_neuralpower.platform.prediction import LayerPrediction, Prediction


def trace_record(trace: Trace) -> dict[str, object]:
    """A trace, layer by layer."""
    return {
        "model": trace.model,
        "batch": trace.batch,
        "route": trace.route,
        "fallbacks": list(trace.fallbacks),
        "notes": list(trace.notes),
        "layers": [layer_record(layer) for layer in trace],
    }


def layer_record(layer: Layer) -> dict[str, object]:
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


def layer_prediction_record(item: LayerPrediction) -> dict[str, object]:
    """A layer with its predicted runtime (ms), power (W) and energy (mJ)."""
    values = item._asdict()
    del values["layer"]
    parts = values.pop("energy_parts_mj")
    named = {f"{part}_mj": energy for part, energy in (parts or {}).items()}
    return {**layer_record(item.layer), **_plain(values), **named}


def prediction_record(prediction: Prediction) -> dict[str, object]:
    """A whole prediction: totals first, then its layers."""
    named = ((each.name, getattr(prediction, each.name)) for each in fields(prediction))
    left = ("layers", "errors", "host")
    waits = {"device_ms": prediction.device_ms, "host_ms": prediction.host_ms}
    return {
        **_plain({name: value for name, value in named if name not in left}),
        **({} if prediction.host is None else waits),
        "energy_mj": prediction.energy_mj,
        "runtime_ms": prediction.runtime_ms,
        "power_w": prediction.power_w,
        **{f"{part}_mj": energy for part, energy in (prediction.energy_parts_mj or {}).items()},
        "layers": [layer_prediction_record(layer) for layer in prediction.layers],
    }


def interval_record(interval: Interval | None) -> dict[str, float] | None:
    """``{"low": ..., "high": ..., "coverage": ...}``; None where there is no interval."""
    return None if interval is None else interval._asdict()


def _plain(values: Mapping[str, Any]) -> dict[str, object]:
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
        writer.writerow(
            {
                name: json.dumps(value) if isinstance(value, list | dict) else value
                for name, value in row.items()
            }
        )
    return text.getvalue()


# -- Energy of the array by data type.

_PATH_WIDTH = 22


def energy_records(
    rows: Iterable[TableRow], energies: Iterable[LayerEnergy]
) -> list[dict[str, Any]]:
    """Energy of each layer's whole batch: by data type and in total (MACs), and in mJ."""
    return [
        {
            "index": row.index,
            "path": row.path,
            "batch": row.batch,
            **{f"{part}_macs": getattr(energy, part) for part in PARTS},
            "total_macs": energy.total,
            "energy_mj": energy.millijoules,
        }
        for row, energy in zip(rows, energies, strict=True)
    ]


def _end(path: str) -> str:
    """A path's end, where layers differ."""
    return path if len(path) <= _PATH_WIDTH else "…" + path[1 - _PATH_WIDTH :]


def energy_text(records: Sequence[Mapping[str, Any]], platform: EyerissPlatform) -> str:
    """A line a layer and their sum, in units of 10^6 multiply-accumulates."""
    columns = [f"{part}_macs" for part in PARTS] + ["total_macs"]
    sums = {name: sum(each[name] for each in records) for name in [*columns, "energy_mj"]}
    rows = [
        [each["index"], *(f"{each[name] / 1e6:,.1f}" for name in columns),
         show_percent(each["total_macs"] / sums["total_macs"]), show("energy", each["energy_mj"]),
         _end(each["path"])]
        for each in records
    ]  # fmt: skip
    total = [f"{sums[name] / 1e6:,.1f}" for name in columns]
    rows.append(["sum", *total, "", show("energy", sums["energy_mj"]), ""])
    shares = [show_percent(sums[name] / sums["total_macs"]) for name in columns[:-1]]
    rows.append(["share", *shares, *[""] * 4])
    headers = ("", "input", "output", "weight", "compute", "total", "share", "energy", "")
    batches = sorted({each["batch"] for each in records})
    return "\n".join(
        [
            platform.device,
            f"10^6 MACs of {platform.costs.pj_per_mac:g} pJ, whole batch of "
            f"{', '.join(map(str, batches))}",
            "",
            tabulate(
                rows, headers, tablefmt="plain", disable_numparse=True,
                colalign=("right",) * 8 + ("left",),
            ),
        ]
    )  # fmt: skip
