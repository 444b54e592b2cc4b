"""Plain text for terminals: layer tables, the text of a broken budget, one line a guarded test."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from typing import TYPE_CHECKING, Any, Final, Literal

from msgspec import UNSET

from pytest_neuralpower.guard.budget import unknown_share
from pytest_neuralpower.platform.generation import Generation
from pytest_neuralpower.platform.prediction import (
    EXTRAPOLATED,
    HOST_BOUND,
    INFERRED,
    UNCOVERED,
    UNTRUSTED,
)
from pytest_neuralpower.report.compare import signed_percent, values_of
from pytest_neuralpower.text import printable
from pytest_neuralpower.units import Quantity, show, show_percent

if TYPE_CHECKING:
    from pytest_neuralpower.guard.budget import Verdict
    from pytest_neuralpower.guard.finding import Finding
    from pytest_neuralpower.layers import Layer, TensorSpec, Trace
    from pytest_neuralpower.platform.intervals import Interval
    from pytest_neuralpower.platform.prediction import LayerPrediction, Prediction
    from pytest_neuralpower.platform.protocol import Platform
    from pytest_neuralpower.report.epr import Ranked

#: Lines stay within this; a nested module path keeps its end, where layers differ.
_WIDTH = 80
_LEAST_WIDTH = 20

#: Flag of a layer -> (its letter in a table, what it means).
_FLAG_NOTES: Final = {
    UNCOVERED: ("U", "no formula, may take any time"),
    INFERRED: ("I", "not measured on this device"),
    EXTRAPOLATED: ("E", "sizes or dtype not measured"),
}

#: What a calibration can measure.
_MEASURABLE: Final = (INFERRED, EXTRAPOLATED)

#: Kinds of layers that one line names.
_KINDS: Final = 3


def _shape_text(tensors: Sequence[TensorSpec]) -> str:
    """Shape of the first tensor, ``1x64x56x56``; ``scalar`` without axes, ``-`` without tensor."""
    if not tensors:
        return "-"
    return "x".join(map(str, tensors[0].shape)) or "scalar"


def _path_text(layer: Layer, width: int) -> str:
    path = printable(layer.path) or "(root)"
    return path if len(path) <= width else "…" + path[-width + 1 :]


def _layer_table(layers: Iterable[LayerPrediction], whole: Prediction, *, indent: int = 0) -> str:
    """Aligned table of some layers of ``whole``, with each layer's share of the total."""
    total = whole.cost
    rows = [
        (
            show_percent(item.cost / total if total else 0.0),
            _known("energy", item.energy_mj),
            _known("runtime", item.runtime_ms),
            item.layer.op,
            _shape_text(item.layer.outputs),
            "".join(_FLAG_NOTES[flag][0] for flag in item.flags),
            item.layer,
        )
        for item in layers
    ]
    headers = ("share", "energy", "runtime", "operation", "output", "", "layer")
    # What the platform does not know has no column, rather than one of blanks or zeros.
    known = [True, whole.energy_mj is not None, whole.runtime_ms is not None, *[True] * 4]
    return _table(
        [tuple(compress(row, known)) for row in rows],
        tuple(compress(headers, known)),
        "".join(compress("rrrllll", known)),
        indent,
    )


def _known(quantity: Quantity, value: float | None) -> str:
    return "" if value is None else show(quantity, value)


def _table(rows: Sequence[tuple[Any, ...]], headers: Sequence[str], align: str, indent: int) -> str:
    """Columns two blanks apart; the last column is a layer, whose path takes what width is left."""
    from tabulate import tabulate  # noqa: PLC0415 - an idle plugin loads nothing

    widths = [max(map(len, column)) for column in zip(*[row[:-1] for row in rows], strict=True)]
    widths = [max(pair) for pair in zip(widths, map(len, headers), strict=False)]
    left = max(_WIDTH - indent - sum(widths) - 2 * len(widths), _LEAST_WIDTH)
    text = tabulate(
        [(*row[:-1], _path_text(row[-1], left)) for row in rows],
        headers,
        tablefmt="plain",
        colalign=["right" if side == "r" else "left" for side in align],
        disable_numparse=True,
    )
    return "\n".join(" " * indent + line.rstrip() for line in text.splitlines())


