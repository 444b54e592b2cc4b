"""How far a calibration is: a live line on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import TaskID

#: s between two plain lines.
_PLAIN_EVERY_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How far it is.

    ``repeatability_percent`` is the median difference between passes so far; it, the temperature
    and the power are None while they are not known.
    """

    done: int
    total: int
    left_s: float
    kind: str
    repeatability_percent: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None

    @property
    def details(self) -> str:
        """``residual, repeatability 1.2%, 61 °C, 312 W``."""
        parts = [self.kind]
        if self.repeatability_percent is not None:
            parts.append(f"repeatability {self.repeatability_percent:.1f}%")
        if self.temperature_c is not None:
            parts.append(f"{self.temperature_c:.0f} °C")
        if self.power_w is not None:
            parts.append(f"{self.power_w:.0f} W")
        return ", ".join(parts)

    @property
    def left(self) -> str:
        """``1:05`` left."""
        minutes, seconds = divmod(round(self.left_s), 60)
        return f"{minutes}:{seconds:02d}"


class Progress:
    """Where a calibration says what it does, a context manager: a line now and then, for logs."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._next = time.monotonic() + _PLAIN_EVERY_S

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, text: str) -> None:
        """One line that stays."""
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def show(self, status: Status) -> None:
        """Where it is now."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _PLAIN_EVERY_S
            self.say(f"{status.done} of {status.total}, {status.left} left: {status.details}")


class RichProgress(Progress):
    """A live bar with the time left."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - only once used
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn  # noqa: PLC0415
        from rich.progress import Progress as Bar  # noqa: PLC0415

        self._bar = Bar(
            TextColumn("measuring"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]} left"),
            TextColumn("[dim]{task.description}"),
            console=Console(stderr=True),
            transient=True,
            auto_refresh=False,  # a thread that draws would take time from what is measured
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, status: Status) -> None:
        if self._task is None:
            self._task = self._bar.add_task("", total=status.total, left="")
        self._bar.update(
            self._task,
            completed=status.done,
            total=status.total,
            description=status.details,
            left=status.left,
        )
        self._bar.refresh()


def choose_progress() -> Progress:
    """Live where standard error is a terminal, plain elsewhere."""
    return RichProgress() if sys.stderr.isatty() else Progress()
