"""The card of a platform, generated: what it is, where its rows come from, how wrong it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import msgspec
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
from pytest_neuralpower.estimators import Physical
from pytest_neuralpower.files import write_atomically
from pytest_neuralpower.report.accuracy import (
    calls_table,
    choices_table,
    intervals_table,
    layers_table,
    networks_line,
    networks_table,
    overhead_table,
    parts_table,
    percent,
    power_table,
    split_table,
)
from pytest_neuralpower.report.charts import NETWORKS, Point, scatter_svg

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.fit.profile import Profile
    from pytest_neuralpower.calibrate.fit.uncertainty import Fitted
    from pytest_neuralpower.platform.price import FittedPlatform

#: Figure of a measured platform, next to its card.
FIGURE: Final = "accuracy.svg"

#: p95 of the closing differences, %, above which a calibration is called not repeatable.
LEAST_REPEATABLE: Final = 5.0

#: How the error of a whole call is known -> what the card says of it.
_MODEL_ERROR: Final = {
    "networks": "as its measured networks were, few as they are (Student's t takes the place of "
    "the quantile)",
    "alone": "as sums of layers timed alone were in an experiment on another device: no network "
    "was measured in this mode",
    "trials": "as the random networks of the calibration were",
    "in place": "as sums of layers timed inside networks were in an experiment on another device: "
    "no network was measured in this mode",
}


def write_card(platform: FittedPlatform, directory: Path) -> Path:
    """Write ``README.md`` of a calibration folder; returns its path."""
    path = directory / "README.md"
    write_atomically(path, card_text(platform))
    return path


def card_text(platform: FittedPlatform) -> str:
    """The card in Markdown, from nothing but the platform."""
    tiers = ", ".join(f"{quantity} {tier}" for quantity, tier in platform.tiers.items())
    accuracy, provenance = platform.accuracy, platform.provenance
    ranges = [
        [name, column, f"{low:g}", f"{high:g}"]
        for name, model in platform.families.items()
        for column, (low, high) in model.ranges.items()
    ]
    split, notes = split_table(accuracy, "github"), provenance.get("notes", ())
    sections = [
        f"# {platform.name}",
        "Generated from the platform file; do not edit.",
        f"{platform.device}, {platform.dtype}. {platform.mode}.",
        f"Tiers: {tiers}. Content hash `{platform.sha256[:16]}`.",
        *_calls(platform),
        *(_layers(accuracy) if platform.families else []),
        *(["## Rows set apart to judge", split] if split else []),
        *(["The estimators judged here saw none of these."] if split else []),
        *_overhead(accuracy),
        *_intervals(platform),
        *_networks(accuracy),
        *_calibration(platform),
        *_power(accuracy),
        *(_ranges(ranges) if ranges else []),
        "## Sources",
        "\n".join(_source(source) for source in provenance.get("sources", ())),
        *(["## Notes", "\n".join(f"- {_sentence(note)}" for note in notes)] if notes else []),
    ]
    return "\n\n".join(sections) + "\n"


def _held_out_by(accuracy: Mapping[str, Any]) -> str:
    """What rows of some families have in common instead of their shape, in words."""
    found = [
        f"; of {name} all rows with the same {' and '.join(each['held_out_by'])}"
        for name, each in accuracy["runtime"].items()
        if each.get("held_out_by")
    ]
    return "".join(found)


def _ranges(ranges: Sequence[Sequence[str]]) -> list[str]:
    table = _table(ranges, ("family", "size", "from", "to"))
    return [
        "## Calibrated ranges",
        table,
        "A layer outside any of these is flagged as extrapolated.",
    ]


def _layers(accuracy: Mapping[str, Any]) -> list[str]:
    """What each family's rows were fitted by, and how well."""
    text = (
        "A family that does not beat both baselines is not shipped. Errors are relative to the "
        f"measured one. All batch sizes of a shape are held out together{_held_out_by(accuracy)}. "
        "Kinds of layer without rows are priced as other devices run them, and flagged."
    )
    layers = layers_table(accuracy, "github")
    return ["## Layers, held out by shape", layers, text, *_choices(accuracy)]


