"""Prediction: what one call of a model costs on one platform, layer by layer and in total."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add, attrgetter
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple, cast

from msgspec import Meta, Struct

from pytest_neuralpower.estimators.base import NonNegative, Positive
from pytest_neuralpower.units import show

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Layer
    from pytest_neuralpower.platform.intervals import Interval, LayerErrors

#: Flags a layer's prediction can carry.
UNCOVERED = "uncovered"  # no formula for the operation: priced by its bytes alone
EXTRAPOLATED = "extrapolated"  # outside the ranges (or the dtype) the platform was calibrated on
INFERRED = "inferred"  # no row of this kind on the device: priced as other devices run it

#: How the note begins of a call whose time is that of its host's launches.
HOST_BOUND = "host-bound"

#: Any of these: the platform's own measurements do not vouch for the figure.
UNTRUSTED = (UNCOVERED, INFERRED, EXTRAPOLATED)

#: What the energy of a platform with measured power is (NeuralPower, section 3.3).
GROSS: Final = "gross device energy, idle included"
#: What it is where nobody measured power and the user gave a wattage.
ESTIMATED: Final = "estimated energy: the watts that the user gave, times the runtime"


class Host(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a framework's host takes to launch one layer: a call takes no less than that for each.

    Attributes
    ----------
    layer_ms
        Time of one operation, ms. It belongs to the host and the framework, not to the device.
    factor
        90% of hosts are within this factor of it, up or down.
    waiting_w
        What the device draws while it waits, W; None where that is not known.
    kinds
        By kind of layer, how many times ``layer_ms`` one takes, where calls showed it; 1 of others.
    """

    layer_ms: Positive
    factor: Annotated[float, Meta(ge=1)] = 1.5
    waiting_w: NonNegative | None = None
    kinds: dict[str, Positive] = {}

    def launches(self, layers: Sequence[Layer]) -> float:
        """As how many operations of ``layer_ms`` these layers are launched."""
        if not self.kinds:
            return len(layers)
        return sum(self.kinds.get(layer.kind, 1.0) for layer in layers)

    def total_ms(self, device_ms: float | None, launches: float) -> float | None:
        """Runtime of a call: what the device takes, or the host where that is more."""
        return None if device_ms is None else max(device_ms, self.layer_ms * launches)

    def waiting_mj(self, device_ms: float | None, launches: float) -> float:
        """Energy of waiting for the host; 0 where the device's power at rest is not known."""
        waiting = self.layer_ms * launches - (device_ms or 0.0)
        return max(waiting, 0.0) * (self.waiting_w or 0.0)


class TokenSampler(Struct, frozen=True, forbid_unknown_fields=True):
    """What a serving engine takes to draw a token by top-k and top-p.

    Attributes
    ----------
    logit_ns
        Time for each logit of each sample, ns.
    """

    logit_ns: Positive

    def runtime_ms(self, logits: int) -> float:
        """Of so many logits in all."""
        return self.logit_ns * logits * 1e-6


class LayerPrediction(NamedTuple):
    """One layer's predicted runtime (ms), power (W) and energy (mJ) in one call.

    ``power_w`` and ``energy_mj`` are None on a platform without a power model, ``runtime_ms`` and
    ``power_w`` on one that knows energy alone. ``energy_parts_mj`` is the energy by data type where
    the platform tells them apart.
    """

    layer: Layer
    runtime_ms: float | None
    power_w: float | None
    energy_mj: float | None
    estimator: str
    flags: tuple[str, ...] = ()
    runtime_interval_ms: Interval | None = None
    energy_interval_mj: Interval | None = None
    energy_parts_mj: Mapping[str, float] | None = None

    def __repr__(self) -> str:
        cost = ", ".join(_shown(self.energy_mj, self.runtime_ms))
        return f"<{self.layer.op} {self.layer.path or '(root)'}: {cost}>"

    @property
    def cost(self) -> float:
        """What layers are ranked by: energy, or runtime where energy is not known."""
        return (self.runtime_ms or 0.0) if self.energy_mj is None else self.energy_mj


