"""The bench: which device layers are measured on, and how they run there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Bench"]


@dataclass(frozen=True, slots=True)
class Bench:
    """One device and how its calls are run and timed.

    Attributes
    ----------
    device
        As torch names it: ``cpu``, ``cuda:0``.
    dtype
        Floating dtype of the networks, as in a platform: ``float32``, ``bfloat16``.
    mode
        ``eager``; ``graph``, on CUDA, replays graphs of whole networks and of what runs under the
        meter, and times layers in place without the host's launches.
    threads
        Threads that compute on a CPU; thread time is taken with one alone.
    hardware
        Facts of the device (:func:`~pytest_neuralpower.measure.hardware.hardware_facts`).
    """

    device: str
    dtype: str
    hardware: Mapping[str, float]
    mode: Literal["eager", "graph"] = "eager"
    threads: int = 1

    @property
    def is_cuda(self) -> bool:
        return self.device.startswith("cuda")
