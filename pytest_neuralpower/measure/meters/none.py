"""No meter: runtime alone, or the user's watts times a runtime."""

from __future__ import annotations

import math
import time

from pytest_neuralpower.errors import OptionError
from pytest_neuralpower.measure.meters.base import MeterName, Reading, Source, Step

__all__ = ["NoMeter"]


class NoMeter:
    """Runs the load and reads no energy.

    Parameters
    ----------
    watts
        Power of the device under load as the user knows it. Energy is then *estimated*;
        without it there is none, and no zero in its place.
    notes
        What was refused before.

    Raises
    ------
    OptionError
        ``watts`` is not a positive number.
    """

    name: MeterName = "none"

    def __init__(self, *, watts: float | None = None, notes: tuple[str, ...] = ()) -> None:
        if watts is not None and not (math.isfinite(watts) and watts > 0):
            raise OptionError(
                f"--watts {watts:g}: power must be a positive number of watts, such as 65"
            )
        self.notes = notes
        self.source: Source | None = None if watts is None else "estimated"
        self.method = "runtime only" if watts is None else f"{watts:g} W given by the user"
        self._watts = watts

    def measure(self, step: Step, *, seconds: float, settle_s: float) -> Reading:
        """See :meth:`~pytest_neuralpower.measure.meters.base.Meter.measure`."""
        settled = time.perf_counter() + settle_s
        while time.perf_counter() < settled:
            step()
        steps, start = 0, time.perf_counter()
        while (taken := time.perf_counter() - start) < seconds:
            step()
            steps += 1
        return Reading(seconds=taken, steps=steps, power_w=self._watts)

    def idle_w(self, seconds: float) -> None:
        """Nothing is known of idle power."""

    def close(self) -> None:
        """Nothing is held."""
