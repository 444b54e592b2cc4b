"""What a model costs at other widths on a platform, and where those prices jump."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np

from pytest_neuralpower.platform.prediction import UNTRUSTED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.compress.channels import ChannelGroup, ChannelGroups
    from pytest_neuralpower.estimators.features import FloatArray
    from pytest_neuralpower.layers import Layer
    from pytest_neuralpower.platform.protocol import Platform


class LayerQuota:
    """Layers that may still be traced or priced; a processor does some 20,000 in a second.

    Counted, not timed, so that advice is the same on a busy machine.
    """

    def __init__(self, layers: float) -> None:
        self._left = layers

    @property
    def is_left(self) -> bool:
        return self._left > 0

    def spend(self, layers: int) -> None:
        self._left -= layers


# -- Plateaus of a price over widths.
#
# FastDeepIoT (Yao et al., SenSys 2018) found execution time to lie in local minima as channels are
# added. Where they are is a matter of the device: here they are read off the platform's own prices,
# at every width.

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

    ``now`` is the index of the present width.
    """

    widths: NDArray[np.intp]
    prices: FloatArray
    now: int

    def share(self, index: int) -> float:
        """Share of the present price that goes with the channels between ``index`` and now."""
        changed = abs(int(self.widths[index]) - int(self.widths[self.now]))
        return float(self.prices[self.now]) * changed / int(self.widths[self.now])

    def saving(self, index: int) -> float:
        """What the width at ``index`` costs less than the present one."""
        return float(self.prices[self.now] - self.prices[index])


def edges(curve: Curve) -> list[int]:
    """Indices at the cheap side of a jump: the last width before a rise, the first after a fall."""
    steps = np.diff(curve.prices)
    if not len(steps):
        return []
    usual = np.median(steps)
    jump = max(abs(usual) * _USUAL_STEPS, _LEAST_JUMP * curve.prices[curve.now])
    rises = np.flatnonzero(steps - usual > jump)
    falls = np.flatnonzero(steps - usual < -jump) + 1
    return sorted({*rises.tolist(), *falls.tolist()})


def shrinkage(curve: Curve, most: int) -> int | None:
    """Index of the best edge at most ``most`` channels below the present width.

    Best is what saves most beyond its channels' share; None where no edge saves really more.
    """
    here = int(curve.widths[curve.now])
    saving = [
        index
        for index in edges(curve)
        if here - most <= curve.widths[index] < here
        and curve.saving(index) >= _REAL_SAVING * curve.share(index)
    ]
    return max(saving, key=lambda index: curve.saving(index) - curve.share(index), default=None)


def expansion(curve: Curve, most: int) -> int | None:
    """Index of the widest edge at most ``most`` channels above the present width that costs next
    to nothing, or less than now; None where there is no free capacity."""
    here = int(curve.widths[curve.now])
    free = [
        index
        for index in edges(curve)
        if here < curve.widths[index] <= here + most
        and -curve.saving(index) <= _FREE * curve.share(index)
    ]
    return max(free, default=None)


def descent(curve: Curve) -> list[int]:
    """Indices below the present width to step to, falling.

    They are edges, and a twentieth less where the price falls evenly. A step inside a plateau saves
    nothing, and is none; the least width always is one if it is the cheapest.
    """
    prices, widths = curve.prices, curve.widths
    at_edge = set(edges(curve))
    slope = _WORTH * (prices[curve.now] - prices[0]) / max(int(widths[curve.now] - widths[0]), 1)
    steps = []
    last = curve.now
    for index in range(curve.now - 1, -1, -1):
        saved = prices[last] - prices[index]
        far = index in at_edge or widths[index] <= _FALL * widths[last]
        if saved > 0 and ((far and saved >= slope * (widths[last] - widths[index])) or not index):
            steps.append(index)
            last = index
    return steps


def widest_as_cheap(curve: Curve) -> int:
    """Index of the widest width that costs no more than the present one: more channels can even
    run faster."""
    return int(np.flatnonzero(curve.prices <= curve.prices[curve.now]).max())


# -- Prices of layers, each configuration priced once.


class Prices(NamedTuple):
    """Of several sets of layers, each set's energy (mJ) and runtime (ms), NaN where the platform
    does not know it, and whether the platform's measurements cover all its layers."""

    energy_mj: FloatArray
    runtime_ms: FloatArray
    trusted: NDArray[np.bool_]

    def of(self, quantity: str) -> FloatArray:
        """``energy`` or ``runtime``."""
        return self.energy_mj if quantity == "energy" else self.runtime_ms


