"""Times on a CUDA device, by events in its stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CudaTimer", "as_graph"]

#: Cycles that the device is kept busy for before a run in mode ``graph``: about 10 ms, in which
#: the host queues the calls of a small network, so that no launch is waited for.
_AHEAD_CYCLES: Final = 20_000_000


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

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def elapsed_ms(self, marks: Sequence[tuple[Any, Any]]) -> list[float]:
        torch.cuda.synchronize(self._stream.device)
        return [max(begin.elapsed_time(end) - self._own_ms, 1e-6) for begin, end in marks]

    def _own_time_ms(self) -> float:
        """Between two events with nothing between them: the least of many."""
        self.start()
        marks = [(self.mark(), self.mark()) for _ in range(100)]
        torch.cuda.synchronize(self._stream.device)
        return float(min(begin.elapsed_time(end) for begin, end in marks))


def as_graph(call: Callable[[], Any], device: torch.device) -> Callable[[], None]:
    """The call as a CUDA graph: what it returns replays it.

    It is run a few times first, on a stream of its own, so that libraries choose their algorithms
    and allocate what they keep.
    """
    aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        for _ in range(3):
            call()
    torch.cuda.current_stream(device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
