"""Totals of calls, from the whole random networks that a calibration timed beside their layers.

A network's time is predicted as the sum of its layers, each by an estimator that saw no layer of
its shape; what the whole network took besides tells how far a call is from that sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_neuralpower.calibrate.spreads import conformal_distance
from pytest_neuralpower.estimators.selection import Score

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.measured_rows import NetworkRow
    from pytest_neuralpower.calibrate.rows import Row
    from pytest_neuralpower.calibrate.uncertainty import FamilyFit
    from pytest_neuralpower.features import FloatArray
    from pytest_neuralpower.platform import Platform

__all__ = ["learn_totals"]


def learn_totals(
    platform: Platform, fits: Mapping[str, FamilyFit], networks: Sequence[NetworkRow]
) -> Platform:
    """The platform with the error of whole calls that its networks show, and their score."""
    if not networks or platform.intervals is None:
        return platform
    held_out: dict[Row, float] = {
        row: predicted
        for fit in fits.values()
        for row, predicted in zip(fit.rows, fit.runtime.held_out.tolist(), strict=True)
    }
    bare = _with_whole(platform, 0.0)
    measured = np.array([network.runtime_ms for network in networks])
    points, layers = np.empty(len(networks)), np.empty(len(networks))
    for index, network in enumerate(networks):
        calls = [row.layer for row, count in network.layers for _ in range(count)]
        predicted = bare.predict(calls)
        assert predicted.errors is not None  # the platform has intervals
        layers[index] = predicted.errors.total("runtime")[1] / (predicted.runtime_ms or np.nan)
        points[index] = sum(held_out.get(row, 0.0) * count for row, count in network.layers) + sum(
            (predicted.layers[place].runtime_ms or 0.0)
            for place, row in enumerate(_repeated(network))
            if row not in held_out
        )
    off = np.log(measured / points)
    own = np.log(layers)
    names = [network.network for network in networks]
    whole = _beyond(conformal_distance(off, names), own)
    inside = sum(
        bool(abs(off[each]) <= np.hypot(own[each], _beyond(_left_out(off, each), own)))
        for each in range(len(networks))
    )
    found: dict[str, Any] = {
        "runtime": Score.of(points, measured).to_json(),
        "inside": inside,
        "networks": len(networks),
        "measured_ms": [float(f"{each:.4g}") for each in measured],
        "predicted_ms": [float(f"{each:.4g}") for each in points],
    }
    intervals = {**platform.accuracy.get("intervals", {}), "totals": "trials", "trials": found}
    accuracy = {**platform.accuracy, "intervals": intervals}
    return replace(_with_whole(platform, whole), accuracy=accuracy)


def _repeated(network: NetworkRow) -> list[Row]:
    return [row for row, count in network.layers for _ in range(count)]


def _left_out(off: FloatArray, index: int) -> float:
    rest = np.delete(off, index)
    return conformal_distance(rest, list(range(len(rest))))


def _beyond(distance: float, layers: FloatArray) -> float:
    """What is left of the networks' error beside what their layers' errors add up to."""
    squared = distance**2 - float((layers**2).mean())
    return float(f"{max(squared, 0.0) ** 0.5:.4g}")


def _with_whole(platform: Platform, whole: float) -> Platform:
    assert platform.intervals is not None
    intervals = platform.intervals
    intervals = replace(intervals, runtime=replace(intervals.runtime, whole=whole))
    if intervals.energy is not None:
        intervals = replace(intervals, energy=replace(intervals.energy, whole=whole))
    return replace(platform, intervals=intervals)
