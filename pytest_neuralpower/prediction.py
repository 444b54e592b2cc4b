"""Prediction: what one call of a model costs on one platform, layer by layer and in total."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from pytest_neuralpower.units import show

if TYPE_CHECKING:
    from pytest_neuralpower.intervals import LayerErrors
    from pytest_neuralpower.layers import Layer

#: Flags a layer's prediction can carry.
UNCOVERED = "uncovered"  # no formula for the operation: priced by its bytes alone
EXTRAPOLATED = "extrapolated"  # outside the ranges (or the dtype) the platform was calibrated on
FALLBACK = "fallback"  # the platform has no estimator for this kind: priced as memory-bound

#: Any of these: the platform's own measurements do not vouch for the figure.
UNTRUSTED = (UNCOVERED, FALLBACK, EXTRAPOLATED)


class Interval(NamedTuple):
    """Central interval that holds the true value with probability ``coverage``."""

    low: float
    high: float
    coverage: float


class LayerPrediction(NamedTuple):
    """One layer's predicted runtime (ms), power (W) and gross device energy (mJ) in one call.

    ``power_w`` and ``energy_mj`` are None on a platform without a power model.
    """

    layer: Layer
    runtime_ms: float
    power_w: float | None
    energy_mj: float | None
    estimator: str
    flags: tuple[str, ...] = ()
    runtime_interval_ms: Interval | None = None
    energy_interval_mj: Interval | None = None

    def __repr__(self) -> str:
        cost = show("runtime", self.runtime_ms)
        if self.energy_mj is not None:
            cost = f"{show('energy', self.energy_mj)}, {cost}"
        return f"<{self.layer.op} {self.layer.path or '(root)'}: {cost}>"


@dataclass(frozen=True, slots=True)
class Prediction:
    """The sum over the layers of one call: ``T = sum Tn``, ``E = sum Pn Tn``, ``P = E / T``.

    Energy is gross device energy of one forward call of the given inputs, idle power included
    (NeuralPower, section 3.3). ``batch`` is the number of samples in that call. ``errors`` is what
    intervals of sums and of differences are made of; None where the platform knows none.
    """

    layers: tuple[LayerPrediction, ...]
    platform: str
    platform_sha256: str
    batch: int = 1
    model: str = ""
    route: str = ""
    notes: tuple[str, ...] = ()
    runtime_interval_ms: Interval | None = None
    energy_interval_mj: Interval | None = None
    power_interval_w: Interval | None = None
    errors: LayerErrors | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        """Short: asserts and prints show it, and there may be thousands of layers."""
        values = [show("runtime", self.runtime_ms)]
        if self.energy_mj is not None:
            values.insert(0, show("energy", self.energy_mj))
        return (
            f"<Prediction of {self.model or 'a call'} on {self.platform}: {', '.join(values)}, "
            f"{len(self.layers)} layers>"
        )

    @property
    def runtime_ms(self) -> float:
        return sum(layer.runtime_ms for layer in self.layers)

    @property
    def energy_mj(self) -> float | None:
        """None when the platform has no power model."""
        total = 0.0
        for layer in self.layers:
            if layer.energy_mj is None:
                return None
            total += layer.energy_mj
        return total

    @property
    def power_w(self) -> float | None:
        """Mean power over the call, ``energy / runtime``."""
        energy, runtime = self.energy_mj, self.runtime_ms
        return None if energy is None or runtime == 0 else energy / runtime

    def share(self, *flags: str) -> float:
        """Share (0..1) of the energy that carries any of ``flags``; of the runtime if no power."""
        flagged = [layer for layer in self.layers if any(flag in layer.flags for flag in flags)]
        total = sum(_weight(layer) for layer in self.layers)
        return sum(_weight(layer) for layer in flagged) / total if total else 0.0

    def dearest(self, count: int) -> tuple[LayerPrediction, ...]:
        """The ``count`` layers with most energy (most runtime without power), dearest first."""
        return tuple(sorted(self.layers, key=_weight, reverse=True)[:count])


def _weight(layer: LayerPrediction) -> float:
    return layer.runtime_ms if layer.energy_mj is None else layer.energy_mj
