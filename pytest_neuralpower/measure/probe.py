"""The speed of the processor just now, by a piece of work that is always the same.

Thread time does not count what other processes take of the core, yet they slow a thread down
where they share its execution units, caches or clock: by a third on a machine whose cores are two
threads of one. A few products of small matrices tell in a tenth of a millisecond.
"""

from __future__ import annotations

import time
from typing import Final

import torch

__all__ = ["Probe"]

#: Rows of the matrices: 0.1 MB, of which a second-level cache loses little.
_SIDE: Final = 96

#: Products a probe, after one that brings them into the cache.
_PRODUCTS: Final = 5


class Probe:
    """Measures the processor's speed again and again."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self._left = torch.randn(_SIDE, _SIDE, generator=generator)
        self._right = torch.randn(_SIDE, _SIDE, generator=generator)
        for _ in range(5):
            self.measure_ms()

    def measure_ms(self) -> float:
        """Thread time of the piece of work now, ms."""
        torch.mm(self._left, self._right)
        begin = time.thread_time_ns()
        for _ in range(_PRODUCTS):
            torch.mm(self._left, self._right)
        return (time.thread_time_ns() - begin) * 1e-6
