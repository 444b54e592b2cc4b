"""One calibration from start to platform: measure, write the recipe, fit, report."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import yaml

from pytest_neuralpower.calibrate.fit.card import LEAST_REPEATABLE, repeatability_text
from pytest_neuralpower.calibrate.fit.profile import read_provenance
from pytest_neuralpower.calibrate.measure.device import Device, open_device
from pytest_neuralpower.calibrate.measure.plan import CalibrationPlan, Dtype, PlanRecipe, make_plan
from pytest_neuralpower.calibrate.measure.profile_writer import ProfileWriter, trials_done
from pytest_neuralpower.calibrate.measure.session import Outcome, Session, Stopped
from pytest_neuralpower.errors import CalibrationStopped, OptionError, ProfileError
from pytest_neuralpower.files import decode, write_atomically

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.measure.facts import Facts
    from pytest_neuralpower.calibrate.measure.plan import CalibrationOptions
    from pytest_neuralpower.calibrate.measure.progress import Progress
    from pytest_neuralpower.platform.price import FittedPlatform

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
        return _measure(options, device, plan, facts, progress)
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
                f"{options.profile}; go on with: {options.again}"
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
