"""One calibration from start to platform: measure, write the recipe, fit, report."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import yaml

from pytest_neuralpower.calibrate.fit.card import LEAST_REPEATABLE, repeatability_text
from pytest_neuralpower.calibrate.fit.profile import read_provenance
from pytest_neuralpower.calibrate.fit.rows import (
    SENTINEL,
    MeasuredRow,
    Repeatability,
    drift,
    repeatability,
)
from pytest_neuralpower.calibrate.measure.device import Device, open_device
from pytest_neuralpower.calibrate.measure.plan import (
    CalibrationOptions,
    CalibrationPlan,
    Dtype,
    PlanRecipe,
    make_plan,
)
from pytest_neuralpower.calibrate.measure.profile_writer import ProfileWriter, trials_done
from pytest_neuralpower.calibrate.measure.progress import Progress, Status
from pytest_neuralpower.calibrate.measure.run_trial import run_trial
from pytest_neuralpower.calibrate.measure.trial import Trial, TrialSkipped
from pytest_neuralpower.errors import (
    CalibrationStopped,
    DeviceLost,
    OptionError,
    ProfileError,
    ReadingVoid,
    Terminated,
    signal_code,
)
from pytest_neuralpower.files import decode, write_atomically

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.measure.conditions import Conditions
    from pytest_neuralpower.calibrate.measure.facts import Facts
    from pytest_neuralpower.platform.price import FittedPlatform

# -- One session: every row saved as it comes, drift watched, a clear end in any case.

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

    def __init__(self, why: str, exit_code: int = 2) -> None:
        super().__init__(why)
        self.exit_code = exit_code


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
        except KeyboardInterrupt as stop:
            why = "terminated" if isinstance(stop, Terminated) else "interrupted"
            raise Stopped(why, signal_code(stop)) from None
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


# -- A calibration from start to platform.

#: Share of the planned time after which no more trials are started, where no time was given.
_OVERTIME = 1.5
#: A GPU runs under load at least, and at most, so long before it is measured, s.
_WARM_UP_S = {"quick": (10.0, 20.0), "default": (30.0, 60.0), "thorough": (30.0, 60.0)}
#: Facts that must hold when a profile is resumed, and how they are called.
_SAME = {
    "device": "device",
    "device_uuid": "device",
    "dtype": "--dtype",
    "mode": "--mode",
    "meter": "--meter",
    "torch": "torch",
}


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What came of it.

    ``measured_s`` and ``fitted_s`` are the times that measuring and fitting took; ``repeatable``
    is False where the closing trials of a GPU lay too far from what they repeat.
    """

    path: Path
    platform: FittedPlatform
    outcome: Outcome
    measured_s: float
    fitted_s: float
    repeatable: bool


def calibrate(options: CalibrationOptions, progress: Progress) -> Calibrated:
    """Measure a device and fit its platform; the caller holds the folder's lock.

    Raises
    ------
    CalibrationStopped
        It ended early; what is measured is saved.
    OptionError, ProfileError, MeterRefused, FitError
        It cannot start, or what was measured cannot be fitted.
    """
    from pytest_neuralpower.calibrate.fit.fit import fit_command  # noqa: PLC0415 - imports scipy

    began = time.monotonic()
    outcome = measure_profile(options, progress)
    measured_s = time.monotonic() - began
    progress.say(f"fitting the rows of {options.profile}")
    path, platform = fit_command(options.directory, options.platform)
    fitted_s = time.monotonic() - began - measured_s
    return Calibrated(path, platform, outcome, measured_s, fitted_s, _is_repeatable(platform))


