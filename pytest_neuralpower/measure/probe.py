"""The speed of the processor just now, by a piece of work that is always the same.

Thread time does not count what other processes take of the core, yet they slow a thread down
where they share its execution units, caches or clock: by a third on a machine whose cores are two
threads of one. A product of small matrices tells in half a millisecond.
"""

from __future__ import annotations

import time
from typing import Final

import torch

__all__ = ["SLOWED", "Probe"]

#: A probe above the best by this factor: what ran beside it was slowed down.
SLOWED: Final = 1.08

#: Rows of the matrices; products a probe: the least counts, as caches may be cold at first.
_SIDE: Final = 192
_PRODUCTS: Final = 3


class Probe:
    """Measures the speed again and again, and knows the best so far.

    Attributes
    ----------
    best_ms
        Least time of all.
    """

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self._left = torch.randn(_SIDE, _SIDE, generator=generator)
        self._right = torch.randn(_SIDE, _SIDE, generator=generator)
        self.best_ms = float("inf")
        for _ in range(5):
            self.measure_ms()

    def measure_ms(self) -> float:
        """Time of the piece of work now, ms."""
        times = []
        for _ in range(_PRODUCTS):
            begin = time.thread_time_ns()
            torch.mm(self._left, self._right)
            times.append(time.thread_time_ns() - begin)
        found = min(times) * 1e-6
        self.best_ms = min(self.best_ms, found)
        return found

    def is_slow(self, probe_ms: float) -> bool:
        return probe_ms > SLOWED * self.best_ms
