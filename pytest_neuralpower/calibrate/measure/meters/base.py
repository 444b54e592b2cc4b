"""What a meter is: it runs a load and says what energy the device took meanwhile.

A meter is chosen by ``choose_meter``, which probes
it under load first. A zero is never a reading: a meter that cannot read is refused with a
sentence, a window whose counter froze or ran backwards raises :class:`ReadingVoid`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias, runtime_checkable

from pytest_neuralpower.errors import DeviceLost, MeterRefused, ReadingVoid

__all__ = [
    "NO_METER",
    "DeviceLost",
    "Meter",
    "MeterName",
    "MeterRefused",
    "Reading",
    "ReadingVoid",
    "Source",
    "Step",
]

#: What to do where no meter can be used; of the commands that open one, calibrate takes watts.
NO_METER: Final = (
    "use --meter none; if you know the power, neuralpower calibrate takes it as --watts W"
)

#: What ``--meter`` accepts beside ``auto``.
MeterName: TypeAlias = Literal["nvml", "rapl", "ina3221", "zeus", "none"]
#: Whether energy was read from the device or is a wattage of the user's times a runtime.
Source: TypeAlias = Literal["measured", "estimated"]
#: A few milliseconds of work that has ended (is synchronised) when it returns.
Step: TypeAlias = Callable[[], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """One window of load.

    Attributes
    ----------
    seconds
        Length of the window, from one counter edge to another where the meter has a counter.
    steps
        Steps that ended within the window.
    power_w
        Mean gross power over the window (idle included); ``None`` when the meter is ``none``
        and no wattage was given. Energy of one step is best had as ``power_w`` times the
        runtime that a timer found, which is finer than ``steps``.
    """

    seconds: float
    steps: int
    power_w: float | None

    @property
    def energy_mj(self) -> float | None:
        """Energy of the whole window in millijoules; ``None`` where there is no power."""
        return None if self.power_w is None else self.power_w * self.seconds * 1e3


@runtime_checkable
class Meter(Protocol):
    """Reads a device's energy while a load runs.

    Attributes
    ----------
    name
        What ``--meter`` calls it.
    source
        ``measured``, ``estimated`` (the user's watts), or ``None`` when it gives no energy.
    method
        How it reads, in a few words for the profile's header and the card.
    notes
        One sentence each for the printout: what was refused before it, what is less than best.
    """

    name: MeterName
    source: Source | None
    method: str
    notes: tuple[str, ...]

    def measure(self, step: Step, *, seconds: float, settle_s: float) -> Reading:
        """Run ``step`` over and over and read the energy meanwhile.

        Settles for ``settle_s`` under the same load, waits for an edge of the counter, runs for
        ``seconds`` or more, and reads at the next edge while the load still runs. A meter that
        needs a longer window than ``seconds`` takes it; :attr:`Reading.seconds` says so.

        Raises
        ------
        DeviceLost
            The device or its driver went away: save what is measured and stop.
        ReadingVoid
            The counter froze or ran backwards: measure this configuration again, or skip it.
        """
        ...

    def idle_w(self, seconds: float) -> float | None:
        """Mean power in watts over ``seconds`` without load; ``None`` where there is no energy.

        Raises the errors of :meth:`measure`.
        """
        ...

    def close(self) -> None:
        """Release the driver; the meter cannot be used afterwards."""
        ...