def _calls(platform: FittedPlatform) -> list[str]:
    """How whole calls are predicted, and by which factors; empty where none was fitted to."""
    table = calls_table(platform.accuracy, "github")
    if not table:
        return []
    intervals = platform.accuracy["intervals"]["trials"]
    factors = [
        (name, regime.name, f"{regime.rates['prior']:.2f}")
        for name, estimator in platform.inferred.items()
        if isinstance(estimator.inner, Physical)
        for regime in estimator.inner.regimes
    ]
    text = (
        "Whole calls were timed, no layer. Networks of one family are held out together. 90% "
        f"intervals made without the family hold {intervals['inside']} of {intervals['networks']} "
        f"calls, at a half-width of {intervals['half_width_percent']:.0f}% in the median."
    )
    calls = platform.accuracy["calls"]
    if "host" in calls and platform.host is not None:
        found, host = calls["host"], platform.host
        kinds = ", ".join(f"{each:.2f} {kind}" for kind, each in sorted(host.kinds.items()))
        text += (
            f" {calls['waiting']:,} calls wait for the host and tell what its launches take: "
            f"{host.layer_ms * 1e3:.0f} us, times {kinds}. 90% of them are within a factor of "
            f"{found['factor']:.2f} when their family is left out; as another host may differ by "
            f"{host.factor:g}, their intervals hold {found['inside']:,}."
        )
    elif calls["waiting"]:
        text += f" {calls['waiting']} calls that wait for the host's launches were left out."
    inferred = (
        "What a kind of layer takes is inferred from the totals: times what other devices take at "
        "this one's ceilings. Factors that the calls cannot tell stay near 1; a single one is not "
        "to be trusted as its sum is. Layers are flagged as inferred."
    )
    return [
        *("## Whole calls, held out by family", table, text),
        *([parts] if (parts := parts_table(platform.accuracy, "github")) else []),
        *("## Factors on the prior", _table(factors, ("family", "group", "factor")), inferred),
    ]


def _choices(accuracy: Mapping[str, Any]) -> list[str]:
    """Why each family's estimator was chosen, next to the NeuralPower paper's."""
    text = (
        "Estimators of runtime are listed simplest first. The one of least held-out MAPE is "
        "chosen, or the first that is worse by no more than one standard error of their "
        "difference: the rows cannot tell the two apart, and what is simpler extrapolates better. "
        "`neuralpower` is the NeuralPower paper's Lasso, scored as published and never chosen "
        "where another can be fitted, for its polynomials turn negative outside their rows; "
        "`--np-estimator=neuralpower` predicts by it. The paper prints the RMSPE on the rows "
        "themselves: on its Titan X 40.0% (conv), 41.9% (fully connected) and 11.4% (pool)."
    )
    power = [
        f"{name} {percent(each['power']['held_out'].get('rmspe'))} held out, "
        f"{percent(each['power']['fitted']['rmspe'])} on the rows (degree "
        f"{each['power']['degree']}, {each['power']['terms']} terms)"
        for name, each in accuracy.get("neuralpower", {}).items()
        if "power" in each
    ]
    if power:
        text += f" RMSPE of its power: {'; '.join(power)}."
    return ["## Chosen, and NeuralPower beside it", choices_table(accuracy, "github"), text]


def _table(rows: Iterable[Sequence[Any]], headers: Sequence[str]) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _overhead(accuracy: Mapping[str, Any]) -> list[str]:
    table = overhead_table(accuracy, "github")
    if not table:
        return []
    removed = {
        name: found["overhead"]["removed_ms"]
        for section in ("runtime", "not_shipped")
        for name, found in (accuracy.get(section) or {}).items()
        if "overhead" in found
    }
    amounts = "; ".join(
        f"{name} {ms['recipe']:.2f} ms by the recipe, {min(ms['folds']):.2f} to "
        f"{max(ms['folds']):.2f} ms by the folds"
        for name, ms in removed.items()
    )
    text = (
        "Latencies that grow along their table hold an overhead that no layer causes; it was taken "
        "off before the fit, and the tables above judge rows without it. Here layer and overhead "
        "are both estimated from the other folds alone. The overhead of the last row: "
        f"{amounts}."
    )
    return ["## Overhead of the place in the table", table, text]


def _intervals(platform: FittedPlatform) -> list[str]:
    table = intervals_table(platform.accuracy, "github")
    if not platform.families or not table or platform.intervals is None:
        return []
    model_error = math.exp(platform.intervals.runtime.model_error)
    text = (
        f"Intervals are made to hold {platform.intervals.coverage:.0%} of the values. What they "
        "hold is counted on shapes (each once) and rows that neither the estimator nor the "
        "interval saw; on networks, with each network left out in turn. Layers outside the "
        "calibrated ranges have wider ones. In addition to its layers' errors, the runtime of a "
        f"whole call may be off by a factor of {model_error:.2f}, "
        f"{_MODEL_ERROR[platform.accuracy['intervals']['totals']]}."
    )
    return ["## Intervals", table, text, *_stacks(platform.accuracy["intervals"]["runtime"])]


