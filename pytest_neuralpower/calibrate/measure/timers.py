"""Timers for CPU and CUDA, and what keeps them steady: reference work and kept memory."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final, NamedTuple, TypeAlias

import torch

from pytest_neuralpower.calibrate.measure.trial import TrialSkipped
from pytest_neuralpower.tracing.torch_private import hold_stream


class CpuTimer:
    """CPU time of the calling thread: what other processes take of the core does not count.

    Only for one computing thread; what other threads do would be missed.
    """

    def __init__(self) -> None:
        self.mark: Callable[[], int] = time.thread_time_ns
        # What a mark takes by itself: the least of many.
        self._own_ns = min(-(self.mark() - self.mark()) for _ in range(1000))

    def start(self) -> None:
        """Before a run of a network. Calls return when they are done: nothing to wait for."""

    def elapsed_ms(self, marks: Sequence[tuple[Any, Any]]) -> list[float]:
        """Time from the first to the second of each pair, ms, the timer's own time taken off."""
        return [max(end - begin - self._own_ns, 1) * 1e-6 for begin, end in marks]

    def waited(self, marks: Sequence[tuple[Any, Any]]) -> list[bool]:
        """Whether each pair's time ended with the host: what Python took is then part of it."""
        return [True] * len(marks)


# -- Times on a CUDA device, by events in its stream.

#: Cycles that the device is kept busy for before a run in mode ``graph``: about 10 ms, in which
#: the host queues the calls of a small network, so that no launch is waited for.
_AHEAD_CYCLES: Final = 20_000_000


#: ms by which the device may pass a mark later than the host set it, and still have waited for it.
_CAUGHT_UP_MS: Final = 0.01


class Mark(NamedTuple):
    """An event in the stream, and when the host queued it (``time.perf_counter_ns``)."""

    event: torch.cuda.Event
    queued_ns: int


class CudaTimer:
    """Marks are events: they pass when all work queued before them is done.

    With ``ahead`` the device waits at the start of each run until the host has queued it, and the
    time between two marks is that of kernels alone, as in a CUDA graph. Without, a call that is
    launched more slowly than it computes takes as long as its launch.
    """

    def __init__(self, device: torch.device, *, ahead: bool) -> None:
        self._stream = torch.cuda.current_stream(device)
        self._ahead = ahead
        self._own_ms = self._own_time_ms()

    def start(self) -> None:
        """Before a run: nothing is left to do on the device, or it is kept waiting."""
        torch.cuda.synchronize(self._stream.device)
        if self._ahead:
            hold_stream(_AHEAD_CYCLES)

    def mark(self) -> Mark:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        queued_ns = time.perf_counter_ns()
        event.record(self._stream)
        return Mark(event, queued_ns)

    def elapsed_ms(self, marks: Sequence[tuple[Any, Any]]) -> list[float]:
        torch.cuda.synchronize(self._stream.device)
        return [
            max(begin.event.elapsed_time(end.event) - self._own_ms, 1e-6) for begin, end in marks
        ]

    def waited(self, marks: Sequence[tuple[Any, Any]]) -> list[bool]:
        if self._ahead or not marks:
            return [False] * len(marks)
        torch.cuda.synchronize(self._stream.device)
        first = marks[0][0]
        return caught_up(
            [(end.queued_ns - first.queued_ns) * 1e-6 for _, end in marks],
            [first.event.elapsed_time(end.event) for _, end in marks],
        )

    def _own_time_ms(self) -> float:
        """Between two events with nothing between them: the least of many."""
        self.start()
        marks = [(self.mark(), self.mark()) for _ in range(100)]
        torch.cuda.synchronize(self._stream.device)
        return float(min(begin.event.elapsed_time(end.event) for begin, end in marks))


Timer: TypeAlias = CpuTimer | CudaTimer


def time_call(call: Callable[[], object], timer: Timer) -> tuple[float, float]:
    """Device time and wall time of one call, ms."""
    timer.start()
    wall_s = time.perf_counter()
    begin = timer.mark()
    call()
    (runtime_ms,) = timer.elapsed_ms([(begin, timer.mark())])
    return runtime_ms, 1e3 * (time.perf_counter() - wall_s)


def caught_up(queued_ms: Sequence[float], passed_ms: Sequence[float]) -> list[bool]:
    """Which marks the device passed as soon as they were queued, both counted from the first mark.

    That one may have been slow itself: the least delay of all is none.
    """
    late = [passed - queued for queued, passed in zip(queued_ms, passed_ms, strict=True)]
    least = min([0.0, *late])
    return [each - least < _CAUGHT_UP_MS for each in late]


def as_graph(call: Callable[[], Any], device: torch.device) -> Callable[[], None]:
    """The call as a CUDA graph: what it returns replays it.

    It is run a few times first, so that libraries choose their algorithms and allocate what they
    keep; on the stream of the capture, since they keep some of it by stream.

    Raises
    ------
    TrialSkipped
        It cannot be captured: it waits for the device, or copies from pageable memory.
    """
    current, aside = torch.cuda.current_stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(current):  # comes back to it even where ending the capture fails
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(3):
                call()
        current.wait_stream(aside)
        try:
            with torch.cuda.graph(graph, stream=aside):
                call()
        except RuntimeError as error:
            said = " ".join(str(error).split())[:200]
            if "captur" not in said:
                raise
            raise TrialSkipped(f"it cannot be captured in a CUDA graph ({said})") from None
    return graph.replay


# -- The present speed of the processor, by a fixed piece of work.
#
# Thread time does not count what other processes take of the core, yet they slow a thread down
# where they share its execution units, caches or clock: by a third on a machine whose cores are two
# threads of one. A few products of small matrices tell in a tenth of a millisecond.

#: Rows of the matrices: 0.1 MB, of which a second-level cache loses little.
_SIDE: Final = 96

#: Products a probe, after one that brings them into the cache.
_PRODUCTS: Final = 5


class SpeedProbe:
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


# -- Memory of the process on a CPU, kept while layers are timed.
#
# glibc gives large blocks back to the system as soon as they are free and gets them again, page by
# page, at 0.5 ms a megabyte: several times what a streaming layer takes. When it does so depends on
# what the process allocated before, so the same layer takes one time or five times as long. Servers
# keep memory (``MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1``, jemalloc, tcmalloc); so do trials.

#: Names of ``mallopt``'s parameters in glibc's malloc.h.
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4


@cache
def keep_memory() -> bool:
    """Let this process keep what it frees, from now on; False where the C library is not glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