def trace_text(trace: Trace) -> str:
    """Every layer of a trace in order, with its operations and bytes, and the totals."""
    rows = [
        (
            layer.op,
            *map(_shape_text, (layer.inputs, layer.weights, layer.outputs)),
            _count_text(layer.cost.flops) if layer.covered else UNCOVERED,
            _count_text(layer.cost.bytes_moved),
            layer,
        )
        for layer in trace
    ]
    headers = ("operation", "input", "weight", "output", "FLOPs", "bytes", "layer")
    notes = [f"note: {note}" for note in trace.notes]
    notes += [f"note: no shape rule for {fallback}" for fallback in trace.fallbacks]
    total = sum(layer.cost.bytes_moved for layer in trace)
    return "\n".join(
        [
            _table(rows, headers, "llllrrl", 0),
            "",
            f"{trace.model}: {len(trace)} layers, {_count_text(trace.macs)} MACs, "
            f"{_count_text(trace.flops)} FLOPs, {_count_text(total)}B moved; batch {trace.batch}, "
            f"traced by the {trace.route} route",
            *notes,
        ]
    )


def _count_text(count: float) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= factor:
            return f"{count / factor:.3g} {prefix}"
    return f"{count:g} "


def caveats(
    prediction: Prediction, quantity: Literal["energy", "runtime"] | None = None
) -> list[str]:
    """One line for each reason to trust the prediction less, and one for what would settle it.

    Each names the kinds of layers, dearest first, their share of ``quantity`` (default: the energy,
    or the runtime where that is not known), and the factor within which their sum is known, up or
    down. Empty where there is no reason.
    """
    if quantity is None or values_of(prediction)[quantity] is None:
        quantity = "runtime" if prediction.energy_mj is None else "energy"
    costs = [
        (each.energy_mj if quantity == "energy" else each.runtime_ms) or 0.0
        for each in prediction.layers
    ]
    total = sum(costs)
    lines: list[str] = []
    measurable: list[LayerPrediction] = []
    for flag, (letter, reason) in _FLAG_NOTES.items():
        places = [
            at
            for at, each in enumerate(prediction.layers)
            if flag in each.flags and (flag == UNCOVERED or UNCOVERED not in each.flags)
        ]
        cost = sum(costs[at] for at in places)
        if not cost:
            continue
        by_name: dict[str, float] = {}
        for at in places:
            layer = prediction.layers[at].layer
            name = layer.op if flag == UNCOVERED else layer.kind
            by_name[name] = by_name.get(name, 0.0) + costs[at]
        says = reason
        if prediction.runtime_ms is None and flag == INFERRED:
            says = "not mapped on the array, priced by their traffic"  # of an analytic platform
        elif flag in _MEASURABLE:
            measurable += [prediction.layers[at] for at in places]
            says += _factor_text(prediction, places, quantity)
        share = show_percent(cost / total)
        lines += _within_width(f"{letter}: {_named(by_name)} ({share} of the {quantity}):", says)
    if measurable:
        lines.append(f"   to settle it: {_calibration(measurable)} on the device")
    return [*lines, *(f"note: {note}" for note in prediction.notes)]


def _named(costs: Mapping[str, float]) -> str:
    """The dearest first: ``norm, pool and 2 more``."""
    names = sorted(costs, key=lambda name: -costs[name])
    if len(names) > _KINDS + 1:
        return f"{', '.join(names[:_KINDS])} and {len(names) - _KINDS} more"
    return ", ".join(names)