def _stacks(intervals: Mapping[str, Mapping[str, float]]) -> list[str]:
    """By how much the stacks differ that a family's rows come from."""
    known = {
        name: each["stacks_factor"] for name, each in intervals.items() if "stacks_factor" in each
    }
    if not known:
        return []
    named = ", ".join(f"{name} by a factor of up to {factor:.2f}" for name, factor in known.items())
    return [
        f"Rows of several stacks (libraries, versions, machines) differ: {named}, in 90% of the "
        "cases; the intervals above hold that, as a user's stack is another one again."
    ]


def _networks(accuracy: Mapping[str, Any]) -> list[str]:
    table = networks_table(accuracy, "github")
    if not table:
        return []
    score = accuracy["networks"].get("neuralpower")
    beside = f"By the paper's estimators runtime RMSPE {percent(score['rmspe'])}. " if score else ""
    text = (
        f"{_sentence(networks_line(accuracy))}. {beside}"
        "Paleo's runtime RMSPE on the same networks is 28%, "
        "NeuralPower's in sample 11.8%. No network's runtime was fitted; *seen* is the share "
        "of the predicted runtime in layers that have a row of their shape."
    )
    return ["## Whole networks", table, text]


def _power(accuracy: Mapping[str, Any]) -> list[str]:
    table = power_table(accuracy, "github")
    if not table:
        return []
    found = accuracy["power"]

    def rmspe(score: Mapping[str, float]) -> str:
        return percent(score["rmspe"])

    if "devices" in found:
        text = (
            "Power was not measured here. The joules that an operation, a byte and being awake "
            "take on devices that were metered are scaled to this one's peak, bandwidth, process, "
            "idle power and limit. The table has the error of rows of 0.1 ms or more, and of whole "
            "networks of the Titan X, on each device by the others; 90% of the rows of every one "
            f"are within a factor of {found['factor']:.2f}. The error on this device is not known."
        )
    else:
        text = (
            f"{found['free_parameters']} free parameters, fitted to the networks' mean power. "
            f"RMSPE with the network left out {rmspe(found['leave_one_network_out'])}, fitted "
            f"{rmspe(found['fitted'])}; the mean of the others "
            f"{rmspe(found['mean_of_the_others'])}."
        )
    return ["## Power", table, text]


def _source(source: Mapping[str, Any]) -> str:
    facts = [f"**{source.get('title', 'measured rows')}**"]
    facts += [str(source[key]) for key in ("url", "commit", "license") if key in source]
    text = f"- {', '.join(facts)}."
    if "note" in source:
        text += f" {_sentence(source['note'])}."
    if left_out := source.get("left_out"):
        reasons = "; ".join(f"{number:,} ({reason})" for reason, number in left_out.items())
        text += f" {source['rows']:,} rows used; left out: {reasons}."
    return text


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:]


# -- Platforms that were measured by trials: how, with what repeatability, and what to verify.

#: Provenance lines that tell the device and how it was measured.
FACTS: Final = (
    "device", "device_uuid", "torch_device", "dtype", "mode", "threads", "cores", "instructions",
    "onednn", "governor", "compute_capability", "driver", "cuda", "cudnn", "cudnn_benchmark",
    "cudnn_tf32", "matmul_precision", "ecc", "power_limit_w", "torch", "python", "system",
    "pytest_neuralpower", "meter", "meter_method", "meter_source", "idle_w", "preheated", "started",
)  # fmt: skip


def _calibration(platform: FittedPlatform) -> list[str]:
    """Sections of the card; empty for a platform that was not measured by trials."""
    records = platform.provenance.get("calibration", ())
    if not records:
        return []
    sections = ["## Measured", *(text for record in records for text in _record_texts(record))]
    trials = platform.accuracy.get("intervals", {}).get("trials")
    if trials and platform.intervals is not None:
        score, count = trials["runtime"], trials["networks"]
        sections.append(
            f"Sums of held-out layers against the {count} whole random networks: MAPE "
            f"{score['mape']:.1f}%, bias {score['bias']:+.1f}%, "
            f"{score['within_10']:.0f}% within 10%. 90% intervals held {trials['inside']} of "
            f"{count}; in addition to its layers' errors, a call may be off by "
            f"{math.expm1(platform.intervals.runtime.model_error):.0%}."
        )
    sections.append(
        "A kind of layer is kept where it beats the prior, which would price it instead, even "
        "if a baseline that was fitted to it does as well."
    )
    if not_fitted := platform.accuracy.get("not_fitted"):
        sections.append(
            "Priced as other devices run them, for too few rows could be predicted: "
            + ", ".join(not_fitted)
        )
    return [
        *sections,
        f"![predicted against measured runtime]({FIGURE})",
        f"To see whether it still holds on the device: `neuralpower verify {platform.name}.json`.",
    ]