def measure_profile(options: CalibrationOptions, progress: Progress) -> Outcome:
    """Measure a device's profile and write its recipe; the caller holds the folder's lock.

    Raises
    ------
    As :func:`calibrate`, but for FitError.
    """
    header = _header(options)
    device = open_device(
        options.device or header.get("torch_device", ""),
        options.dtype or header.get("dtype", "float32"),
        mode=options.mode or header.get("mode", "eager"),
        meter=header.get("meter", options.meter) if options.meter == "auto" else options.meter,
        watts=options.watts,
        warm_up_s=_WARM_UP_S[options.preset],
    )
    try:
        for note in device.meter.notes:
            progress.say(note)
        facts = device.facts.also(torch_device=device.bench.device)
        _refuse_other(options, header, facts.lines)
        plan = make_plan(_plan_recipe(options, device, header))
        facts = facts.also(
            meter_source=device.meter.source or "",
            plan=json.dumps(plan.recipe.to_json()),
            started=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        )
        progress.say(
            f"{facts.device}, {device.bench.dtype}, {device.bench.mode}; meter: "
            f"{device.meter.name} ({device.meter.method}); {len(plan.trials)} trials in about "
            f"{plan.expected_s / 60:.1f} min"
        )
        recipe = options.directory / "recipe.yaml"
        if not recipe.exists():
            dump_recipe(_recipe_content(options, device, plan), recipe)
        told = device.meter.notes
        outcome = _measure(options, device, plan, facts, progress)
        for note in device.meter.notes[len(told) :]:
            progress.say(note)
        return outcome
    finally:
        device.close()


def _measure(
    options: CalibrationOptions,
    device: Device,
    plan: CalibrationPlan,
    facts: Facts,
    progress: Progress,
) -> Outcome:
    seconds = options.minutes * 60 if options.minutes else plan.expected_s * _OVERTIME
    try:
        writer = ProfileWriter(options.profile, provenance=facts.lines, dtype=device.bench.dtype)
    except OSError as error:
        raise ProfileError(f"profile {options.profile}: it cannot be written ({error})") from None
    with writer, progress:
        done = trials_done(options.profile)
        if done:
            progress.say(f"{len(done)} trials are measured already")
        try:
            return Session(device, writer, progress).run(plan, done=done, seconds=seconds)
        except Stopped as stop:
            saved = len(trials_done(options.profile))
            raise CalibrationStopped(
                f"{stop}; {saved} of {len(plan.trials) + len(plan.closing)} trials are saved in "
                f"{options.profile}; go on with: {options.again}",
                stop.exit_code,
            ) from None


def _plan_recipe(
    options: CalibrationOptions, device: Device, header: Mapping[str, str]
) -> PlanRecipe:
    if "plan" in header:
        return decode(
            PlanRecipe,
            header["plan"],
            file=f"profile {options.profile}: plan",
            error=ProfileError,
            renew="measure into another folder (--out)",
        )
    return PlanRecipe(
        seed=options.seed,
        device=device.bench.device,
        dtype=msgspec.convert(device.bench.dtype, Dtype),
        hardware=device.bench.hardware,
        memory_bytes=device.memory_bytes,
        preset=options.preset,
        minutes=options.minutes,
        with_power=device.meter.source == "measured",
    )


def _header(options: CalibrationOptions) -> dict[str, str]:
    """Provenance of the profile to go on with; empty for a new one.

    Raises
    ------
    ProfileError
        There is a profile and ``--resume`` was not given, or the other way round.
    """
    path = options.profile
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        if options.resume:
            raise ProfileError(
                f"--resume: there is no profile {path}; leave it out to start one"
            ) from None
        return {}
    except OSError as error:
        raise ProfileError(f"profile {path}: it cannot be read ({error})") from None
    if not options.resume:
        raise ProfileError(
            f"{path} holds measured rows already: go on with --resume, fit them with "
            f"`neuralpower fit {options.directory}`, or measure into another folder (--out)"
        )
    header = read_provenance(lines)
    # Without its last line the head may be torn: then nothing was measured yet.
    return header if len(lines) > len(header) else {}


def _refuse_other(
    options: CalibrationOptions, header: Mapping[str, str], facts: Mapping[str, str]
) -> None:
    for key, name in _SAME.items():
        if key in header and header[key] != facts.get(key):
            raise OptionError(
                f"--resume: {options.profile} was measured with {name} {header[key]}, this is "
                f"{facts.get(key)}; rows of both cannot be mixed: measure into another folder "
                "(--out)"
            )
    method = header.get("meter_method", "")
    if method and options.watts is not None and method != facts["meter_method"]:
        raise OptionError(
            f"--resume: {options.profile} was started with {method}, this is "
            f"{facts['meter_method']}: leave --watts out, or measure into another folder (--out)"
        )


