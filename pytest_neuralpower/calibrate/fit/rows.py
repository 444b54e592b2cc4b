"""Evidence: measured rows of layers and of whole networks, and how well they repeat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Final, TypeAlias

import numpy as np

from pytest_neuralpower.layers import Layer, ParamValue, TensorSpec


@dataclass(frozen=True, slots=True)
class Row:
    """One measured layer.

    Attributes
    ----------
    layer
        Its configuration.
    runtime_ms
        Measured runtime of one call, ms.
    power_w
        Mean gross board power during it, W; None where it was not measured.
    line
        Line in the source file, the header being line 1.
    flaw
        Why the row must be left out; empty for a sound one.
    judges
        Set apart to judge a fit to the other rows first.
    place
        Share of its table above it, where latencies grow along the table; None elsewhere.
    overhead_ms
        What was taken off its published latency for that, ms.
    stack
        The library, version and machine that ran it: rows of one stack were measured alike.
    group
        What it shares with rows that must be held out together, as names and values of columns of
        its table; empty for its shape.
    """

    layer: Layer
    runtime_ms: float
    power_w: float | None = None
    line: int = 0
    flaw: str = ""
    judges: bool = False
    place: float | None = None
    overhead_ms: float = 0.0
    stack: str = ""
    group: tuple[tuple[str, str], ...] = ()

    @property
    def shape_group(self) -> Hashable:
        """The row's group, or the layer's shape without its batch: rows that share it never face
        each other.

        A norm's or softmax's batch is how many rows it treats: a size like others, kept.
        """
        if self.group:
            return self.group
        layer = self.layer
        if layer.kind in ("norm", "softmax"):
            return (layer.kind, layer.op, layer.inputs, layer.params)
        return (
            layer.kind,
            layer.op,
            # A linear layer's rows are its batch, whatever axes they are spread over.
            tuple(
                tensor.shape[-1:] if layer.kind == "linear" else tensor.shape[1:]
                for tensor in layer.inputs
            ),
            # A bias makes no other shape of it.
            tuple(tensor.shape for tensor in layer.weights[:1]),
            layer.params,
        )


def conv_layer(
    shape: Sequence[int],
    *,
    cout: int,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...] | None = None,
    groups: int = 1,
    bias: bool = False,
    dtype: str = "float32",
) -> Layer:
    """A plain convolution of an input ``(N, Cin, *spatial)``."""
    dilation = dilation or (1,) * len(kernel)
    spatial = tuple(
        (size + 2 * pad - dil * (width - 1) - 1) // step + 1
        for size, pad, dil, width, step in zip(
            shape[2:], padding, dilation, kernel, stride, strict=True
        )
    )
    return _layer(
        "conv",
        f"conv{len(kernel)}d",
        [shape],
        [(cout, shape[1] // groups, *kernel), *([(cout,)] if bias else [])],
        (shape[0], cout, *spatial),
        dtype=dtype,
        dilation=dilation,
        groups=groups,
        padding=padding,
        stride=stride,
        transposed=False,
    )


def _layer(
    kind: str,
    op: str,
    inputs: Iterable[Sequence[int]],
    weights: Iterable[Sequence[int]],
    result: Sequence[int],
    *,
    dtype: str,
    **params: ParamValue,
) -> Layer:
    """A layer from the shapes of its tensors, all of one dtype; ``params`` in order of name."""
    given, held, made = (
        tuple(TensorSpec(tuple(shape), dtype) for shape in shapes)
        for shapes in (inputs, weights, [result])
    )
    return Layer(kind, op, "", given, held, made, dtype, tuple(params.items()))


def linear_layer(
    rows: int, depth: int, width: int, *, bias: bool = False, dtype: str = "float32"
) -> Layer:
    """``(rows, depth) -> (rows, width)`` with a weight ``(width, depth)``."""
    weights = [(width, depth), *([(width,)] if bias else [])]
    return _layer("linear", "linear", [(rows, depth)], weights, (rows, width), dtype=dtype)


def matmul_layer(left: tuple[int, ...], right: tuple[int, ...], *, dtype: str = "float32") -> Layer:
    """``(*, M, K) @ (*, K, N)``."""
    return _layer("matmul", "matmul", [left, right], [], (*left[:-1], right[-1]), dtype=dtype)


def pool_layer(
    shape: tuple[int, ...],
    result: tuple[int, ...],
    *,
    op: str,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dtype: str = "float32",
) -> Layer:
    """Pooling from one map to another."""
    return _layer(
        "pool", op, [shape], [], result, dtype=dtype, kernel=kernel, padding=padding, stride=stride
    )


def streaming_layer(
    kind: str,
    op: str,
    inputs: Sequence[tuple[int, ...]],
    result: tuple[int, ...],
    *,
    dtype: str = "float32",
) -> Layer:
    """A layer whose cost follows from its tensors alone: activation, copy, concatenation."""
    return _layer(kind, op, inputs, [], result, dtype=dtype)


# -- Rows of a calibration's trials: passes and devices merged to one row a layer.

#: Pass of the trials that close a calibration: they tell its repeatability and are not fitted.
CLOSING: Final = 0
#: Name of the network that is timed again and again to see the device drift; it would outweigh the
#: others in a fit.
SENTINEL: Final = "sentinel"

#: Device, network and place in it.
_Place: TypeAlias = tuple[str, str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One line of a profile that was measured by trials.

    ``network`` and ``seed`` make the network again; ``index`` is the layer's place in it, -1 of the
    whole, whose operation is the network's template; ``calls`` is the number of equal layers that
    the row is the mean of; ``probe_ms`` tells how fast the processor was just then.
    """

    row: Row
    trial: str
    what: str
    network: str
    seed: int
    index: int
    calls: int = 1
    pass_: int = 1
    wall_ms: float | None = None
    probe_ms: float | None = None
    device_uuid: str = ""

    @property
    def place(self) -> _Place:
        return (self.device_uuid, self.network, self.index)


