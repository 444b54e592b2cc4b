"""Run a plan's trials: every row saved as it comes, drift watched, a clear end in any case."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from pytest_neuralpower.calibrate.fit.rows import (
    SENTINEL,
    MeasuredRow,
    Repeatability,
    drift,
    repeatability,
)
from pytest_neuralpower.calibrate.measure.progress import Status
from pytest_neuralpower.calibrate.measure.run_trial import run_trial
from pytest_neuralpower.calibrate.measure.trial import Trial, TrialSkipped
from pytest_neuralpower.errors import DeviceLost, ReadingVoid

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.measure.conditions import Conditions
    from pytest_neuralpower.calibrate.measure.device import Device
    from pytest_neuralpower.calibrate.measure.plan import CalibrationPlan
    from pytest_neuralpower.calibrate.measure.profile_writer import ProfileWriter
    from pytest_neuralpower.calibrate.measure.progress import Progress

#: Change of the sentinel's time after which the trials since the last one are suspect. On a shared
#: processor it changes by 5-13% in the median from one to the next, its speed taken into account:
#: as much as any network from pass to pass. Measured again for less, trials repeat no better.
DRIFT_LIMIT: Final = {"cuda": 0.02, "cpu": 0.25}
#: Trials that fail in a row before the device, not the configurations, is to blame.
MOST_FAILURES: Final = 10
#: Trials between two looks at the repeatability so far.
_LOOK_EVERY: Final = 10


class Stopped(Exception):  # noqa: N818 - an end, not a mistake
    """The session ended early; the message says why. What was measured is saved."""


@dataclass(slots=True)
class Outcome:
    """What a session did.

    Attributes
    ----------
    measured, skipped
        Trials of this session.
    left
        Trials of the plan that did not fit the time.
    rerun
        Trials between sentinels that differ, measured again.
    """

    measured: int = 0
    skipped: int = 0
    left: int = 0
    rerun: int = 0


@dataclass(slots=True)
class Session:
    """One sitting of a calibration.

    Attributes
    ----------
    device
        Where trials run, and what reads their energy.
    writer, progress
        Where rows and words go.
    """

    device: Device
    writer: ProfileWriter
    progress: Progress
    outcome: Outcome = field(default_factory=Outcome)
    _passes: dict[int, list[MeasuredRow]] = field(default_factory=dict)
    _repeats: Repeatability | None = None
    _failures: int = 0
    _seen: Conditions | None = None
    _power_w: float | None = None
    _probe_ms: float | None = None

    def run(self, plan: CalibrationPlan, *, done: frozenset[str], seconds: float) -> Outcome:
        """Measure what is not done yet, then the closing trials; start none when time is up.

        Raises
        ------
        Stopped
            The device was lost, the disk is full, nothing works any more, or Ctrl-C.
        """
        try:
            self._trials(plan, done, time.monotonic() + seconds)
            closing = [trial for trial in plan.closing if trial.id not in done]
            if closing:
                self.progress.say(f"closing: {len(closing)} networks once more")
            for trial in self._in_time(closing, math.inf):
                self._measure(trial)
        except KeyboardInterrupt:
            raise Stopped("interrupted") from None
        except DeviceLost as error:
            raise Stopped(f"the device was lost ({error})") from None
        except OSError as error:
            raise Stopped(f"the profile cannot be written ({error.strerror or error})") from None
        return self.outcome

    def _trials(self, plan: CalibrationPlan, done: frozenset[str], deadline: float) -> None:
        """What is not done yet; then once more what lies between sentinels that differ."""
        outcome = self.outcome
        todo = [trial for trial in plan.trials if trial.id not in done]
        reference: list[MeasuredRow] = []
        if done and todo and not todo[0].is_sentinel:  # what was measured before is no reference
            reference = self._measure(next(trial for trial in plan.trials if trial.is_sentinel))
        block: list[Trial] = []
        suspects: list[Trial] = []
        outcome.left = len(todo)
        for trial in self._in_time(todo, deadline):
            rows = self._measure(trial)
            outcome.left -= 1
            if not trial.is_sentinel:
                block.append(trial)
                continue
            if reference and rows and self._drifted(drift(reference, rows), block):
                suspects += block
            reference, block = rows or reference, []
        if outcome.left:
            self.progress.say(f"time is up: {outcome.left} trials of the plan are left")
        for trial in self._in_time(suspects, deadline):
            self._measure(trial)
            outcome.rerun += 1
        if outcome.rerun < len(suspects):
            stay = len(suspects) - outcome.rerun
            self.progress.say(f"time is up: {stay} suspect trials stay")

    def _in_time(self, trials: Sequence[Trial], deadline: float) -> Iterator[Trial]:
        """The trials that begin before the deadline; each is shown first."""
        began = time.monotonic()
        for number, trial in enumerate(trials):
            if time.monotonic() > deadline:
                return
            self._show(trial, number, len(trials), began, deadline)
            yield trial

    def _drifted(self, change: float, block: Sequence[Trial]) -> bool:
        limit = DRIFT_LIMIT["cuda" if self.device.bench.is_cuda else "cpu"]
        if abs(change) <= limit or not block:
            return False
        self.progress.say(
            f"the sentinel moved by {100 * change:+.1f}%, more than {100 * limit:g}%: "
            f"{len(block)} trials are suspect"
        )
        return True

    def _measure(self, trial: Trial) -> list[MeasuredRow]:
        """Measure and save one trial; its rows at one speed of the processor, empty if skipped."""
        device, reason = self.device, ""
        for _ in range(2):  # a void reading may be a passing thing
            try:
                with device.watch.during() as watched:
                    rows = run_trial(trial, device.bench, meter=device.meter, loaded=watched.loaded)
            except ReadingVoid as error:
                reason = str(error)
                continue
            except Exception as error:
                reason = _why_skipped(error)
                break
            wrong = [row.runtime_ms for row in rows if not 0 < row.runtime_ms < math.inf]
            if not rows or wrong:
                reason = f"a runtime of {wrong[0]} ms" if wrong else "no layer was timed"
                break
            self._seen = watched.conditions
            self.writer.write(trial, rows, self._seen)
            self.outcome.measured += 1
            self._power_w = rows[-1].power_w or self._power_w
            self._failures = 0
            rows = [self._at_one_speed(row) for row in rows]
            if trial.what == "network" and not trial.is_sentinel:
                self._passes.setdefault(trial.pass_, []).extend(rows)
            return rows
        self.writer.skip(trial, reason)
        self.outcome.skipped += 1
        self._failures += 1
        self.progress.say(f"skipped {trial.id} ({trial.template}): {reason}")
        if self._failures >= MOST_FAILURES:
            raise Stopped(f"{self._failures} trials in a row could not be measured ({reason})")
        return []

    def _at_one_speed(self, row: MeasuredRow) -> MeasuredRow:
        """As it would have been at the speed of the first row: neighbours' load is no drift."""
        if row.probe_ms is None:
            return row
        self._probe_ms = self._probe_ms or row.probe_ms
        return replace(row, runtime_ms=row.runtime_ms * self._probe_ms / row.probe_ms)

    def _show(self, trial: Trial, number: int, total: int, began: float, deadline: float) -> None:
        now = time.monotonic()
        rate = (now - began) / number if number else 0.0
        if number % _LOOK_EVERY == 0 and len(self._passes) > 1:
            *_, before, after = sorted(self._passes)
            self._repeats = repeatability(self._passes[before], self._passes[after])
        self.progress.show(
            Status(
                done=number,
                total=total,
                left_s=min(rate * (total - number), max(deadline - now, 0.0)),
                kind=SENTINEL if trial.is_sentinel else trial.template,
                repeatability_percent=self._repeats.median_percent if self._repeats else None,
                temperature_c=self._seen.temperature_c if self._seen else None,
                power_w=self._power_w,
            )
        )


def _why_skipped(error: Exception) -> str:
    """Why a trial cannot be measured, where the others can; raises what ends the session."""
    if isinstance(error, TrialSkipped):
        return str(error)
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return "out of memory"
    said = " ".join(str(error).split())[:200]
    if "CUDA error" in said:
        raise DeviceLost(said) from error
    # What torch refuses: a kernel that a dtype has not, an algorithm that a library does not find.
    if type(error) in (RuntimeError, NotImplementedError):
        return said
    raise error
