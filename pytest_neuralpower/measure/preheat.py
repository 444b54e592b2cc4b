"""Bring a device to its working temperature: a warm chip leaks more, and may run slower."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pytest_neuralpower.measure.meters.base import Step

__all__ = ["Preheated", "preheat"]

_MOST_RISE_C: Final = 1.0


@dataclass(frozen=True, slots=True)
class Preheated:
    """How it ended: after how long, at what temperature, and whether that held still."""

    seconds: float
    temperature_c: float | None
    steady: bool


def preheat(
    step: Step,
    temperature_c: Callable[[], float | None],
    *,
    least_s: float = 30.0,
    most_s: float = 60.0,
    over_s: float = 10.0,
) -> Preheated:
    """Run ``step`` until the temperature moved by less than 1 degree over the last ``over_s``.

    Runs for ``least_s`` at least and gives up after ``most_s``. A device that tells no
    temperature is run for ``least_s``.

    Raises
    ------
    DeviceLost
        The device went away meanwhile.
    """
    start = perf_counter()
    seen: list[tuple[float, float]] = []
    while True:
        step()
        now = perf_counter() - start
        celsius = temperature_c()
        if celsius is not None:
            seen.append((now, celsius))
        steady = _is_steady(seen, now - over_s)
        if (now >= least_s and (steady or celsius is None)) or now >= most_s:
            return Preheated(now, celsius, steady)


def _is_steady(seen: list[tuple[float, float]], since_s: float) -> bool:
    """Whether the temperatures since then, of which there is one as old, lie close together."""
    if not seen or seen[0][0] > since_s:
        return False
    recent = [celsius for at_s, celsius in seen if at_s >= since_s]
    return max(recent) - min(recent) < _MOST_RISE_C
