"""characterizing-pytorch-power: layers on CPUs, energy by RAPL, one pass of 10 batches a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pytest_neuralpower.calibrate.readers.table import Options, Record, read_table
from pytest_neuralpower.calibrate.rows import Row, conv_layer, linear_layer, pool_layer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_neuralpower.layers import Layer


def rapl_layers(path: Path, options: Options) -> list[Row]:
    """Forward time (microseconds) and package energy (microjoules) of one batch.

    Option ``kind`` is ``conv``, ``linear`` or ``pool``. A counter that wrapped while it was read
    gives a negative energy, one that did not advance gives zero, and one that was read too
    early gives less than the package draws at rest (``least_w``) or more than it can
    (``limit_w``): such rows are flawed.
    """
    make = _LAYERS[options["kind"]]
    rows = []
    for line, record in read_table(path):
        energy, time = float(record["for_energy"]), float(record["for_time"])
        power = energy / time
        rows.append(Row(make(record), time / 1e3, power, line=line, flaw=_flaw(power, options)))
    return rows


def _flaw(power_w: float, options: Options) -> str:
    if power_w < 0:
        return "the energy counter wrapped: negative energy"
    if power_w == 0:
        return "the energy counter did not advance: zero energy"
    if power_w < float(options["least_w"]):
        return f"under {options['least_w']:g} W, less than the package draws at rest"
    if power_w > float(options["limit_w"]):
        return f"over {options['limit_w']:g} W, more than the package may draw"
    return ""


def _conv(record: Record) -> Layer:
    size, kernel, step = (int(record[name]) for name in ("side_len", "k_size", "stride"))
    return conv_layer(
        (int(record["batch_size"]), int(record["in_chan"]), size, size),
        cout=int(record["out_chan"]),
        kernel=(kernel, kernel),
        stride=(step, step),
        padding=(0, 0),
        bias=True,
    )


def _linear(record: Record) -> Layer:
    rows, depth, width = (int(record[name]) for name in ("batch_size", "in_size", "out_size"))
    return linear_layer(rows, depth, width, bias=True)


def _pool(record: Record) -> Layer:
    batch, channels, size = (
        int(record[name]) for name in ("batch_size", "in_chan", "im_side_length")
    )
    kernel, step = int(record["k_side_length"]), int(record["stride"])
    result = (size - kernel) // step + 1
    return pool_layer(
        (batch, channels, size, size),
        (batch, channels, result, result),
        op="max_pool2d",
        kernel=(kernel, kernel),
        stride=(step, step),
        padding=(0, 0),
    )


_LAYERS: Final[dict[str, Callable[[Record], Layer]]] = {
    "conv": _conv,
    "linear": _linear,
    "pool": _pool,
}