def _factor_text(
    prediction: Prediction, places: Sequence[int], quantity: Literal["energy", "runtime"]
) -> str:
    """How far the sum of some layers may be off; empty where that is not known."""
    errors = prediction.errors
    if errors is None or not errors.knows(quantity):
        return ""
    factor = errors.factor(places, quantity)
    return f", within {factor:,.{1 if factor < 10 else 0}f}x"


def _within_width(start: str, end: str) -> list[str]:
    """Both in one line; in two where that is too long, indented as texts of failures are."""
    whole = f"{start} {end}"
    return [whole] if len(whole) <= _WIDTH - 2 else [start, f"   {end}"]


def _calibration(layers: Sequence[LayerPrediction]) -> str:
    """The command that measures layers like these."""
    dtypes = {each.layer.dtype for each in layers} & {"bfloat16", "float16"}
    option = f" --dtype {min(dtypes)}" if len(dtypes) == 1 else ""
    return f"`neuralpower calibrate NAME{option}`"


def totals_text(prediction: Prediction) -> str:
    """What is known of energy, runtime and power of one call, in one line."""
    values = values_of(prediction).items()
    return ", ".join(show(name, value) for name, value in values if value is not None)


def _basis_text(prediction: Prediction) -> str:
    """What the figures are of; ``runtime alone`` where energy is not known."""
    return "runtime alone" if prediction.energy_mj is None else prediction.energy_basis


def _parts_text(prediction: Prediction) -> list[str]:
    """One line with the share of each data type, where the platform tells them apart."""
    parts = prediction.energy_parts_mj
    if not parts:
        return []
    total = sum(parts.values())
    shares = (
        f"{name.replace('_', ' ')} {show_percent(each / total)}" for name, each in parts.items()
    )
    return [", ".join(shares)]


def call_text(prediction: Prediction) -> str:
    """``one call of 8 samples``; of a generation, what it generates."""
    if isinstance(prediction, Generation):
        samples = "" if prediction.batch == 1 else f" for each of {prediction.batch} samples"
        return f"{prediction.new_tokens:,} tokens{samples} after {prediction.prompt_tokens:,}"
    if not prediction.batch:  # the inputs do not tell
        return "one call"
    noun = "sample" if prediction.batch == 1 else "samples"
    return f"one call of {prediction.batch} {noun}"


def prediction_text(prediction: Prediction, top: int) -> str:
    """The whole prediction: totals, and the ``top`` most expensive layers (0: all in order)."""
    shown = prediction.top(top) if top else prediction.layers
    order = "most expensive first" if top else "in order of execution"
    lines = [
        f"{prediction.model} on {prediction.platform}: {totals_text(prediction)}",
        f"predicted for {call_text(prediction)} ({_basis_text(prediction)})",
        *_parts_text(prediction),
        f"{len(shown)} of {len(prediction.layers)} layers, {order}",
        *_interval_lines(prediction),
        "",
        _layer_table(shown, prediction),
    ]
    warnings = caveats(prediction)
    if warnings:
        lines += ["", *warnings]
    return "\n".join(lines)


_SIDES: Final = ("left", "right", "right", "right", "right")


def side_by_side_text(predictions: Sequence[Prediction], platforms: Sequence[Platform]) -> str:
    """Predictions of one call on several platforms, and why they may not be compared."""
    from tabulate import tabulate  # noqa: PLC0415 - an idle plugin loads nothing

    first = predictions[0]
    quantities: tuple[Quantity, ...] = ("runtime", "energy")
    rows = []
    for prediction, platform in zip(predictions, platforms, strict=True):
        cells = [platform.name]
        for quantity, total, interval in zip(
            quantities,
            (prediction.runtime_ms, prediction.energy_mj),
            (prediction.runtime_interval_ms, prediction.energy_interval_mj),
            strict=True,
        ):
            ends = [show(quantity, end) for end in interval[:2]] if interval else ["", ""]
            cells += [_known(quantity, total), " to ".join(filter(None, ends))]
        rows.append(cells)
    sure = next(
        (each.runtime_interval_ms for each in predictions if each.runtime_interval_ms), None
    )
    within = f"{sure.coverage:.0%} sure" if sure else ""
    headers = ("platform", "runtime", within, "energy", within)
    lines = [
        f"{first.model}, predicted for {call_text(first)}",
        "",
        tabulate(rows, headers, tablefmt="plain", disable_numparse=True, colalign=_SIDES),
        "",
        *(line for platform in platforms for line in _wrapped(_how_text(platform))),
        *_unsound(predictions, platforms),
    ]
    return "\n".join(lines)


