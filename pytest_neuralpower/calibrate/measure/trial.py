"""The bench: which device layers are measured on, and how they run there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import msgspec
import numpy as np

from pytest_neuralpower.errors import NeuralPowerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pytest_neuralpower.layers import Layer

__all__ = [
    "SENTINEL",
    "Bench",
    "Hardware",
    "MeasuredRow",
    "Repeatability",
    "Trial",
    "TrialSkipped",
    "drift",
    "repeatability",
]


class Hardware(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Ceilings and sizes of a device, as a fit needs them.

    Attributes
    ----------
    peak_gflops, bandwidth_gbs
        Of a large matrix product and a large copy.
    multiprocessors
        Of a CUDA device.
    threads, vector_floats
        Of a processor: threads that compute, float32 numbers in one vector.
    l2_mb, l3_mb
        Caches, where the system tells them.
    """

    peak_gflops: float
    bandwidth_gbs: float
    multiprocessors: int | None = None
    threads: int | None = None
    vector_floats: int | None = None
    l2_mb: float | None = None
    l3_mb: float | None = None


@dataclass(frozen=True, slots=True)
class Bench:
    """One device and how its calls are run and timed.

    Attributes
    ----------
    device
        As torch names it: ``cpu``, of which one thread computes, or ``cuda:0``.
    dtype
        Floating dtype of the networks, as in a platform: ``float32``, ``bfloat16``.
    hardware
        Its ceilings and sizes.
    mode
        ``eager``; ``graph``, on CUDA, replays graphs of whole networks and of what runs under the
        meter, and times layers in place without the host's launches.
    """

    device: str
    dtype: str
    hardware: Hardware
    mode: Literal["eager", "graph"] = "eager"

    @property
    def is_cuda(self) -> bool:
        return self.device.startswith("cuda")


# -- Trials: what one step of a calibration measures, and the rows that come of it.

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
        ``network``: a random network, every call timed in place, and the whole of it as well.
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
        the processor was (``timers.SpeedProbe``); None where it was not taken.
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


# -- Drift and repeatability: how far the same layers lay apart, measured twice in one session.

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
