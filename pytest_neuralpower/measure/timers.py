"""Timers: marks in a stream of work, and the time between two of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

__all__ = ["CpuTimer", "Timer", "WallTimer"]


class Timer(Protocol):
    """Marks the device's time; reads the marks when all work is done."""

    def __hash__(self) -> int: ...

    def start(self) -> None:
        """Before a run of a network: nothing is left to do from before."""
        ...

    def mark(self) -> Any:
        """A point in the device's work, now."""
        ...

    def elapsed_ms(self, marks: Sequence[tuple[Any, Any]]) -> list[float]:
        """Time from the first to the second of each pair, ms, the timer's own time taken off."""
        ...

    def waited(self, marks: Sequence[tuple[Any, Any]]) -> list[bool]:
        """Whether each pair's time ended with the host: what Python took is then part of it."""
        ...


class CpuTimer:
    """CPU time of the calling thread: what other processes take of the core does not count.

    Only for one computing thread; what other threads do would be missed.
    """

    def __init__(self) -> None:
        self.mark: Callable[[], int] = time.thread_time_ns
        self._own_ns = _own_time_ns(self.mark)

    def start(self) -> None:
        """Calls return when they are done: nothing to wait for."""

    def elapsed_ms(self, marks: Sequence[tuple[int, int]]) -> list[float]:
        return [max(end - begin - self._own_ns, 1) * 1e-6 for begin, end in marks]

    def waited(self, marks: Sequence[tuple[int, int]]) -> list[bool]:
        """The host computes by itself."""
        return [True] * len(marks)


class WallTimer(CpuTimer):
    """Wall-clock time, for several computing threads."""

    def __init__(self) -> None:
        self.mark = time.perf_counter_ns
        self._own_ns = _own_time_ns(self.mark)


def _own_time_ns(mark: Callable[[], int]) -> int:
    """What a mark takes by itself: the least of many."""
    return min(-(mark() - mark()) for _ in range(1000))
