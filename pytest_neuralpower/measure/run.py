"""One calibration from nothing to a platform: preflight, plan, measure, fit, close, card."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_neuralpower.calibrate.profile import read_provenance
from pytest_neuralpower.errors import CalibrationStopped, OptionError, ProfileError
from pytest_neuralpower.measure.closing import is_repeatable
from pytest_neuralpower.measure.plan import Plan, make_plan
from pytest_neuralpower.measure.preflight import Place, open_place
from pytest_neuralpower.measure.profile_writer import ProfileWriter, trials_done
from pytest_neuralpower.measure.session import Outcome, Session, Stopped
from pytest_neuralpower.measure.write_recipe import write_recipe

if TYPE_CHECKING:
    from pytest_neuralpower.measure.options import CalibrationOptions
    from pytest_neuralpower.measure.progress import Progress
    from pytest_neuralpower.platform import Platform

__all__ = ["calibrate", "measure_profile"]

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
    platform: Platform
    outcome: Outcome
    measured_s: float
    fitted_s: float
    repeatable: bool


def calibrate(
    options: CalibrationOptions, progress: Progress, *, sysfs: Path = Path("/sys")
) -> Calibrated:
    """Measure a device and fit its platform; the caller holds the folder's lock.

    ``sysfs`` is where the kernel's files are.

    Raises
    ------
    CalibrationStopped
        It ended early; what is measured is saved.
    OptionError, ProfileError, MeterRefused, FitError
        It cannot start, or what was measured cannot be fitted.
    """
    from pytest_neuralpower.calibrate.fit import fit_command  # noqa: PLC0415 - imports scipy

    began = time.monotonic()
    outcome = measure_profile(options, progress, sysfs=sysfs)
    measured_s = time.monotonic() - began
    progress.say(f"fitting the rows of {options.profile}")
    path, platform = fit_command(options.directory, options.platform)
    fitted_s = time.monotonic() - began - measured_s
    return Calibrated(path, platform, outcome, measured_s, fitted_s, is_repeatable(platform))


def measure_profile(
    options: CalibrationOptions, progress: Progress, *, sysfs: Path = Path("/sys")
) -> Outcome:
    """Measure a device's profile and write its recipe; the caller holds the folder's lock.

    ``sysfs`` is where the kernel's files are.

    Raises
    ------
    As :func:`calibrate`, but for FitError.
    """
    header = _header(options)
    place = open_place(
        options.device or header.get("torch_device", ""),
        options.dtype or header.get("dtype", "float32"),
        mode=options.mode or header.get("mode", "eager"),
        meter=header.get("meter", options.meter) if options.meter == "auto" else options.meter,
        watts=options.watts,
        warm_up_s=_WARM_UP_S[options.preset],
        sysfs=sysfs,
    )
    try:
        for note in place.meter.notes:
            progress.say(note)
        facts = {**place.facts, "torch_device": place.bench.device}
        _refuse_other(options, header, facts)
        plan = _plan(options, place, header)
        facts |= {"meter_source": place.meter.source or "", "plan": json.dumps(dict(plan.recipe))}
        facts["started"] = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        progress.say(
            f"{facts['device']}, {place.bench.dtype}, {place.bench.mode}; "
            f"meter: {place.meter.name} ({place.meter.method}); {len(plan.trials)} trials in about "
            f"{plan.expected_s / 60:.1f} min"
        )
        write_recipe(options, place, facts, plan)
        return _measure(options, place, plan, facts, progress)
    finally:
        place.close()


def _measure(
    options: CalibrationOptions,
    place: Place,
    plan: Plan,
    facts: Mapping[str, str],
    progress: Progress,
) -> Outcome:
    seconds = options.minutes * 60 if options.minutes else plan.expected_s * _OVERTIME
    try:
        writer = ProfileWriter(options.profile, provenance=facts, dtype=place.bench.dtype)
    except OSError as error:
        raise ProfileError(f"profile {options.profile}: it cannot be written ({error})") from None
    with writer, progress:
        done = trials_done(options.profile)
        if done:
            progress.say(f"{len(done)} trials are measured already")
        try:
            return Session(place, writer, progress).run(plan, done=done, seconds=seconds)
        except Stopped as stop:
            saved = len(trials_done(options.profile))
            raise CalibrationStopped(
                f"{stop}; {saved} of {len(plan.trials) + len(plan.closing)} trials are saved in "
                f"{options.profile}; go on with: {options.again}"
            ) from None


def _plan(options: CalibrationOptions, place: Place, header: Mapping[str, str]) -> Plan:
    if "plan" in header:
        recipe: dict[str, Any] = json.loads(header["plan"])
        return make_plan(**recipe)
    return make_plan(
        seed=options.seed,
        device=place.bench.device,
        dtype=place.bench.dtype,
        hardware=place.bench.hardware,
        memory_bytes=place.memory_bytes,
        preset=options.preset,
        minutes=options.minutes,
        with_power=place.meter.source == "measured",
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
            f"`neuralpower fit {options.directory}`, or measure anew into another folder (--out)"
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