def _how_text(platform: Platform) -> str:
    """Dtype, mode and tier of a platform."""
    parts = (platform.dtype, platform.mode or platform.device, platform.tiers.get("runtime"))
    return f"{platform.name}: {'; '.join(part for part in parts if part)}"


def _wrapped(text: str) -> list[str]:
    import textwrap  # noqa: PLC0415 - an idle plugin loads nothing

    return textwrap.wrap(text, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _unsound(predictions: Sequence[Prediction], platforms: Sequence[Platform]) -> list[str]:
    """Why these predictions say little of which device is better, a line a reason."""
    reasons = []
    if len({platform.mode for platform in platforms}) > 1:
        reasons.append("they run in different modes: the difference is of the modes, too")
    if len({platform.dtype for platform in platforms}) > 1:
        reasons.append("their layers compute in different dtypes")
    waiting = [
        each.platform
        for each in predictions
        if any(note.startswith(HOST_BOUND) for note in each.notes)
    ]
    if waiting and len(waiting) < len(predictions):
        reasons.append(
            f"on {', '.join(waiting)} the call waits for its host's launches, which the others' "
            "mode has not: take a larger batch, or platforms of one mode"
        )
    overlapping = [
        f"{one.platform} and {other.platform}"
        for number, one in enumerate(predictions)
        for other in predictions[number + 1 :]
        if one.runtime_interval_ms
        and other.runtime_interval_ms
        and max(one.runtime_interval_ms.low, other.runtime_interval_ms.low)
        <= min(one.runtime_interval_ms.high, other.runtime_interval_ms.high)
    ]
    if overlapping:
        pairs = len(predictions) * (len(predictions) - 1) // 2
        every = len(overlapping) == pairs > 1
        which = "any two of them" if every else ", ".join(overlapping)
        reasons.append(f"which is faster is not sure of {which}")
    lines = [line for reason in reasons for line in _wrapped(f"not sound: {reason}")]
    return ["", *lines] if lines else []


def _interval_lines(prediction: Prediction) -> list[str]:
    """One line with the interval of each total; none on a platform without."""
    found: tuple[tuple[Quantity, Interval | None], ...] = (
        ("energy", prediction.energy_interval_mj), ("runtime", prediction.runtime_interval_ms),
    )  # fmt: skip
    parts = [
        f"{quantity} {show(quantity, interval.low)} to {show(quantity, interval.high)}"
        for quantity, interval in found
        if interval is not None
    ]
    interval = prediction.runtime_interval_ms
    return [f"{interval.coverage:.0%} sure: {', '.join(parts)}"] if interval else []


def failure_text(
    prediction: Prediction, broken: Sequence[Verdict], *, top: int, again: tuple[str, str]
) -> str:
    """What people read when budgets are broken: which, by how much, where it goes, what next."""
    lines = []
    for verdict in broken:
        per = "" if verdict.quantity == "power" else verdict.per_suffix or " per call"
        what = "exceeded" if verdict.value > verdict.limit else "not safe"
        lines += [
            f"{verdict.quantity} budget {what}: {prediction.model} on {prediction.platform}",
            f"  budget     {verdict.show(verdict.limit)}{per}",
            f"  predicted  {verdict.show(verdict.value)}{per}, {_distance(verdict)}",
        ]
        if verdict.interval is not None:
            low, high, _ = verdict.interval
            lines.append(
                f"  interval   {verdict.show(low)} to {verdict.show(high)}"
                f"{_sureness(verdict, prediction)}"
            )
        if verdict.judge != "point":
            end = "lower" if verdict.judge == "certain" else "upper"
            lines.append(f"  judged by  its {end} end (np_judge={verdict.judge})")
    shown = prediction.top(top) if top else prediction.layers
    lines += [
        f"  {call_text(prediction)}: {totals_text(prediction)}",
        f"  ({_basis_text(prediction)})",
        "",
        f"  the {len(shown)} most expensive of {len(prediction.layers)} layers:"
        if top and len(shown) < len(prediction.layers)
        else "  layers:",
        _layer_table(shown, prediction, indent=2),
    ]
    judged = {verdict.quantity for verdict in broken}
    lines += [
        f"  {line}" for line in caveats(prediction, "runtime" if judged == {"runtime"} else None)
    ]
    if len(shown) < len(prediction.layers):
        lines += ["", f"  every layer: {again[0]} --np-top=0 {again[1]}"]
    return "\n".join(lines)


def _distance(verdict: Verdict) -> str:
    """How far the point is from the limit."""
    ratio = verdict.value / verdict.limit
    by = verdict.show(abs(verdict.value - verdict.limit))
    if ratio >= 2:
        times = f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}"
        return f"{times} times the budget (by {by})"
    return f"{show_percent(abs(ratio - 1))} {'over' if ratio > 1 else 'under'} (by {by})"


