"""The bench that layers are measured on, and the trials that a calibration consists of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from pytest_neuralpower.calibrate.fit.rows import SENTINEL
from pytest_neuralpower.errors import NeuralPowerError


class MeasuredHardware(msgspec.Struct, frozen=True, omit_defaults=True):
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

    peak_gflops: Annotated[float, msgspec.Meta(gt=0)]
    bandwidth_gbs: Annotated[float, msgspec.Meta(gt=0)]
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
    hardware: MeasuredHardware
    mode: Literal["eager", "graph"] = "eager"

    @property
    def is_cuda(self) -> bool:
        return self.device.startswith("cuda")


# -- Trials.

What = Literal["network", "layer", "whole"]


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