@dataclass(frozen=True, slots=True)
class Prediction:
    """The sum over the layers of one call: ``T = sum Tn``, ``E = sum Pn Tn``, ``P = E / T``.

    Where the platform knows its ``host``, a call takes at least what launching its layers takes;
    the figures of layers are those of the device.

    Energy is of one forward call of the given inputs; ``energy_basis`` says of what, in words.
    ``batch`` is the number of samples in that call, ``tokens`` that of tokens, 0 where its inputs
    do not tell. ``estimator`` is ``neuralpower`` where the paper's polynomials priced what they
    can. ``errors`` is what intervals of sums and of differences are made of; None where the
    platform knows none.
    """

    layers: tuple[LayerPrediction, ...]
    platform: str
    platform_sha256: str
    batch: int = 1
    model: str = ""
    route: str = ""
    notes: tuple[str, ...] = ()
    energy_basis: str = GROSS
    runtime_interval_ms: Interval | None = None
    energy_interval_mj: Interval | None = None
    power_interval_w: Interval | None = None
    host: Host | None = None
    estimator: str = "best"
    tokens: int = 0
    errors: LayerErrors | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        """Short: asserts and prints show it, and there may be thousands of layers."""
        values = ", ".join(_shown(self.energy_mj, self.runtime_ms))
        return (
            f"<Prediction of {self.model or 'a call'} on {self.platform}: {values}, "
            f"{len(self.layers)} layers>"
        )

    @property
    def device_ms(self) -> float | None:
        """Sum of the layers' runtimes, None when the platform knows energy alone."""
        return add_known([layer.runtime_ms for layer in self.layers])

    @property
    def launches(self) -> float:
        """:meth:`Host.launches` of the layers; their number where there is no host."""
        if self.host is None or not self.host.kinds:
            return len(self.layers)
        return self.host.launches([each.layer for each in self.layers])

    @property
    def host_ms(self) -> float | None:
        """What the host takes to launch the layers; None where the call does not wait for it."""
        return None if self.host is None else self.host.layer_ms * self.launches

    @property
    def runtime_ms(self) -> float | None:
        """The device's or the host's, whichever takes longer; None when energy alone is known."""
        device = self.device_ms
        return device if self.host is None else self.host.total_ms(device, self.launches)

    @property
    def energy_mj(self) -> float | None:
        """Waiting for the host included; None when the platform has no power model."""
        energy = add_known([layer.energy_mj for layer in self.layers])
        if energy is None or self.host is None or self.host.waiting_w is None:
            return energy
        return energy + self.host.waiting_mj(self.device_ms, self.launches)

    @property
    def energy_parts_mj(self) -> dict[str, float] | None:
        """Energy by data type; None where the platform does not tell them apart."""
        total: dict[str, float] = {}
        for layer in self.layers:
            if layer.energy_parts_mj is None:
                return None
            for part, energy in layer.energy_parts_mj.items():
                total[part] = total.get(part, 0.0) + energy
        return total

    @property
    def power_w(self) -> float | None:
        """Mean power over the call, ``energy / runtime``."""
        return mean_power(self.energy_mj, self.runtime_ms)

    @property
    def cost(self) -> float:
        """Sum of the layers' ``cost``."""
        return sum(layer.cost for layer in self.layers)

    def share(self, *flags: str) -> float:
        """Share (0..1) of the energy that carries any of ``flags``; of the runtime if no power."""
        total, wanted = self.cost, frozenset(flags)
        flagged = [each.cost for each in self.layers if not wanted.isdisjoint(each.flags)]
        return sum(flagged) / total if total else 0.0

    def top(self, count: int) -> tuple[LayerPrediction, ...]:
        """The ``count`` layers with most energy (most runtime without power), descending."""
        return tuple(sorted(self.layers, key=attrgetter("cost"), reverse=True)[:count])


def add_known(values: Sequence[float | None]) -> float | None:
    """The sum; None where a value is not known."""
    if None in values:
        return None
    # sum() rounds otherwise from Python 3.12 on; a loop takes longer, and there are many layers.
    return reduce(add, cast("Sequence[float]", values), 0.0)


def mean_power(energy_mj: float | None, runtime_ms: float | None) -> float | None:
    """``energy / runtime`` in W; None where one is not known or no time passes."""
    return energy_mj / runtime_ms if energy_mj is not None and runtime_ms else None


def _shown(energy_mj: float | None, runtime_ms: float | None) -> list[str]:
    """What is known of both, for people."""
    shown = [] if energy_mj is None else [show("energy", energy_mj)]
    return shown if runtime_ms is None else [*shown, show("runtime", runtime_ms)]
