"""Run one trial on a bench."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_neuralpower.measure.bench import Bench
    from pytest_neuralpower.measure.trial import MeasuredRow, Trial

__all__ = ["run_trial"]


def run_trial(trial: Trial, bench: Bench, *, meter: Any = None) -> Iterator[MeasuredRow]:
    """Measure one trial; its rows come when all of it is measured, so that none is half there.

    ``layer`` and ``whole`` trials need a meter with ``measure(step, seconds=, settle_s=)``.

    Raises
    ------
    TrialSkipped
        This configuration cannot be measured here (out of memory, a NaN); go on with the next.
    """
    raise NotImplementedError
