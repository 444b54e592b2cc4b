"""Drift and repeatability: how far the same layers lay apart, measured twice in one session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pytest_neuralpower.measure.trial import MeasuredRow

__all__ = ["Repeatability", "drift", "repeatability"]

#: ms; shorter layers are all timer and dispatch, and a per cent or so of any network's time.
SHORTEST_MS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Repeatability:
    """Differences between two measurements of the same layers and networks.

    Attributes
    ----------
    median_percent, p95_percent
        Of the absolute differences of layers of at least 0.1 ms; of all where there is none.
    networks_percent
        The same median of whole networks; None without any.
    rows
        Layers compared.
    """

    median_percent: float
    p95_percent: float
    networks_percent: float | None
    rows: int


def drift(before: Iterable[MeasuredRow], after: Iterable[MeasuredRow]) -> float:
    """Relative change of the sentinel's time, 0.02 where it became 2% slower.

    The sum over the layers that both have; 0.0 where they share none.
    """
    first, second = _by_place(before), _by_place(after)
    shared = [place for place in first if place in second and place[1] >= 0]
    if not shared:
        return 0.0
    earlier = sum(first[place].runtime_ms * first[place].calls for place in shared)
    later = sum(second[place].runtime_ms * second[place].calls for place in shared)
    return later / earlier - 1.0


def repeatability(
    before: Iterable[MeasuredRow], after: Iterable[MeasuredRow]
) -> Repeatability | None:
    """How well a second measurement agrees with the first; None where they share no layer."""
    first, second = _by_place(before), _by_place(after)
    apart = {
        place: (abs(second[place].runtime_ms / row.runtime_ms - 1.0), row.runtime_ms)
        for place, row in first.items()
        if place in second
    }
    layers = {place: each for place, each in apart.items() if place[1] >= 0}
    if not layers:
        return None
    long = [off for off, runtime in layers.values() if runtime >= SHORTEST_MS]
    found = np.array(long or [off for off, _ in layers.values()])
    wholes = [off for place, (off, _) in apart.items() if place[1] < 0]
    return Repeatability(
        100 * float(np.median(found)),
        100 * float(np.percentile(found, 95)),
        100 * float(np.median(wholes)) if wholes else None,
        len(found),
    )


def _by_place(rows: Iterable[MeasuredRow]) -> Mapping[tuple[str, int], MeasuredRow]:
    return {(row.network, row.index): row for row in rows}