class LayerPrices:
    """Prices of layers on one platform, remembered by configuration."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self._rows_of: dict[tuple[Any, ...], int] = {}
        #: Energy, runtime, and 1 where it is not trusted, of each configuration.
        self._rows: list[tuple[float, float, float]] = []

    def of(self, sets: Sequence[Sequence[Layer]]) -> Prices:
        """The sum over each set of layers; a set without layers costs nothing."""
        layers = [(layer.configuration, layer) for each in sets for layer in each]
        new = {key: layer for key, layer in layers if key not in self._rows_of}
        if new:
            self._price(new)
        rows = [self._rows_of[key] for key, _ in layers]
        columns = np.array(self._rows, dtype=float).reshape(-1, 3)[rows].T
        owners = np.repeat(np.arange(len(sets)), [len(each) for each in sets])
        energy, runtime, distrusted = (
            np.bincount(owners, column, minlength=len(sets)).astype(float) for column in columns
        )
        return Prices(energy, runtime, distrusted == 0)

    def _price(self, new: Mapping[tuple[Any, ...], Layer]) -> None:
        priced = self.platform.predict(tuple(new.values())).layers
        for key, layer in zip(new, priced, strict=True):
            self._rows_of[key] = len(self._rows)
            energy = math.nan if layer.energy_mj is None else layer.energy_mj
            runtime = math.nan if layer.runtime_ms is None else layer.runtime_ms
            distrusted = any(flag in layer.flags for flag in UNTRUSTED)
            self._rows.append((energy, runtime, distrusted))


# -- Prices of a model at other widths.

#: Units up and down to which all groups are priced, round by round: the nearest widths of all
#: groups come before any far one.
_ROUNDS: Final = (4, 16, 64, 256, 1024, 4096)

#: Widths are priced for about so much effort at a time.
_SLICE: Final = 2000
#: What one layer's mapping onto an analytic platform's array takes, in layers of a fitted one.
_MAPPING: Final = 500


class WidthPrices:
    """Prices of layers by width, chosen by one ``quantity``."""

    def __init__(
        self,
        groups: ChannelGroups,
        platform: Platform,
        quantity: Literal["energy", "runtime"],
    ) -> None:
        self.groups, self.platform = groups, platform
        self.quantity: Literal["energy", "runtime"] = quantity
        self._prices = LayerPrices(platform)
        self._effort_a_layer = _MAPPING if platform.analytic else 1
        #: Energy, runtime and trust by group and width.
        self._known: dict[tuple[str, int], tuple[float, float, bool]] = {}

    def most_expensive_first(self) -> list[ChannelGroup]:
        """The groups that may change, by what the layers that they reach cost now."""
        groups = self.groups.changeable
        sets = [self.groups.layers_at({}, group.gains) for group in groups]
        order = np.argsort(-self._prices.of(sets).of(self.quantity), kind="stable")
        return [groups[index] for index in order.tolist()]

    def at(
        self, name: str, widths: Sequence[int], others: Mapping[str, int] | None = None
    ) -> Prices:
        """Price of the layers that one group reaches, at each of ``widths``, with ``others``."""
        if others:
            return self._price(name, widths, others)
        new = [width for width in widths if (name, width) not in self._known]
        if new:
            for width, *row in zip(new, *self._price(name, new, {}), strict=True):
                self._known[name, width] = tuple(row)
        columns = zip(*(self._known[name, width] for width in widths), strict=True)
        return Prices(*map(np.array, columns))

    def _price(self, name: str, widths: Sequence[int], others: Mapping[str, int]) -> Prices:
        places = self.groups[name].gains
        return self._prices.of(
            [self.groups.layers_at({**others, name: width}, places) for width in widths]
        )

    def examine(self, reach: Mapping[str, int], effort: LayerQuota) -> dict[str, int]:
        """Price the widths around every present one, the most expensive group first.

        Parameters
        ----------
        reach
            How many units up and down to go, by group.
        effort
            What may be spent.

        Returns
        -------
        dict
            How many units up and down were priced, by group; 0 for none.
        """
        done = dict.fromkeys(reach, 0)
        for radius in _ROUNDS:
            for group in self.most_expensive_first():
                goal = min(radius, reach[group.name])
                a_unit = 2 * len(group.gains) * self._effort_a_layer
                size = max(_SLICE // max(a_unit, 1), 1)
                while done[group.name] < goal:
                    if not effort.is_left:
                        return done
                    far = min(done[group.name] + size, goal)
                    self.at(group.name, _widths(group, far, done[group.name]))
                    effort.spend((far - done[group.name]) * a_unit)
                    done[group.name] = far
        return done

    def curve(self, group: ChannelGroup, radius: int) -> tuple[Curve, Prices]:
        """The price at every width up to ``radius`` units around the present one."""
        widths = _widths(group, radius)
        prices = self.at(group.name, widths)
        return Curve(np.array(widths), prices.of(self.quantity), widths.index(group.width)), prices


def _widths(group: ChannelGroup, radius: int, beyond: int = -1) -> list[int]:
    """Widths of at most ``radius`` and more than ``beyond`` units from the present one."""
    return [
        (group.units + far) * group.step
        for far in range(max(-radius, 1 - group.units), radius + 1)
        if abs(far) > beyond
    ]