@dataclass(frozen=True, slots=True)
class NetworkRow:
    """One measured network: its own time and that of its layers.

    Attributes
    ----------
    network
        Its name in the plan.
    runtime_ms, power_w
        Of one call.
    layers
        Every measured layer, and how many equal ones the network has.
    """

    network: str
    runtime_ms: float
    power_w: float | None
    layers: tuple[tuple[Row, int], ...]


def layer_rows(measurements: Iterable[Measurement]) -> list[Row]:
    """Layers as they ran in place, each once, with the power they drew alone where it is known."""
    return [row for each, row in _merged(measurements) if each.index >= 0]


def network_rows(
    measurements: Iterable[Measurement], *, usual_ms: Mapping[str, float] | None = None
) -> list[NetworkRow]:
    """Whole networks with their layers, at the usual speed of these measurements or of others."""
    wholes: list[tuple[Measurement, Row]] = []
    layers: dict[tuple[str, str], list[tuple[Row, int]]] = {}
    for each, row in _merged(measurements, usual_ms):
        if each.index < 0:
            wholes.append((each, row))
        else:
            layers.setdefault(each.place[:2], []).append((row, each.calls))
    return [
        NetworkRow(each.network, row.runtime_ms, row.power_w, tuple(layers[each.place[:2]]))
        for each, row in wholes
        if each.place[:2] in layers
    ]


def _merged(
    measurements: Iterable[Measurement], usual_ms: Mapping[str, float] | None = None
) -> list[tuple[Measurement, Row]]:
    """One row a place, in the order of the profile.

    A trial that was run again counts as it was the last time. Of several passes the least time
    counts, for whatever else the machine does only adds to it; where the processor's speed was
    probed, the median of the times at its usual speed. Of powers, the mean.
    """
    last: dict[tuple[str, _Place], Measurement] = {}
    known = list(measurements)
    for each in at_usual_speed(known, usual_probe_ms(known) if usual_ms is None else usual_ms):
        if each.network != SENTINEL and each.pass_ != CLOSING:
            last[each.trial, each.place] = each
    in_place: dict[_Place, list[Measurement]] = {}
    watts: dict[_Place, list[float]] = {}
    for each in last.values():
        if each.what == "network":
            in_place.setdefault(each.place, []).append(each)
        if each.row.power_w is not None and not each.row.flaw:
            watts.setdefault(each.place, []).append(each.row.power_w)
    return _without_timing([(group[0], _merge(group, watts)) for group in in_place.values()])


def _without_timing(merged: list[tuple[Measurement, Row]]) -> list[tuple[Measurement, Row]]:
    """Layers without what timing each of them adds to a call, so that they sum to their network.

    That much a call, the same for all of a device, leaves the least relative error of the sums
    (least absolute deviations: a weighted median). Short layers are left half of their time.
    """
    sums: dict[tuple[str, str], list[float]] = {}
    for each, row in merged:
        if each.index >= 0:
            known = sums.setdefault(each.place[:2], [0.0, 0.0])
            known[0] += row.runtime_ms * each.calls
            known[1] += each.calls
    apart: dict[str, list[tuple[float, float]]] = {}
    for each, row in merged:
        if each.index < 0 and not row.flaw and each.place[:2] in sums:
            total, calls = sums[each.place[:2]]
            found = ((total - row.runtime_ms) / calls, calls / row.runtime_ms)
            apart.setdefault(each.device_uuid, []).append(found)
    added = {uuid: _weighted_median(found) for uuid, found in apart.items()}
    return [
        (each, row)
        if each.index < 0 or each.device_uuid not in added
        else (each, replace(row, runtime_ms=_less(row.runtime_ms, added[each.device_uuid])))
        for each, row in merged
    ]


def _less(runtime_ms: float, added_ms: float) -> float:
    return max(runtime_ms - added_ms, runtime_ms / 2)


def _weighted_median(values: Iterable[tuple[float, float]]) -> float:
    """Of ``(value, weight)``: half of the weight lies on either side."""
    value, weight = np.array(sorted(values)).T
    reached = np.cumsum(weight)
    return float(value[np.searchsorted(reached, reached[-1] / 2)])


