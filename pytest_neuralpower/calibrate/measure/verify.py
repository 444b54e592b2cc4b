"""Does a platform still hold on its device? Some of its networks are measured once more.

A platform is compared only with the device of this machine that it was measured on, or another
specimen of the same model.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from tabulate import tabulate

from pytest_neuralpower.calibrate.fit.card import Reference
from pytest_neuralpower.calibrate.measure.device import open_device, resolve_device
from pytest_neuralpower.calibrate.measure.facts import device_facts
from pytest_neuralpower.calibrate.measure.progress import Status
from pytest_neuralpower.calibrate.measure.run_trial import run_trial
from pytest_neuralpower.calibrate.measure.trial import Trial, TrialSkipped
from pytest_neuralpower.errors import OptionError, PlatformError, ProfileError
from pytest_neuralpower.files import decode
from pytest_neuralpower.units import show

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.fit.rows import MeasuredRow
    from pytest_neuralpower.calibrate.measure.device import Device
    from pytest_neuralpower.calibrate.measure.progress import Progress
    from pytest_neuralpower.platform.protocol import Platform


def measured_here(platform: Platform) -> Platform:
    """The platform, if ``neuralpower calibrate`` made it; raises OptionError if not."""
    if not platform.provenance.get("calibration"):
        raise OptionError(
            f"{platform.name} comes from tables, not from a device measured here: nothing of it "
            "can be measured again; calibrate your device: neuralpower calibrate NAME"
        )
    return platform


def device_of(platform: Platform) -> str:
    """The torch device of this machine that the platform predicts.

    A platform measured on another specimen of the same model counts: they differ by some per cent,
    which a comparison may well show.

    Raises
    ------
    OptionError
        The platform was measured on another device.
    """
    records = platform.provenance["calibration"]
    wanted = sorted({record["facts"]["device"] for record in records})
    there = []
    for device in dict.fromkeys(record["facts"]["torch_device"] for record in records):
        try:
            candidate = resolve_device(device.partition(":")[0])
        except OptionError:
            continue
        there.append(device_facts(candidate).device)
        if there[-1] in wanted:
            return candidate
    raise OptionError(
        f"{platform.name} was measured on {', '.join(wanted)}; this machine has "
        f"{', '.join(there) or 'no such device'}: run it on the device itself, or calibrate this "
        "one: neuralpower calibrate NAME"
    )


def mode_of(platform: Platform) -> str:
    """How the platform's networks ran: ``eager`` or ``graph``."""
    return str(platform.provenance["calibration"][0]["facts"].get("mode", "eager"))


#: Change of the total time, and of one kind's, that no platform has to hold: a GPU's clock is
#: steady, a processor is seldom alone.
LIMITS: Final[Mapping[str, tuple[float, float]]] = {"cuda": (0.05, 0.08), "cpu": (0.15, 0.20)}
#: What the processor's own speed is called among the drifts, and the change it may have: layers are
#: compared at one speed, so that a neighbour's load is no drift of theirs.
SPEED: Final = "processor speed"
SPEED_LIMIT: Final = 0.4
#: Kinds with less of the time are shown, and judge nothing.
_LEAST_SHARE: Final = 0.05
#: Times that every network is measured, at most; the median counts.
_MOST_PASSES: Final = 6


@dataclass(frozen=True, slots=True)
class Drift:
    """Time of one kind of layer (or of all), ms: when it was calibrated, and now.

    ``limit`` is the change it may have; None where it is too small a share to judge.
    """

    kind: str
    calibrated_ms: float
    measured_ms: float
    limit: float | None

    @property
    def change(self) -> float:
        """0.1 where it became 10% slower."""
        return self.measured_ms / self.calibrated_ms - 1.0

    @property
    def holds(self) -> bool:
        return self.limit is None or abs(self.change) <= self.limit


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found. ``drifts`` ends with the total."""

    platform: str
    device: str
    same_specimen: bool
    drifts: tuple[Drift, ...]
    passes: int

    @property
    def holds(self) -> bool:
        return all(drift.holds for drift in self.drifts)

    @property
    def unjudged(self) -> str:
        """Why some kinds have no limit; empty where every kind has one."""
        if all(drift.limit is not None for drift in self.drifts):
            return ""
        return (
            f"kinds without a limit (-) took less than {_LEAST_SHARE:.0%} of the time each: too "
            "little to judge"
        )

    def to_json(self) -> dict[str, object]:
        """In JSON's types."""
        return {
            "platform": self.platform,
            "device": self.device,
            "holds": self.holds,
            "passes": self.passes,
            "drifts": [
                {
                    "kind": drift.kind,
                    "calibrated_ms": drift.calibrated_ms,
                    "measured_ms": drift.measured_ms,
                    "change_percent": 100 * drift.change,
                    "limit_percent": None if drift.limit is None else 100 * drift.limit,
                    "holds": drift.holds,
                }
                for drift in self.drifts
            ],
        }

    def text(self) -> str:
        """A table of drifts and what follows from it."""
        rows = [
            (
                drift.kind,
                show("runtime", drift.calibrated_ms),
                show("runtime", drift.measured_ms),
                f"{100 * drift.change:+.1f}%",
                "-" if drift.limit is None else f"{100 * drift.limit:.0f}%",
                "" if drift.holds else "too far",
            )
            for drift in self.drifts
        ]
        headers = ("kind", "calibrated", "now", "drift", "limit", "")
        align = ("left", "right", "right", "right", "right", "left")
        table = tabulate(rows, headers, tablefmt="plain", colalign=align, disable_numparse=True)
        specimen = "" if self.same_specimen else " (another specimen than the one calibrated)"
        verdict = (
            f"{self.platform} holds on this {self.device}{specimen}"
            if self.holds
            else f"{self.platform} no longer holds on this {self.device}{specimen}: calibrate it "
            "again with neuralpower calibrate, or see what changed (versions, clocks, load)"
        )
        passes = "pass" if self.passes == 1 else "passes"
        unjudged = f"\n{self.unjudged}" if self.unjudged else ""
        return f"{table}\n\n{verdict} ({self.passes} {passes}){unjudged}"


