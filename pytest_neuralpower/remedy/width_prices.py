"""Every width of a channel group, priced on a platform."""

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

__all__ = ["WidthPrices"]

#: A width is examined this part of it up and down, and at least so many units: far enough to tell
#: a jump from the usual step.
_PART: Final = 8
_LEAST_UNITS: Final = 16


class WidthPrices:
    """Prices of a model's layers at other widths, chosen by one ``quantity``."""

    def __init__(
        self,
        groups: ChannelGroups,
        platform: AnyPlatform,
        quantity: Literal["energy", "runtime"],
    ) -> None:
        self.groups = groups
        self.quantity: Literal["energy", "runtime"] = quantity
        self._prices = LayerPrices(platform)

    def dearest_first(self) -> list[ChannelGroup]:
        """The groups that may change, by what the layers that they reach cost now."""
        found = self.groups.changeable
        reached = [self.groups.reached(group.name) for group in found]
        costs = self.amounts(
            self._prices.of([self.groups.layers_at(places, {}) for places in reached])
        )
        order = np.argsort(-costs, kind="stable")
        return [found[place] for place in order.tolist()]

    def at(
        self, name: str, widths: Sequence[int], others: Mapping[str, int] | None = None
    ) -> Prices:
        """Price of the layers that one group reaches, at each of its ``widths``."""
        places = self.groups.reached(name)
        return self._prices.of(
            [self.groups.layers_at(places, {**(others or {}), name: width}) for width in widths]
        )

    def amounts(self, prices: Prices) -> FloatArray:
        """The quantity that widths are chosen by."""
        found = prices.of(self.quantity)
        assert found is not None  # the quantity is one that the platform knows
        return found

    def curve(self, group: ChannelGroup) -> tuple[Curve, Prices]:
        """The price at every width around the present one."""
        reach = max(group.units // _PART, _LEAST_UNITS)
        units = range(max(group.units - reach, 1), group.units + reach + 1)
        widths = [each * group.step for each in units]
        prices = self.at(group.name, widths)
        now = group.units - units.start
        return Curve(np.array(widths), self.amounts(prices), now), prices

    def trace_at(self, widths: Mapping[str, int]) -> Trace:
        """The whole call at other widths."""
        trace = self.groups.trace
        return replace(trace, layers=self.groups.with_widths(trace.layers, widths))
