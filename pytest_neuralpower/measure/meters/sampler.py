"""Read a number over and over in a thread, while the caller's load runs in its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from pytest_neuralpower.errors import DeviceLost

__all__ = ["Sample", "Sampler"]

# A driver that hangs in a call must not hang the session too.
_JOIN_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """A value and the moment (``time.perf_counter``) at which its reading had ended."""

    at_s: float
    value: float


class Sampler:
    """Keeps the readings of ``read``, one every ``every_s`` seconds, while it is entered.

    What ``read`` raises ends the sampling and is raised again by :meth:`check` and on leaving:
    a lost device shows itself here before the load notices. A ``read`` that has not returned
    for ``silent_s`` seconds counts as one.
    """

    def __init__(
        self, read: Callable[[], float], *, every_s: float, silent_s: float = 10.0
    ) -> None:
        self.samples: list[Sample] = []
        self._read = read
        self._every_s = every_s
        self._silent_s = silent_s
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._asked_at_s = 0.0
        self._thread = threading.Thread(target=self._run, name="meter", daemon=True)

    def __enter__(self) -> Self:
        self._asked_at_s = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(_JOIN_S)
        if error is None or isinstance(error, Exception):
            self.check()

    def check(self) -> None:
        """Raise what ``read`` raised, or :class:`DeviceLost` when it does not return."""
        if self._error is not None:
            raise self._error
        if time.perf_counter() - self._asked_at_s > self._silent_s:
            raise DeviceLost(
                f"the device's meter has not answered for {self._silent_s:g} s; see that its "
                "driver works, then go on with --resume"
            )

    def _run(self) -> None:
        due = time.perf_counter()
        while not self._stop.is_set():
            self._asked_at_s = time.perf_counter()
            try:
                value = self._read()
            except Exception as error:
                self._error = error
                return
            now = time.perf_counter()
            self.samples.append(Sample(now, value))
            due = max(due + self._every_s, now)
            self._stop.wait(due - now)