def usual_probe_ms(measurements: Iterable[Measurement]) -> dict[str, float]:
    """Median probe of each device's processor: its usual speed while it was measured."""
    probes: dict[str, list[float]] = {}
    for each in measurements:
        if each.probe_ms is not None:
            probes.setdefault(each.device_uuid, []).append(each.probe_ms)
    return {uuid: median(times) for uuid, times in probes.items()}


def at_usual_speed(
    measurements: Iterable[Measurement], usual_ms: Mapping[str, float]
) -> list[Measurement]:
    """Times as they would have been at a device's usual speed.

    What else runs on a shared processor takes execution units, caches and clock from a thread, and
    its time grows about as that of the probe around it does.

    Parameters
    ----------
    usual_ms
        The probe at that speed by device (:func:`usual_probe_ms`).
    """
    found = []
    for each in measurements:
        usual = usual_ms.get(each.device_uuid)
        if usual is not None and each.probe_ms is not None:
            runtime_ms = each.row.runtime_ms * usual / each.probe_ms
            each = replace(each, row=replace(each.row, runtime_ms=runtime_ms))  # noqa: PLW2901
        found.append(each)
    return found


def _merge(group: Sequence[Measurement], watts: Mapping[_Place, Sequence[float]]) -> Row:
    sound = [each.row for each in group if not each.row.flaw]
    if not sound:
        flaw, _ = Counter(each.row.flaw for each in group).most_common(1)[0]
        return replace(group[0].row, flaw=flaw)
    power = watts.get(group[0].place)
    return replace(
        sound[0],
        runtime_ms=(median if group[0].probe_ms is not None else min)(
            row.runtime_ms for row in sound
        ),
        power_w=fmean(power) if power else None,
    )


# -- What trials measure, and how far the same layers lay apart, measured twice.


@dataclass(frozen=True, slots=True)
class MeasuredRow:
    """One measured layer, or one measured whole network.

    Attributes
    ----------
    trial
        The :attr:`Trial.id` it came of.
    network
        Name of the network.
    layer
        The layer as the tracer lists it, its path included; None for a whole network.
    runtime_ms
        Device time of one call, ms: thread time on a CPU, between events on a GPU. The least of
        the repeats within the pass.
    index
        Place among the network's layers, from 0; for equal layers of one network, that of the
        first. -1 for the whole.
    calls
        Equal layers of the network that the row is the mean of; of the whole, its layers.
    pass_
        Of the trial.
    wall_ms
        The same by the wall clock; None where it was not taken.
    power_w
        Mean gross device power during repeated calls, W; None without a meter.
    probe_ms
        Time of the same small piece of work now and then during the trial, in the mean: how fast
        the processor was (``timers.SpeedProbe``); None where it was not taken.
    """

    trial: str
    network: str
    layer: Layer | None
    runtime_ms: float
    index: int = -1
    calls: int = 1
    pass_: int = 1
    wall_ms: float | None = None
    power_w: float | None = None
    probe_ms: float | None = None

    @property
    def whole(self) -> bool:
        return self.layer is None


#: ms; shorter layers are all timer and dispatch, and a per cent or so of any network's time.
SHORTEST_MS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Repeatability:
    """Differences between two measurements of the same layers and networks.

    Attributes
    ----------
    median_percent, p95_percent
        Of the absolute differences of layers of at least 0.1 ms; of all where there is none.
    networks_percent
        The same median of whole networks; None without any.
    rows
        Layers compared.
    """

    median_percent: float
    p95_percent: float
    networks_percent: float | None
    rows: int


def drift(before: Iterable[MeasuredRow], after: Iterable[MeasuredRow]) -> float:
    """Relative change of the sentinel's time, 0.02 where it became 2% slower.

    The sum over the layers that both have; 0.0 where they share none.
    """
    first, second = _by_place(before), _by_place(after)
    shared = [place for place in first if place in second and place[1] >= 0]
    if not shared:
        return 0.0
    earlier = sum(first[place].runtime_ms * first[place].calls for place in shared)
    later = sum(second[place].runtime_ms * second[place].calls for place in shared)
    return later / earlier - 1.0


def repeatability(
    before: Iterable[MeasuredRow], after: Iterable[MeasuredRow]
) -> Repeatability | None:
    """How well a second measurement agrees with the first; None where they share no layer."""
    first, second = _by_place(before), _by_place(after)
    apart = {
        place: (abs(second[place].runtime_ms / row.runtime_ms - 1.0), row.runtime_ms)
        for place, row in first.items()
        if place in second
    }
    layers = {place: each for place, each in apart.items() if place[1] >= 0}
    if not layers:
        return None
    long = [off for off, runtime in layers.values() if runtime >= SHORTEST_MS]
    found = np.array(long or [off for off, _ in layers.values()])
    wholes = [off for place, (off, _) in apart.items() if place[1] < 0]
    return Repeatability(
        100 * float(np.median(found)),
        100 * float(np.percentile(found, 95)),
        100 * float(np.median(wholes)) if wholes else None,
        len(found),
    )


def _by_place(rows: Iterable[MeasuredRow]) -> Mapping[tuple[str, int], MeasuredRow]:
    return {(row.network, row.index): row for row in rows}
