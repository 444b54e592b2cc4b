"""What layers cost on a platform: each configuration is priced once, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pytest_neuralpower.prediction import UNTRUSTED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.features import FloatArray
    from pytest_neuralpower.layers import Layer
    from pytest_neuralpower.platform import AnyPlatform

__all__ = ["LayerPrices", "Prices"]


class Prices(NamedTuple):
    """Of several sets of layers, each set's energy (mJ) and runtime (ms), and whether the
    platform's measurements vouch for all its layers. None is what the platform does not know."""

    energy_mj: FloatArray | None
    runtime_ms: FloatArray | None
    trusted: NDArray[np.bool_]

    def of(self, quantity: str) -> FloatArray | None:
        """``energy`` or ``runtime``; None where the platform lacks it."""
        return self.energy_mj if quantity == "energy" else self.runtime_ms

    def only(self, place: int) -> Prices:
        """The price of one of the sets."""
        one = slice(place, place + 1)
        return Prices(
            None if self.energy_mj is None else self.energy_mj[one],
            None if self.runtime_ms is None else self.runtime_ms[one],
            self.trusted[one],
        )

    @classmethod
    def joined(cls, prices: Sequence[Prices]) -> Prices:
        """The sets of several prices of one platform."""
        energy = [each.energy_mj for each in prices if each.energy_mj is not None]
        runtime = [each.runtime_ms for each in prices if each.runtime_ms is not None]
        return cls(
            np.concatenate(energy) if energy else None,
            np.concatenate(runtime) if runtime else None,
            np.concatenate([each.trusted for each in prices]),
        )


class LayerPrices:
    """Prices of layers on one platform, remembered by configuration."""

    def __init__(self, platform: AnyPlatform) -> None:
        self.platform = platform
        self._places: dict[tuple[Any, ...], int] = {}
        self._energy: list[float] = []
        self._runtime: list[float] = []
        self._trusted: list[bool] = []
        self._knows = {"energy": True, "runtime": True}

    def of(self, sets: Sequence[Sequence[Layer]]) -> Prices:
        """The sum over each set of layers; a set without layers costs nothing."""
        new: dict[tuple[Any, ...], Layer] = {}
        for layers in sets:
            for layer in layers:
                key = layer.configuration
                if key not in self._places:
                    new.setdefault(key, layer)
        if new:
            self._price(new)
        places = np.array(
            [self._places[layer.configuration] for layers in sets for layer in layers],
            dtype=np.intp,
        )
        owners = np.repeat(np.arange(len(sets)), [len(layers) for layers in sets])
        distrusted = np.bincount(
            owners, ~np.array(self._trusted, dtype=bool)[places], minlength=len(sets)
        )
        return Prices(
            self._sum("energy", self._energy, places, owners, len(sets)),
            self._sum("runtime", self._runtime, places, owners, len(sets)),
            distrusted == 0,
        )

    def _sum(
        self,
        quantity: str,
        values: list[float],
        places: NDArray[np.intp],
        owners: NDArray[np.intp],
        count: int,
    ) -> FloatArray | None:
        if not self._knows[quantity]:
            return None
        summed = np.bincount(owners, np.array(values, dtype=float)[places], minlength=count)
        return summed.astype(float)

    def _price(self, new: dict[tuple[Any, ...], Layer]) -> None:
        predicted = self.platform.predict(tuple(new.values()))
        for key, each in zip(new, predicted.layers, strict=True):
            self._places[key] = len(self._places)
            self._energy.append(each.energy_mj or 0.0)
            self._runtime.append(each.runtime_ms or 0.0)
            self._trusted.append(not any(flag in each.flags for flag in UNTRUSTED))
        self._knows["energy"] &= predicted.layers[0].energy_mj is not None
        self._knows["runtime"] &= predicted.layers[0].runtime_ms is not None