def _record_texts(record: Mapping[str, Any]) -> list[str]:
    found = record["repeatability"]
    texts = [
        f"{record['networks']} random networks, {record['layers']} layers timed in place"
        + (f", {record['flawed']} left out" if record["flawed"] else "")
        + f". Repeatability: {repeatability_text(found)}."
    ]
    if found is not None and found["p95_percent"] > LEAST_REPEATABLE:
        texts.append(
            f"**Its 95th percentile is above {LEAST_REPEATABLE:g}%: the machine was not quiet, and "
            "no difference smaller than that means anything.**"
        )
    facts = [(key.replace("_", " "), value) for key, value in record["facts"].items() if value]
    return [*texts, _table(facts, ("fact", "value"))]


def repeatability_text(found: Mapping[str, float] | None) -> str:
    """``median 1.2%, p95 4.0% over 180 layers``."""
    if found is None:
        return "not measured: the closing trials are missing"
    return (
        f"median {found['median_percent']:.1f}%, p95 {found['p95_percent']:.1f}% over "
        f"{found['rows']:.0f} layers measured again"
    )


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


class Closing(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far the closing trials lay from the pass before them, and over how many layers."""

    median_percent: float
    p95_percent: float
    rows: int
    networks_median_percent: float | None = None


class Reference(msgspec.Struct, frozen=True):
    """A network to verify by: how to make it, and its layers' place, kind and time (ms)."""

    network: str
    seed: int
    layers: list[tuple[int, str, float]]
    template: str


class CalibrationRecord(msgspec.Struct, frozen=True):
    """What a platform keeps of one measured profile.

    ``flawed`` layers were left out; ``probe_ms`` is the usual speed of its processor; ``verify``
    are the networks that ``neuralpower verify`` measures again.
    """

    facts: Mapping[str, str]
    networks: int
    layers: int
    flawed: int
    repeatability: Closing | None
    probe_ms: float | None
    verify: Sequence[Reference]


def with_calibration(platform: FittedPlatform, profiles: Sequence[Profile]) -> FittedPlatform:
    """The platform with a record of each measured profile in its provenance, as ``calibration``.

    Profiles without trials add nothing.
    """
    records = [_record(profile) for profile in profiles if profile.measurements]
    if not records:
        return platform
    provenance = {**platform.provenance, "calibration": msgspec.to_builtins(records)}
    return replace(platform, provenance=provenance)


def _record(profile: Profile) -> CalibrationRecord:
    usual_ms = usual_probe_ms(profile.measurements)
    measurements = at_usual_speed(profile.measurements, usual_ms)
    return CalibrationRecord(
        facts={key: profile.provenance[key] for key in FACTS if key in profile.provenance},
        networks=len(profile.networks),
        layers=len(profile.rows),
        flawed=sum(bool(row.flaw) for row in profile.rows),
        repeatability=_closing_repeatability(measurements),
        probe_ms=next(iter(usual_ms.values()), None),
        verify=_references(measurements),
    )


def _closing_repeatability(measurements: Sequence[Measurement]) -> Closing | None:
    """None where there are no closing trials."""
    closing = [each for each in measurements if each.pass_ == CLOSING]
    names = {each.network for each in closing}
    before: dict[tuple[str, str, int], Measurement] = {}
    for each in measurements:
        if each.network in names and each.pass_ != CLOSING and each.what == "network":
            earlier = before.get(each.place)
            if earlier is None or each.pass_ >= earlier.pass_:
                before[each.place] = each
    found = repeatability(map(_row, before.values()), map(_row, closing))
    if found is None:
        return None
    networks = found.networks_percent
    return Closing(
        round(found.median_percent, 2),
        round(found.p95_percent, 2),
        found.rows,
        None if networks is None else round(networks, 2),
    )


def _row(each: Measurement) -> MeasuredRow:
    layer = None if each.index < 0 else each.row.layer
    return MeasuredRow(
        each.trial, each.network, layer, each.row.runtime_ms, each.index, each.calls, each.pass_
    )


def _references(measurements: Sequence[Measurement]) -> list[Reference]:
    """The sentinel and the networks of the closing trials."""
    names = {each.network for each in measurements if each.pass_ == CLOSING} | {SENTINEL}
    times: dict[str, dict[int, list[Measurement]]] = {}
    for each in measurements:
        if each.what == "network" and not each.row.flaw and each.network in names:
            times.setdefault(each.network, {}).setdefault(each.index, []).append(each)
    references = []
    for network, passes in times.items():
        layers = []
        for index, (first, *rest) in passes.items():
            if index >= 0:
                runtime = median(one.row.runtime_ms for one in (first, *rest)) * first.calls
                layers.append((index, first.row.layer.kind, float(f"{runtime:.5g}")))
        whole = passes.get(-1)
        if whole and layers:
            seed = next(iter(passes.values()))[0].seed
            references.append(Reference(network, seed, layers, whole[0].row.layer.op))
    return references
