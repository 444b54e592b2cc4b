"""What a platform keeps of the calibration it comes from: facts, repeatability, what to verify."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace
from tabulate import tabulate

from pytest_neuralpower.calibrate.fit.rows import (
    CLOSING,
    SENTINEL,
    MeasuredRow,
    Measurement,
    at_usual_speed,
    repeatability,
    usual_probe_ms,
)
from pytest_neuralpower.files import write_atomically
from pytest_neuralpower.report.accuracy import (
    intervals_table,
    layers_table,
    networks_line,
    networks_table,
    overhead_table,
    percent,
    power_table,
    split_table,
)
from pytest_neuralpower.report.charts import NETWORKS, Point, scatter_svg

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.fit.profile import Profile
    from pytest_neuralpower.calibrate.fit.uncertainty import Fitted
    from pytest_neuralpower.platform.price import FittedPlatform

__all__ = [
    "calibration_sections",
    "closing_repeatability",
    "with_calibration",
    "write_figure",
]


#: Provenance lines that tell the device and how it was measured.
FACTS: Final = (
    "device", "device_uuid", "torch_device", "dtype", "mode", "threads", "cores", "instructions",
    "onednn", "governor", "compute_capability", "driver", "cuda", "cudnn", "cudnn_benchmark",
    "cudnn_tf32", "matmul_precision", "ecc", "power_limit_w", "torch", "python", "system",
    "pytest_neuralpower", "meter", "meter_method", "meter_source", "idle_w", "preheated", "started",
)  # fmt: skip


def with_calibration(platform: FittedPlatform, profiles: Sequence[Profile]) -> FittedPlatform:
    """The platform with what is to be known of its measured profiles in its provenance.

    ``calibration`` has by device its facts, its repeatability and the networks that
    ``neuralpower verify`` measures again. Profiles without trials add nothing.
    """
    measured = [profile for profile in profiles if profile.measurements]
    if not measured:
        return platform
    found = [_measured_record(profile) for profile in measured]
    return replace(platform, provenance={**platform.provenance, "calibration": found})


def _measured_record(profile: Profile) -> dict[str, Any]:
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


# -- What the card of a measured platform says beside: how it was measured, and a figure.

#: Figure beside the card of a measured platform.
FIGURE: Final = "accuracy.svg"

#: p95 of the closing differences, %, above which a calibration is called not repeatable.
LEAST_REPEATABLE: Final = 5.0


def calibration_sections(platform: FittedPlatform) -> list[str]:
    """Sections of the card; empty for a platform that was not measured by trials."""
    records = platform.provenance.get("calibration", ())
    if not records:
        return []
    return [
        "## Measured",
        "\n\n".join(_record(record) for record in records),
        *_trials(platform),
        "A kind of layer is kept where it beats the fallback, which would price it instead, even "
        "if a baseline that was fitted to it does as well.",
        *_not_fitted(platform),
        f"![predicted against measured runtime]({FIGURE})",
        f"To see whether it still holds on the device: `neuralpower verify {platform.name}.json`.",
    ]


def write_figure(fitted: Fitted, directory: Path) -> None:
    """Draw held-out layers and networks of a measured platform; nothing for others."""
    platform = fitted.platform
    if not platform.provenance.get("calibration"):
        return
    dots = [
        Point(name, "", row.runtime_ms, predicted)
        for name, fit in fitted.families.items()
        for row, predicted in zip(fit.rows, fit.runtime.held_out.tolist(), strict=True)
    ]
    trials = platform.accuracy.get("intervals", {}).get("trials", {})
    pairs = zip(trials.get("measured_ms", ()), trials.get("predicted_ms", ()), strict=True)
    dots += [Point(NETWORKS, "", measured, predicted) for measured, predicted in pairs]
    title = f"Runtime on {platform.name}: held-out shapes, and random networks as their sums"
    write_atomically(directory / FIGURE, scatter_svg(dots, title=title))


def _record(record: Mapping[str, Any]) -> str:
    found = record["repeatability"]
    lines = [
        f"{record['networks']} random networks, {record['layers']} layers timed in place"
        + (f", {record['flawed']} left out" if record["flawed"] else "")
        + f". Repeatability: {repeatability_text(found)}."
    ]
    if found is not None and found["p95_percent"] > LEAST_REPEATABLE:
        lines.append(
            f"**Its 95th percentile is above {LEAST_REPEATABLE:g}%: the machine was not quiet, and "
            "no difference smaller than that means anything.**"
        )
    rows = [(key.replace("_", " "), value) for key, value in record["facts"].items() if value]
    return "\n\n".join([*lines, tabulate(rows, ("fact", "value"), "github", disable_numparse=True)])


def _not_fitted(platform: FittedPlatform) -> list[str]:
    found = platform.accuracy.get("not_fitted") or {}
    if not found:
        return []
    return ["Priced by their traffic, for too few rows could be predicted: " + ", ".join(found)]


def _trials(platform: FittedPlatform) -> list[str]:
    found = platform.accuracy.get("intervals", {}).get("trials")
    if not found or platform.intervals is None:
        return []
    score, count = found["runtime"], found["networks"]
    whole = math.expm1(platform.intervals.runtime.model_error)
    return [
        f"Sums of held-out layers against the {count} whole random networks: MAPE "
        f"{score['mape']:.1f}%, bias {score['bias']:+.1f}%, "
        f"{score['within_10']:.0f}% within 10%. 90% intervals held {found['inside']} of {count}; "
        f"beside its layers' errors a call may be off by {whole:.0%}."
    ]


# -- The card of a platform: what it is, where its rows come from, how wrong it is. Generated.


def write_card(platform: FittedPlatform, directory: Path) -> Path:
    """Write ``README.md`` of a calibration folder; returns its path."""
    path = directory / "README.md"
    write_atomically(path, card_text(platform))
    return path


def card_text(platform: FittedPlatform) -> str:
    """The card in Markdown, from nothing but the platform."""
    tiers = ", ".join(f"{quantity} {tier}" for quantity, tier in platform.tiers.items())
    sections = [
        f"# {platform.name}",
        "Generated from the platform file; do not edit.",
        f"{platform.device}, {platform.dtype}. {platform.mode}.",
        f"Tiers: {tiers}. Content hash `{platform.sha256[:16]}`.",
        "## Layers, held out by shape",
        layers_table(platform.accuracy, "github"),
        "A family that does not beat both baselines is not shipped. "
        "Errors are relative to the measured one. All batch sizes of a shape are held "
        "out together. Other kinds of layer are priced by their traffic at "
        f"{platform.fallback.bandwidth_gbs:g} GB/s, or their operations at "
        f"{platform.fallback.gflops:g} GFLOP/s, and flagged.",
        *_split(platform.accuracy),
        *_overhead(platform.accuracy),
        *_intervals(platform),
        *_networks(platform.accuracy),
        *calibration_sections(platform),
        *_power(platform.accuracy),
        "## Calibrated ranges",
        _ranges(platform),
        "A layer outside any of these is flagged as extrapolated.",
        "## Sources",
        "\n".join(_source(source) for source in platform.provenance.get("sources", ())),
        *_notes(platform.provenance.get("notes", ())),
    ]
    return "\n\n".join(sections) + "\n"


def _split(accuracy: Mapping[str, Any]) -> list[str]:
    table = split_table(accuracy, "github")
    if not table:
        return []
    return ["## Rows set apart to judge", table, "The estimators judged here saw none of these."]


def _overhead(accuracy: Mapping[str, Any]) -> list[str]:
    table = overhead_table(accuracy, "github")
    if not table:
        return []
    each = "; ".join(
        f"{name} {found['overhead']['removed_ms']['recipe']:.2f} ms by the recipe, "
        f"{min(found['overhead']['removed_ms']['folds']):.2f} to "
        f"{max(found['overhead']['removed_ms']['folds']):.2f} ms by the folds"
        for section in ("runtime", "not_shipped")
        for name, found in (accuracy.get(section) or {}).items()
        if "overhead" in found
    )
    text = (
        "Latencies that grow along their table hold an overhead that no layer causes; it was taken "
        "off before the fit, and the tables above judge rows without it. Here layer and overhead "
        f"are both estimated from the other folds alone. In the last row it is: {each}."
    )
    return ["## Overhead of the place in the table", table, text]


#: How the error of a whole call is known -> what the card says of it.
_WHOLE: Final = {
    "networks": "as its measured networks were, few as they are (Student's t takes the place of "
    "the quantile)",
    "alone": "as sums of layers timed alone were in an experiment on another device: no network "
    "was measured in this mode",
    "trials": "as the random networks of the calibration were",
    "in place": "as sums of layers timed inside networks were in an experiment on another device: "
    "no network was measured in this mode",
}


def _intervals(platform: FittedPlatform) -> list[str]:
    table = intervals_table(platform.accuracy, "github")
    if not table or platform.intervals is None:
        return []
    whole = math.exp(platform.intervals.runtime.model_error)
    why = _WHOLE[platform.accuracy["intervals"]["totals"]]
    text = (
        f"Intervals are made to hold {platform.intervals.coverage:.0%} of the values. What they "
        "hold is counted on shapes (each once) and rows that neither the estimator nor the "
        "interval saw; on networks, with each network left out in turn. Layers outside the "
        "calibrated ranges have wider ones. Beside its layers' errors the runtime of a whole call "
        f"may be off by a factor of {whole:.2f}, {why}."
    )
    return ["## Intervals", table, text]


def _networks(accuracy: Mapping[str, Any]) -> list[str]:
    table = networks_table(accuracy, "github")
    if not table:
        return []
    text = (
        f"{_sentence(networks_line(accuracy))}. Paleo's runtime RMSPE on the same networks is 28%, "
        "NeuralPower's in sample 11.8%. No network's runtime was fitted."
    )
    return ["## Whole networks", table, text]


def _power(accuracy: Mapping[str, Any]) -> list[str]:
    table = power_table(accuracy, "github")
    if not table:
        return []
    found = accuracy["power"]
    if "fitted" not in found:  # not learnt from these networks, only judged by them
        return ["## Power", table, _transferred(found)]
    text = (
        f"{found['free_parameters']} free parameters, fitted to the networks' mean power. RMSPE "
        f"with the network left out {percent(found['leave_one_network_out']['rmspe'])}, fitted "
        f"{percent(found['fitted']['rmspe'])}; the mean of the others "
        f"{percent(found['mean_of_the_others']['rmspe'])}."
    )
    return ["## Power", table, text]


def _transferred(found: Mapping[str, Any]) -> str:
    rows, networks = found["held_out_rows"], found["transferred"]
    return (
        f"Power was learnt from {found['rows']} rows of {found['transferred_from']} (MAPE of rows "
        f"held out {percent(rows['mape'])}) and carried over by shares of peak and bandwidth. "
        f"Carried over likewise to {found['judged_on']}, whose networks were measured and have no "
        f"say in it, it errs by RMSPE {percent(networks['rmspe'])}, bias "
        f"{networks['bias']:+.1f}%; fitted to these very networks, "
        f"{percent(found['fitted_to_networks']['fitted']['rmspe'])}. What it errs by on this "
        "device is not known."
    )


def _ranges(platform: FittedPlatform) -> str:
    rows = [
        [name, column, f"{low:g}", f"{high:g}"]
        for name, model in platform.families.items()
        for column, (low, high) in model.ranges.items()
    ]
    headers = ["family", "size", "from", "to"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _source(source: Mapping[str, Any]) -> str:
    facts = [f"**{source.get('title', 'measured rows')}**"]
    facts += [str(source[key]) for key in ("url", "commit", "license") if key in source]
    note = f" {_sentence(source['note'])}." if "note" in source else ""
    return f"- {', '.join(facts)}.{note}{_left_out(source)}"


def _left_out(source: Mapping[str, Any]) -> str:
    """How many rows were used, and why the others were not; empty where all were."""
    reasons = source.get("left_out")
    if not reasons:
        return ""
    each = "; ".join(f"{number:,} ({reason})" for reason, number in reasons.items())
    return f" {source['rows']:,} rows used; left out: {each}."


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:]


def _notes(notes: Any) -> list[str]:
    return ["## Notes", "\n".join(f"- {_sentence(note)}" for note in notes)] if notes else []