def _sureness(verdict: Verdict, prediction: Prediction) -> str:
    """How sure it is that the budget is over or kept, from where the limit lies."""
    assert verdict.interval is not None  # the caller has looked
    low, high, coverage = verdict.interval
    limit = verdict.limit
    if verdict.sure:
        return f": {coverage:.0%} sure to be {'over' if limit < low else 'within'}"
    if not low <= limit <= high:
        share = show_percent(unknown_share(prediction))
        return f" ({coverage:.0%}): not sure, {share} of it has no formula"
    place = (limit - low) / (high - low) if high > low else 0.5
    return f" ({coverage:.0%}): not sure, the limit is {place:.0%} of the way up"


def epr_text(ranked: Sequence[Ranked], *, platform: str, alpha: float) -> str:
    """Models by energy-precision ratio, best first; a star marks the Pareto front."""
    from tabulate import tabulate  # noqa: PLC0415 - an idle plugin loads nothing

    rows = [
        (
            item.candidate.name,
            f"{item.candidate.error:.2%}",
            show("energy", item.candidate.energy_mj),
            show("energy", item.ratio),
            "*" if item.efficient else "",
        )
        for item in ranked
    ]
    headers = ("model", "error", "energy per sample", f"error^{alpha:g} x energy", "front")
    align = ("left", "right", "right", "right", "left")
    table = tabulate(rows, headers, tablefmt="plain", colalign=align, disable_numparse=True)
    star = "* Pareto-optimal: no other model is better in both error and energy"
    return f"{table}\n\npredicted on {platform}\n{star}"


def strict_text(prediction: Prediction, share: float, limit: float, again: tuple[str, str]) -> str:
    """Why ``--np-strict`` failed a test: the share, and the layers that make it up."""
    flagged = [item for item in prediction.top(len(prediction.layers)) if item.flags]
    return "\n".join(
        [
            f"prediction not trusted: {prediction.model} on {prediction.platform}",
            f"  {show_percent(share)} is {' or '.join(UNTRUSTED)}; "
            f"--np-strict allows {show_percent(limit)}",
            _layer_table(flagged[:5], prediction, indent=2),
            *(f"  {line}" for line in caveats(prediction)),
            "  calibrate a platform that covers these layers, or allow more:",
            f"  {again[0]} --np-strict --np-strict-limit={math.ceil(100 * share)} {again[1]}",
        ]
    )


#: Outcome of a prediction -> how a summary line starts.
_STATUS = {
    "ok": "ok",
    "over": "OVER",
    "untrusted": "STRICT",
    "misused": "ERROR",
    "regressed": "WORSE",
    "missing": "MISSING",
    "failed": "failed",
    "unbounded": "-",
}


