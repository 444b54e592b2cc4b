"""What a platform keeps of the calibration it comes from: facts, repeatability, what to verify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from pytest_neuralpower.calibrate.measured_rows import (
    CLOSING,
    Measurement,
    at_usual_speed,
    usual_probe_ms,
)
from pytest_neuralpower.measure.sentinels import repeatability
from pytest_neuralpower.measure.trial import SENTINEL, MeasuredRow

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.profile import Profile
    from pytest_neuralpower.platform import Platform

__all__ = ["closing_repeatability", "with_calibration"]

#: Provenance lines that tell the device and how it was measured.
FACTS: Final = (
    "device", "device_uuid", "torch_device", "dtype", "mode", "threads", "cores", "instructions",
    "onednn", "governor", "compute_capability", "driver", "cuda", "cudnn", "cudnn_benchmark",
    "cudnn_tf32", "matmul_precision", "ecc", "power_limit_w", "torch", "python", "system",
    "pytest_neuralpower", "meter", "meter_method", "meter_source", "idle_w", "preheated", "started",
)  # fmt: skip


def with_calibration(platform: Platform, profiles: Sequence[Profile]) -> Platform:
    """The platform with what is to be known of its measured profiles in its provenance.

    ``calibration`` has by device its facts, its repeatability and the networks that
    ``neuralpower verify`` measures again. Profiles without trials add nothing.
    """
    measured = [profile for profile in profiles if profile.measurements]
    if not measured:
        return platform
    found = [_record(profile) for profile in measured]
    return replace(platform, provenance={**platform.provenance, "calibration": found})


def _record(profile: Profile) -> dict[str, Any]:
    closing = closing_repeatability(profile)
    return {
        "facts": {key: profile.provenance[key] for key in FACTS if key in profile.provenance},
        "networks": len(profile.networks),
        "layers": len(profile.rows),
        "flawed": sum(bool(row.flaw) for row in profile.rows),
        "repeatability": closing,
        "probe_ms": next(iter(usual_probe_ms(profile.measurements).values()), None),
        "verify": _references(profile),
    }


def closing_repeatability(profile: Profile) -> dict[str, float] | None:
    """How far the closing trials lay from the pass before them; None where there are none."""
    measurements = _at_usual_speed(profile)
    closing = [each for each in measurements if each.pass_ == CLOSING]
    names = {each.network for each in closing}
    before: dict[tuple[str, str, int], Measurement] = {}
    for each in measurements:
        earlier = before.get(each.place)
        if (
            each.network in names
            and each.pass_ != CLOSING
            and each.what == "network"
            and (earlier is None or each.pass_ >= earlier.pass_)
        ):
            before[each.place] = each
    found = repeatability(map(_row, before.values()), map(_row, closing))
    if found is None:
        return None
    result = {
        "median_percent": round(found.median_percent, 2),
        "p95_percent": round(found.p95_percent, 2),
        "rows": found.rows,
    }
    if found.networks_percent is not None:
        result["networks_median_percent"] = round(found.networks_percent, 2)
    return result


def _at_usual_speed(profile: Profile) -> list[Measurement]:
    return at_usual_speed(profile.measurements, usual_probe_ms(profile.measurements))


def _row(each: Measurement) -> MeasuredRow:
    layer = None if each.index < 0 else each.row.layer
    return MeasuredRow(
        each.trial, each.network, layer, each.row.runtime_ms, each.index, each.calls, each.pass_
    )


def _references(profile: Profile) -> list[dict[str, Any]]:
    """The sentinel and the networks of the closing trials: how to make them, and their times."""
    names = {each.network for each in profile.measurements if each.pass_ == CLOSING} | {SENTINEL}
    times: dict[tuple[str, int], list[Measurement]] = {}
    for each in _at_usual_speed(profile):
        if each.what == "network" and not each.row.flaw and each.network in names:
            times.setdefault((each.network, each.index), []).append(each)
    found: dict[str, dict[str, Any]] = {}
    for (network, index), passes in times.items():
        each = passes[0]
        entry = found.setdefault(network, {"network": network, "seed": each.seed, "layers": []})
        if index < 0:
            entry["template"] = each.row.layer.op
        else:
            runtime_ms = median(one.row.runtime_ms for one in passes) * each.calls
            entry["layers"].append([index, each.row.layer.kind, float(f"{runtime_ms:.5g}")])
    return [entry for entry in found.values() if "template" in entry and entry["layers"]]


def repeatability_text(found: Mapping[str, float] | None) -> str:
    """``median 1.2%, p95 4.0% over 180 layers``."""
    if found is None:
        return "not measured: the closing trials are missing"
    return (
        f"median {found['median_percent']:.1f}%, p95 {found['p95_percent']:.1f}% over "
        f"{found['rows']:.0f} layers measured again"
    )