def verify(chosen: Platform, progress: Progress, *, seconds: float = 100.0) -> Verification:
    """Measure the networks that the platform keeps for this, over and over for some time.

    Raises
    ------
    OptionError
        This machine does not have the platform's device.
    ProfileError
        Its calibration was never closed: it keeps no networks.
    """
    platform = measured_here(chosen)
    device = open_device(device_of(platform), platform.dtype, mode=mode_of(platform))
    try:
        records = platform.provenance["calibration"]
        uuid = device.facts.uuid
        record = next((each for each in records if _uuid(each) == uuid), records[0])
        if not record["verify"]:
            raise ProfileError(
                f"{platform.name}: its calibration was not finished; calibrate it again"
            )
        references = decode(
            tuple[Reference, ...],
            record["verify"],
            file=f"platform {platform.name}: networks to verify",
            error=PlatformError,
            renew="calibrate it again",
        )
        rows, passes = _measure(device, references, progress, seconds)
        probe_ms = record["probe_ms"]
        limits = LIMITS["cuda" if device.bench.is_cuda else "cpu"]
        drifts = (
            *_speed(rows, probe_ms),
            *_drifts(references, _typical(rows, probe_ms), limits),
        )
        same = _uuid(record) == uuid
        return Verification(platform.name, device.facts.device, same, drifts, passes)
    finally:
        device.close()


def _uuid(record: Mapping[str, Any]) -> str | None:
    """Of the device that the platform keeps this record of."""
    uuid: str | None = record["facts"].get("device_uuid")
    return uuid


def _measure(
    device: Device, references: Sequence[Reference], progress: Progress, seconds: float
) -> tuple[list[MeasuredRow], int]:
    """Rows of all networks, and passes made."""
    rows: list[MeasuredRow] = []
    began = time.monotonic()
    turns = list(product(range(1, _MOST_PASSES + 1), references))
    with progress:
        for done, (pass_, reference) in enumerate(turns, 1):
            left_s = seconds - (time.monotonic() - began)
            if left_s < 0 and pass_ > 1:
                return rows, pass_ - 1
            template = reference.template
            progress.show(Status(done=done, total=len(turns), left_s=left_s, kind=template))
            trial = Trial(reference.network, "network", template, reference.seed, pass_)
            try:
                rows += run_trial(trial, device.bench)
            except TrialSkipped as skipped:
                progress.say(f"skipped {trial.id}: {skipped}")
    return rows, _MOST_PASSES


def _typical(rows: list[MeasuredRow], usual_probe_ms: float | None) -> dict[tuple[str, int], float]:
    """Median time by network and place, at the speed the processor had when it was calibrated."""
    times: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        factor = usual_probe_ms / row.probe_ms if usual_probe_ms and row.probe_ms else 1.0
        value = row.runtime_ms * factor * (row.calls if row.index >= 0 else 1)
        times.setdefault((row.network, row.index), []).append(value)
    return {layer: median(measured_ms) for layer, measured_ms in times.items()}


def _speed(rows: list[MeasuredRow], usual_probe_ms: float | None) -> list[Drift]:
    """The processor's own speed, by the piece of work that is timed between the layers."""
    probes = [row.probe_ms for row in rows if row.probe_ms is not None]
    if not probes or usual_probe_ms is None:
        return []
    return [Drift(SPEED, usual_probe_ms, median(probes), SPEED_LIMIT)]


def _drifts(
    references: Sequence[Reference],
    typical_ms: Mapping[tuple[str, int], float],
    limits: tuple[float, float],
) -> tuple[Drift, ...]:
    sums: dict[str, list[float]] = {}
    for reference in references:
        for index, kind, calibrated_ms in reference.layers:
            measured_ms = typical_ms.get((reference.network, index))
            if measured_ms is not None:
                pair = sums.setdefault(kind, [0.0, 0.0])
                pair[0] += calibrated_ms
                pair[1] += measured_ms
    if not sums:
        raise ProfileError(
            "none of the platform's networks can be measured here; calibrate it again"
        )
    calibrated = sum(pair[0] for pair in sums.values())
    measured = sum(pair[1] for pair in sums.values())
    whole, kind_limit = limits
    drifts = [
        Drift(kind, first, now, kind_limit if first >= _LEAST_SHARE * calibrated else None)
        for kind, (first, now) in sorted(sums.items(), key=lambda item: -item[1][0])
    ]
    return (*drifts, Drift("all layers", calibrated, measured, whole))