def summary_lines(findings: Sequence[Finding], *, whole_ids: bool = False) -> list[str]:
    """What each guarded test predicted, in lines of 80 columns where its figures fit.

    One aligned line a prediction, its test last; where one would be too long, all take two, the
    test first. Models are named where a test predicts several. A test's id too long for a line is
    shortened, unless ``whole_ids``.
    """
    several = Counter((each.test, each.platform) for each in findings)
    rows = [
        [
            _STATUS[each.outcome],
            each.model if several[each.test, each.platform] > 1 else "",
            *_total_cells(each),
            _since_baseline(each),
            f"{each.untrusted_share:.0%} not measured" if each.untrusted_share > 0 else "",
            each.predicted_by,
            each.test,
        ]
        # By test, so that a run on xdist reads the same; its workers finish in any order.
        for each in sorted(findings, key=lambda each: (each.test, each.platform))
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if sum(width + 2 for width in widths if width) - 2 <= _WIDTH:
        return [
            "  ".join(
                f"{cell:{width}}" for cell, width in zip(row, widths, strict=True) if width
            ).rstrip()
            for row in rows
        ]
    indent = widths[0] + 2
    lines = []
    for status, *cells, test in rows:
        shown = test if whole_ids else short_id(test, _WIDTH - indent)
        lines += [f"{status:{indent}}{shown}", " " * indent + "  ".join(filter(None, cells))]
    return lines


def _since_baseline(finding: Finding) -> str:
    """How the model's cost stands to its baseline; empty where it has none."""
    if finding.comparison is UNSET:
        missing = finding.baseline is not UNSET and finding.baseline.status == "missing"
        return "no baseline" if missing else ""
    total = finding.comparison.main_change()
    change = signed_percent(total.base, total.head)
    text = "as baseline" if change == "+0.0%" else f"{change} on baseline"
    before, now = finding.comparison.estimators
    return text if before == now else f"{text} of estimator {before}"


def short_id(nodeid: str, width: int) -> str:
    """A test's id within ``width`` columns: folders go first, then the file, then its classes and
    at last the middle of its name, of which a few letters always stay.

    >>> short_id("tests/unit/test_net.py::TestNet::test_small[8]", 24)
    '…::test_small[8]'
    """
    path, separator, names = nodeid.partition("::")
    name, bracket, case = names.partition("[")  # a case may have colons of its own
    parts = name.split("::")
    parts[-1] += bracket + case
    shorter = [nodeid, f"…/{path.rpartition('/')[2]}{separator}{names}"]
    shorter += ["…::" + "::".join(parts[index:]) for index in range(len(parts))]
    for each in shorter:
        if len(each) <= width:
            return each
    last, width = shorter[-1], max(width, _LEAST_WIDTH)
    if len(last) <= width:
        return last
    start = (width - 1) // 2
    return f"{last[:start]}…{last[start + 1 - width :]}"


#: Whether it is sure that the budget is over or kept -> what the summary adds.
_SURE: Final[Mapping[bool | None, str]] = {None: "", True: " (sure)", False: " (not sure)"}


def _total_cells(finding: Finding) -> list[str]:
    """Energy, runtime and power; next to the tightest budget of each, if it has one."""
    cells = []
    for quantity, value in values_of(finding).items():
        verdict = finding.tightest(quantity)
        if verdict is None:
            cell = _known(quantity, value)
        else:
            samples = verdict.samples or finding.batch
            per = f" per sample of {samples}" if verdict.per == "sample" else verdict.per_suffix
            value_and_limit = f"{verdict.show(verdict.value)} of {verdict.show(verdict.limit)}"
            cell = f"{value_and_limit}{per}{_SURE[verdict.sure]}"
        estimated = cell and quantity != "runtime" and finding.estimated_power
        cells.append(f"{cell} estimated" if estimated else cell)
    return cells
