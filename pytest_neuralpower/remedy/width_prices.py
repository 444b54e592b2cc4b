"""A model's layers at other widths of its channel groups, priced on a platform."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from pytest_neuralpower.remedy.plateaus import Curve
from pytest_neuralpower.remedy.prices import LayerPrices, Prices

if TYPE_CHECKING:
    from pytest_neuralpower.features import FloatArray
    from pytest_neuralpower.layers import Trace
    from pytest_neuralpower.platform import AnyPlatform
    from pytest_neuralpower.remedy.channels import ChannelGroup, ChannelGroups
    from pytest_neuralpower.remedy.effort import Effort

__all__ = ["WidthPrices"]

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
        platform: AnyPlatform,
        quantity: Literal["energy", "runtime"],
    ) -> None:
        self.groups, self.platform = groups, platform
        self.quantity: Literal["energy", "runtime"] = quantity
        self._prices = LayerPrices(platform)
        self._effort_a_layer = _MAPPING if "analytic" in platform.tiers.values() else 1
        self._known: dict[str, dict[int, Prices]] = {}

    def dearest_first(self) -> list[ChannelGroup]:
        """The groups that may change, by what the layers that they reach cost now."""
        found = self.groups.changeable
        sets = [self.groups.layers_at(self.groups.reached(group.name), {}) for group in found]
        order = np.argsort(-self.amounts(self._prices.of(sets)), kind="stable")
        return [found[place] for place in order.tolist()]

    def at(
        self, name: str, widths: Sequence[int], others: Mapping[str, int] | None = None
    ) -> Prices:
        """Price of the layers that one group reaches, at each of ``widths``, beside ``others``."""
        if others:
            return self._price(name, widths, others)
        known = self._known.setdefault(name, {})
        new = [width for width in widths if width not in known]
        if new:
            found = self._price(name, new, {})
            known.update({width: found.only(place) for place, width in enumerate(new)})
        return Prices.joined([known[width] for width in widths])

    def _price(self, name: str, widths: Sequence[int], others: Mapping[str, int]) -> Prices:
        places = self.groups.reached(name)
        return self._prices.of(
            [self.groups.layers_at(places, {**others, name: width}) for width in widths]
        )

    def amounts(self, prices: Prices) -> FloatArray:
        """The quantity that widths are chosen by."""
        found = prices.of(self.quantity)
        assert found is not None  # it was chosen as one that the platform knows
        return found

    def examine(self, reach: Mapping[str, int], effort: Effort) -> dict[str, int]:
        """Price the widths around every present one, the dearest group first.

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
            for group in self.dearest_first():
                goal = min(radius, reach[group.name])
                a_unit = 2 * len(self.groups.reached(group.name)) * self._effort_a_layer
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
        return Curve(np.array(widths), self.amounts(prices), widths.index(group.width)), prices

    def trace_at(self, widths: Mapping[str, int]) -> Trace:
        """The whole call at other widths."""
        trace = self.groups.trace
        return replace(trace, layers=self.groups.with_widths(trace.layers, widths))


def _widths(group: ChannelGroup, radius: int, beyond: int = -1) -> list[int]:
    """Widths of at most ``radius`` and more than ``beyond`` units from the present one."""
    return [
        (group.units + far) * group.step
        for far in range(max(-radius, 1 - group.units), radius + 1)
        if abs(far) > beyond
    ]
