"""Plateaus of a price over widths: where one channel more or less changes it by a jump.

FastDeepIoT (Yao et al., SenSys 2018) found execution time to lie in local minima as channels are
added. Where they are is a matter of the device: here they are read off the platform's own prices,
at every width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.features import FloatArray

__all__ = ["Curve", "descent", "edges", "expansion", "shrinkage", "widest_as_cheap"]

#: A step of price is a jump when it is this many times the usual one, and
_USUAL_STEPS: Final = 4.0
#: at least this share of the price: less is no plateau that anybody could measure.
_LEAST_JUMP: Final = 0.004

#: Shrinking must save this many times the removed channels' share of the price.
_REAL_SAVING: Final = 2.0
#: Expanding may cost this share of the added channels' share of the price.
_FREE: Final = 0.2

#: Where there is no edge, steps of a descent go to widths less by this factor.
_FALL: Final = 0.95
#: A step must save this share of what the whole descent saves a channel.
_WORTH: Final = 0.5


class Curve(NamedTuple):
    """Price of all layers that one width reaches, at ascending widths.

    ``now`` is the place of the present width.
    """

    widths: NDArray[np.intp]
    prices: FloatArray
    now: int

    def share(self, place: int) -> float:
        """Share of the present price that goes with the channels between ``place`` and now."""
        changed = abs(int(self.widths[place]) - int(self.widths[self.now]))
        return float(self.prices[self.now]) * changed / int(self.widths[self.now])

    def saving(self, place: int) -> float:
        """What the width at ``place`` costs less than the present one."""
        return float(self.prices[self.now] - self.prices[place])


def edges(curve: Curve) -> list[int]:
    """Places at the cheap side of a jump: the last width before a rise, the first after a fall."""
    steps = np.diff(curve.prices)
    if not len(steps):
        return []
    usual = np.median(steps)
    jump = max(abs(usual) * _USUAL_STEPS, _LEAST_JUMP * curve.prices[curve.now])
    rises = np.flatnonzero(steps - usual > jump)
    falls = np.flatnonzero(steps - usual < -jump) + 1
    return sorted({*rises.tolist(), *falls.tolist()})


def shrinkage(curve: Curve, most: int) -> int | None:
    """Place of the best edge at most ``most`` channels below the present width.

    Best is what saves most beyond its channels' share; None where no edge saves really more.
    """
    here = int(curve.widths[curve.now])
    found = [
        place
        for place in edges(curve)
        if here - most <= curve.widths[place] < here
        and curve.saving(place) >= _REAL_SAVING * curve.share(place)
    ]
    return max(found, key=lambda place: curve.saving(place) - curve.share(place), default=None)


def expansion(curve: Curve, most: int) -> int | None:
    """Place of the widest edge at most ``most`` channels above the present width that costs next
    to nothing, or less than now; None where there is no free capacity."""
    here = int(curve.widths[curve.now])
    found = [
        place
        for place in edges(curve)
        if here < curve.widths[place] <= here + most
        and -curve.saving(place) <= _FREE * curve.share(place)
    ]
    return max(found, default=None)


def descent(curve: Curve) -> list[int]:
    """Places below the present width to step to, falling.

    They are edges, and a twentieth less where the price falls evenly. A step inside a plateau saves
    nothing, and is none; the least width always is one if it is the cheapest.
    """
    prices, widths = curve.prices, curve.widths
    at_edge = set(edges(curve))
    slope = _WORTH * (prices[curve.now] - prices[0]) / max(int(widths[curve.now] - widths[0]), 1)
    found = []
    last = curve.now
    for place in range(curve.now - 1, -1, -1):
        saved = prices[last] - prices[place]
        far = place in at_edge or widths[place] <= _FALL * widths[last]
        if saved > 0 and ((far and saved >= slope * (widths[last] - widths[place])) or not place):
            found.append(place)
            last = place
    return found


def widest_as_cheap(curve: Curve) -> int:
    """Place of the widest width that costs no more than the present one: more channels can even
    run faster."""
    return int(np.flatnonzero(curve.prices <= curve.prices[curve.now]).max())