# -- The recipe.

#: Boosting on the residual of rows timed in place helps layers and hurts whole networks.
_CANDIDATES: Final = ("physical", "neuralpower", "neuralpower-relative", "tree")
#: The paper's Lasso takes as long to fit as all others, and is there to compare with.
_QUICK_CANDIDATES: Final = ("physical", "neuralpower-relative", "tree")


def dump_recipe(content: Mapping[str, Any], path: Path) -> None:
    """Write a recipe in YAML's types; raises ProfileError where it cannot be written."""
    text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=96)
    try:
        write_atomically(path, text)
    except OSError as error:
        raise ProfileError(f"recipe {path}: it cannot be written ({error})") from None


def _recipe_content(
    options: CalibrationOptions, device: Device, plan: CalibrationPlan
) -> dict[str, object]:
    """The recipe in YAML's types."""
    bench, facts, source = device.bench, device.facts.lines, device.meter.source
    clock = "CUDA events" if bench.is_cuda else "thread time of one thread, freed memory kept"
    hardware = {name: float(size) for name, size in msgspec.to_builtins(bench.hardware).items()}
    if "power_limit_w" in facts:
        hardware["limit_w"] = float(facts["power_limit_w"])
    content: dict[str, object] = {
        "name": options.name,
        "device": facts["device"],
        "dtype": bench.dtype,
        "mode": f"PyTorch {facts['torch']} {bench.mode}, inference mode, layers timed in place "
        f"inside random networks, {clock}",
        "tiers": {"runtime": "measured"} | ({"power": source} if source is not None else {}),
        "hardware": hardware,
        "sources": [
            {
                "title": f"rows measured by `neuralpower calibrate {options.name}`",
                "profile": options.profile.name,
            }
        ],
        "candidates": list(_QUICK_CANDIDATES if options.preset == "quick" else _CANDIDATES),
        "totals": "in place",
        "plan": plan.recipe.to_json(),
    }
    if source == "estimated":
        content["power"] = {"watts": options.watts}
    return content


# -- The report of a calibration.


def closing_lines(path: Path, platform: FittedPlatform, directory: Path) -> list[str]:
    """Lines for the terminal about a platform that was just written."""
    lines = []
    for record in platform.provenance.get("calibration", ()):
        found = record["repeatability"]
        lines.append(f"repeatability: {repeatability_text(found)}")
        if found is not None and found["p95_percent"] > LEAST_REPEATABLE:
            lines.append(
                f"  p95 above {LEAST_REPEATABLE:g}%: the machine was not quiet; stop what else "
                "runs and measure again, or take smaller differences for noise"
            )
    trials = platform.accuracy.get("intervals", {}).get("trials")
    if trials:
        score = trials["runtime"]
        lines.append(
            f"held-out layers summed to {trials['networks']} random networks: runtime MAPE "
            f"{score['mape']:.1f}%, {score['within_10']:.0f}% within 10%"
        )
    lines.append(f"energy: {_energy(platform)}")
    shown = path if path.is_absolute() else f"./{path}"
    lines += [
        f"wrote {path} and its card {directory / 'README.md'}",
        f"next: pytest --np-platform={shown}",
    ]
    return lines


def _energy(platform: FittedPlatform) -> str:
    tier = platform.tiers.get("power")
    if tier is not None:
        return f"{tier}, not measured" if tier == "estimated" else tier
    records = platform.provenance.get("calibration", ())
    if any(record["facts"].get("meter", "none") != "none" for record in records):
        return "none: the meter read too few trials; measure longer, into another folder (--out)"
    return (
        "none: no meter was used; if you know the power under load, --watts W estimates it, in "
        "another folder (--out)"
    )


def _is_repeatable(platform: FittedPlatform) -> bool:
    """Whether closing trials of a GPU agree with what they repeat; a CPU is only told of it.

    A processor is seldom alone: its differences are published, and no calibration fails of them.
    """
    for record in platform.provenance.get("calibration", ()):
        found = record["repeatability"]
        on_gpu = record["facts"].get("torch_device", "cpu") != "cpu"
        if on_gpu and found is not None and found["p95_percent"] > LEAST_REPEATABLE:
            return False
    return True
