"""Trials: what one step of a calibration measures, and the rows that come of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Literal

from pytest_neuralpower.errors import NeuralPowerError

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Layer

__all__ = ["SENTINEL", "MeasuredRow", "Trial", "TrialSkipped"]

What = Literal["network", "layer", "whole"]

#: Name of the network that is timed again and again to see the device drift.
SENTINEL: Final = "sentinel"


class TrialSkipped(NeuralPowerError, RuntimeError):  # noqa: N818 - a state, not a mistake
    """One configuration cannot be measured here (out of memory, a NaN); the others can."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One thing to measure: small enough for a line of JSON, and enough to make it again.

    Attributes
    ----------
    network
        Name of the network, unique in a plan; the same in every pass.
    what
        ``network``: a random network, every call timed in place, and the whole of it beside.
        ``layer``: one layer of it (``index``) alone, repeated under the meter.
        ``whole``: the whole network, repeated under the meter.
    template, seed
        What kind of network, and all that its sizes are drawn from.
    pass_
        Which time round this is, from 1; passes are spread over the session.
    index
        Which layer of the network's trace, for ``layer``.
    """

    network: str
    what: What
    template: str
    seed: int
    pass_: int = 1
    index: int = -1

    @property
    def id(self) -> str:
        """Unique in a plan: ``n017/2``, ``n017.3/1`` of a layer, ``n017.whole/1``."""
        place = {"network": "", "layer": f".{self.index}", "whole": ".whole"}[self.what]
        return f"{self.network}{place}/{self.pass_}"

    @property
    def is_sentinel(self) -> bool:
        return self.network == SENTINEL

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Trial:
        return cls(**{field.name: data[field.name] for field in fields(cls)})


@dataclass(frozen=True, slots=True)
class MeasuredRow:
    """One measured layer, or one measured whole network.

    Attributes
    ----------
    trial
        The :attr:`Trial.id` it came of.
    network
        Name of the network.
    layer
        The layer as the tracer lists it, its path included; None for a whole network.
    runtime_ms
        Device time of one call, ms: thread time on a CPU, between events on a GPU. The least of
        the repeats within the pass.
    index
        Place among the network's layers, from 0; for equal layers of one network, that of the
        first. -1 for the whole.
    calls
        Equal layers of the network that the row is the mean of; of the whole, its layers.
    pass_
        Of the trial.
    wall_ms
        The same by the wall clock; None where it was not taken.
    power_w
        Mean gross device power during repeated calls, W; None without a meter.
    probe_ms
        Time of the same small piece of work now and then during the trial, in the mean: how fast
        the processor was (:mod:`pytest_neuralpower.measure.probe`); None where it was not taken.
    """

    trial: str
    network: str
    layer: Layer | None
    runtime_ms: float
    index: int = -1
    calls: int = 1
    pass_: int = 1
    wall_ms: float | None = None
    power_w: float | None = None
    probe_ms: float | None = None

    @property
    def whole(self) -> bool:
        return self.layer is None
