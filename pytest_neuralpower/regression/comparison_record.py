"""A comparison as plain data: what reports show, and what travels from an xdist worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_neuralpower.regression.comparison import Breach, Comparison, LayerChange
    from pytest_neuralpower.regression.tolerance import Compared

__all__ = ["comparison_record"]


def comparison_record(comparison: Comparison, breaches: Sequence[Breach]) -> dict[str, Any]:
    """The comparison in JSON types; energy in mJ, runtime in ms, of one call.

    Returns
    -------
    dict
        ``recalibrated``, ``stored_sha256``, ``batches``; ``energy`` and ``runtime``, each None
        where it is not known or with ``stored``, ``base`` (predicted again), ``head``,
        ``calibration`` (None where not known) and ``interval`` of ``head - base`` (or None);
        ``breaches``; ``causes``; ``layers`` that differ; ``unchanged`` layers.
    """
    known = comparison.quantities()
    broken = {(id(each.layer), each.quantity) for each in breaches if each.layer is not None}
    return {
        "model": [comparison.base.model, comparison.head.model],
        "recalibrated": comparison.recalibrated,
        "stored_sha256": comparison.stored_sha256,
        "batches": list(comparison.batches),
        "energy": _whole(comparison, "energy") if "energy" in known else None,
        "runtime": _whole(comparison, "runtime") if "runtime" in known else None,
        "breaches": [_breach(each) for each in breaches],
        "causes": [
            {
                "cause": each.name,
                "layers": each.layers,
                "energy_mj": each.energy_mj,
                "runtime_ms": each.runtime_ms,
                "example": _path(each.example),
                "detail": each.detail,
            }
            for each in comparison.causes()
        ],
        "layers": [
            _layer(each, [name for name in known if (id(each), name) in broken])
            for each in comparison.changes
        ],
        "unchanged": len(comparison.head.layers)
        - sum(each.head is not None for each in comparison.changes),
    }


def _whole(comparison: Comparison, quantity: Compared) -> dict[str, Any]:
    base, head = comparison.values(quantity)
    stored = comparison.stored.energy_mj if quantity == "energy" else comparison.stored.runtime_ms
    interval = comparison.interval(quantity)
    return {
        "stored": stored,
        "base": base,
        "head": head,
        "calibration": comparison.calibration(quantity),
        "interval": None if interval is None else list(interval),
    }


def _breach(breach: Breach) -> dict[str, Any]:
    return {
        "quantity": breach.quantity,
        "before": breach.before,
        "after": breach.after,
        "allowed": breach.allowed,
        "per": breach.per,
        "layer": None if breach.layer is None else _path(breach.layer),
    }


def _layer(change: LayerChange, broken: list[str]) -> dict[str, Any]:
    shown = change.head or change.base
    assert shown is not None  # a pair has one side at least
    energy, runtime = change.values("energy"), change.values("runtime")
    return {
        "base_index": change.base_index,
        "head_index": change.head_index,
        "path": _path(change),
        "base_path": None if change.base is None else change.base.layer.path,
        "op": shown.layer.op,
        "kind": shown.layer.kind,
        "energy_mj": list(energy),
        "runtime_ms": list(runtime),
        "causes": [each._asdict() for each in change.causes],
        "breaches": broken,
    }


def _path(change: LayerChange) -> str:
    """Where the layer is now; where it was if it is gone."""
    shown = change.head or change.base
    assert shown is not None  # a pair has one side at least
    return shown.layer.path
