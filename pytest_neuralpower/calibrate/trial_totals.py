"""Totals of calls, from the whole random networks that a calibration timed beside their layers.

A network's time is predicted as the sum of its layers, each by an estimator that saw no layer of
its shape; what the whole network took besides tells how far a call is from that sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pytest_neuralpower.calibrate.spreads import COVERAGE, conformal_distance
from pytest_neuralpower.estimators.selection import Score

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.measured_rows import NetworkRow
    from pytest_neuralpower.calibrate.rows import Row
    from pytest_neuralpower.calibrate.uncertainty import FamilyFit
    from pytest_neuralpower.features import FloatArray
    from pytest_neuralpower.platform import Platform

__all__ = ["learn_totals"]

#: Shares of the rows' correlation that are tried.
_SHARES: Final = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)


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
    measured = np.array([network.runtime_ms for network in networks])
    points = np.array([_held_out_ms(platform, network, held_out) for network in networks])
    off = np.abs(np.log(measured / points))
    platform = _with_whole(_correlated(platform, networks, off), 0.0)
    own = _layers_parts(platform, networks)
    whole = _beyond(conformal_distance(off, list(range(len(off)))), own)
    inside = sum(
        bool(off[each] <= np.hypot(own[each], _beyond(_left_out(off, each), own)))
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


def _held_out_ms(platform: Platform, network: NetworkRow, held_out: Mapping[Row, float]) -> float:
    """Sum of the network's layers, each predicted without its shape where it is of a family that
    is fitted."""
    rest = [row for row, _ in network.layers if row not in held_out]
    others = platform.predict([row.layer for row in rest]).layers if rest else ()
    fallback = {row: each.runtime_ms or 0.0 for row, each in zip(rest, others, strict=True)}
    return sum((held_out.get(row) or fallback[row]) * count for row, count in network.layers)


def _layers_parts(platform: Platform, networks: Sequence[NetworkRow]) -> FloatArray:
    """Log half-width of each network's interval as its layers' errors alone make it."""
    found = np.empty(len(networks))
    for index, network in enumerate(networks):
        predicted = platform.predict([row.layer for row, n in network.layers for _ in range(n)])
        assert predicted.errors is not None  # the platform has intervals
        total = predicted.runtime_ms or np.nan
        found[index] = np.log(predicted.errors.total("runtime")[1] / total)
    return found


def _correlated(platform: Platform, networks: Sequence[NetworkRow], off: FloatArray) -> Platform:
    """The platform whose layers' errors have so much in common as its networks' errors show.

    How much rows of one family have in common cannot be told well from the rows: networks of many
    layers tell it. The least share of the rows' correlation is kept with which intervals made of
    layers alone hold their part of the networks; all of it where none does.
    """
    level = min(COVERAGE * (len(off) + 1) / len(off), 1.0)
    for share in _SHARES:
        less = _with_correlation(platform, share)
        if np.mean(off <= _layers_parts(_with_whole(less, 0.0), networks)) >= level:
            return less
    return platform


def _with_correlation(platform: Platform, share: float) -> Platform:
    assert platform.intervals is not None
    intervals = platform.intervals
    families = {
        name: spread._replace(correlation=float(f"{spread.correlation * share:.4g}"))
        for name, spread in intervals.runtime.families.items()
    }
    runtime = replace(intervals.runtime, families=families)
    return replace(platform, intervals=replace(intervals, runtime=runtime))


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
