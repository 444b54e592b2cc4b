"""Times on a CUDA device, by events in its stream."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

from pytest_neuralpower.measure.trial import TrialSkipped

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CudaTimer", "as_graph", "caught_up"]

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
            torch.cuda._sleep(_AHEAD_CYCLES)  # type: ignore[no-untyped-call]

    def mark(self) -> Mark:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        queued_ns = time.perf_counter_ns()
        event.record(self._stream)
        return Mark(event, queued_ns)

    def elapsed_ms(self, marks: Sequence[tuple[Mark, Mark]]) -> list[float]:
        torch.cuda.synchronize(self._stream.device)
        return [
            max(begin.event.elapsed_time(end.event) - self._own_ms, 1e-6) for begin, end in marks
        ]

    def waited(self, marks: Sequence[tuple[Mark, Mark]]) -> list[bool]:
        """See :meth:`Timer.waited`."""
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
