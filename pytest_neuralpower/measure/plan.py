"""Plans: which random networks are measured, in what order. Seeded, and made again by a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_neuralpower.measure.trial import Trial

__all__ = ["Plan", "make_plan"]

Preset = Literal["quick", "default", "thorough"]


@dataclass(frozen=True, slots=True)
class Plan:
    """Trials in the order to run them.

    Attributes
    ----------
    trials
        Pass 1 over every network, then pass 2, ...; a sentinel first and every so many trials.
    closing
        Ten networks once more (``pass_`` 0): their rows against the pass before tell the
        repeatability.
    recipe
        Arguments of :func:`make_plan` that give this plan again, in JSON types.
    expected_s
        Rough time of it all.
    """

    trials: tuple[Trial, ...]
    closing: tuple[Trial, ...]
    recipe: Mapping[str, Any]
    expected_s: float


def make_plan(
    *,
    seed: int,
    device: str,
    dtype: str,
    hardware: Mapping[str, float],
    memory_bytes: int,
    preset: Preset = "default",
    minutes: float | None = None,
    with_power: bool = False,
) -> Plan:
    """A plan for one device.

    Parameters
    ----------
    seed
        All that is random follows from it.
    device, dtype
        Of the bench.
    hardware
        ``peak_gflops`` and ``bandwidth_gbs`` bound how much work one network may be.
    memory_bytes
        Memory that the networks may use; no network needs more than half of it.
    preset
        How long to measure where ``minutes`` does not say.
    minutes
        Time that the trials may take together.
    with_power
        Add isolated layers and whole networks for the meter.
    """
    raise NotImplementedError
