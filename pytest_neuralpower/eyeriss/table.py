"""The 25-column text of MIT's energy estimation tool (energyestimation.mit.edu), read and written.

One layer a line, comma or blank separated:

    index,
    input map:  height, width, channels, maps, zeros, bits,
    filter:     height, width, channels, maps, zeros, bits,
    output map: height, width, channels, maps, zeros, bits,
    stride: y, x,  padding: top, bottom, left, right

``maps`` is the batch for both maps and the number of filters for the filter; a filter with fewer
channels than its input map makes a grouped convolution. Blank lines and ``#`` comments are skipped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_neuralpower.eyeriss.energy import DENSE, NO_ZEROS, LayerEnergy, layer_energy, works
from pytest_neuralpower.eyeriss.hardware import (
    EYERISS,
    EYERISS_65NM,
    Bits,
    ConvShape,
    CostTable,
    EyerissError,
    Hardware,
    Zeros,
)
from pytest_neuralpower.files import read_text, write_atomically

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Layer

_BLOCK: Final = ("height", "width", "channels", "maps", "zeros", "bits")
#: Names of the 25 columns, in order.
COLUMNS: Final = (
    "index",
    *(f"{block} {name}" for block in ("input map", "filter", "output map") for name in _BLOCK),
    "stride y",
    "stride x",
    "padding top",
    "padding bottom",
    "padding left",
    "padding right",
)


@dataclass(frozen=True, slots=True)
class TableRow:
    """One line: a layer's number, shape, batch, bit widths and zero counts.

    ``path`` is the module of a traced layer; the file has no column for it.
    """

    index: int
    shape: ConvShape
    batch: int = 1
    bits: Bits = DENSE
    zeros: Zeros = NO_ZEROS
    path: str = field(default="", compare=False)


def read_table(path: Path | str) -> tuple[TableRow, ...]:
    """Rows of a file; raises :class:`EyerissError` naming the file and the line."""
    file = Path(path)
    return parse_table(read_text(file, file=str(file), error=EyerissError), name=str(file))


def parse_table(text: str, *, name: str = "table") -> tuple[TableRow, ...]:
    """Rows of a text.

    Raises
    ------
    EyerissError
        A line has not 25 whole numbers, contradicts itself, or there is no line; the message is
        ``name:line: what is wrong``.
    """
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.partition("#")[0].replace(",", " ").split()
        if not fields:
            continue
        try:
            rows.append(_row(fields))
        except EyerissError as error:
            raise EyerissError(f"{name}:{number}: {error}") from None
    if not rows:
        raise EyerissError(f"{name}:1: no layer: give one line of {len(COLUMNS)} columns a layer")
    return tuple(rows)


def _row(fields: list[str]) -> TableRow:
    if len(fields) != len(COLUMNS):
        raise EyerissError(f"{len(fields)} columns instead of {len(COLUMNS)}")
    values = []
    for column, text in zip(COLUMNS, fields, strict=True):
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not (value >= 0 and value.is_integer()):
            raise EyerissError(f"{column} is {text!r}: give a whole number from 0")
        values.append(int(value))
    index, rest = values[0], values[1:]
    source, kernel, output, tail = rest[:6], rest[6:12], rest[12:18], rest[18:]
    if not kernel[2] or source[2] % kernel[2]:
        raise EyerissError(
            f"filter channels is {kernel[2]}: it must divide input map channels = {source[2]}"
        )
    shape = ConvShape(
        height=source[0],
        width=source[1],
        channels=source[2],
        filters=kernel[3],
        kernel=(kernel[0], kernel[1]),
        stride=(tail[0], tail[1]),
        padding=(tail[2], tail[3], tail[4], tail[5]),
        groups=source[2] // kernel[2],
    )
    batch = source[3]
    given = tuple(output[:4])
    follows = (shape.out_height, shape.out_width, shape.filters, batch)
    if given != follows:
        raise EyerissError(
            f"output map (height, width, channels, maps) is {given}: the shapes give {follows}"
        )
    row = TableRow(
        index,
        shape,
        batch,
        Bits(source[5], kernel[5], output[5]),
        Zeros(source[4], kernel[4], output[4]),
    )
    _check_counts(row)
    return row


def _check_counts(row: TableRow) -> None:
    limits = (
        ("input map", row.bits.input_map, row.zeros.input_map, row.shape.inputs * row.batch),
        ("filter", row.bits.weight, row.zeros.weight, row.shape.weights),
        ("output map", row.bits.output_map, row.zeros.output_map, row.shape.outputs * row.batch),
    )
    if row.batch < 1:
        raise EyerissError("input map maps is 0: give the batch, at least 1")
    for name, bits, zeros, values in limits:
        if bits < 1:
            raise EyerissError(f"{name} bits is {bits}: it must be at least 1")
        if zeros > values:
            raise EyerissError(f"{name} zeros is {zeros}: the layer has only {values} values")


def format_table(rows: Iterable[TableRow]) -> str:
    """The text of rows, a line each; raises :class:`EyerissError` for a dilated convolution."""
    lines = []
    for row in rows:
        shape = row.shape
        if shape.dilation != (1, 1):
            raise EyerissError(f"layer {row.index}: the format has no column for dilation")
        values = (
            row.index,
            shape.height, shape.width, shape.channels, row.batch,
            row.zeros.input_map, row.bits.input_map,
            *shape.kernel, shape.channels // shape.groups, shape.filters,
            row.zeros.weight, row.bits.weight,
            shape.out_height, shape.out_width, shape.filters, row.batch,
            row.zeros.output_map, row.bits.output_map,
            *shape.stride, *shape.padding,
        )  # fmt: skip
        lines.append(",".join(map(str, values)) + "\n")
    return "".join(lines)


def write_table(path: Path | str, rows: Iterable[TableRow]) -> None:
    """Write rows to a file, all of them or nothing; raises :class:`EyerissError`."""
    try:
        write_atomically(Path(path), format_table(rows))
    except OSError as error:
        raise EyerissError(f"cannot write {path}: {error.strerror}") from None


def rows_from_layers(layers: Iterable[Layer], *, bits: Bits = DENSE) -> tuple[TableRow, ...]:
    """Rows of the layers that multiply and accumulate, numbered from 1; others have no row."""
    found = [(work, layer.path) for layer in layers for work in works(layer)]
    return tuple(
        TableRow(index, work.shape, work.batch, bits, Zeros(work.input_zeros), path)
        for index, (work, path) in enumerate(found, start=1)
    )


def table_energy(
    rows: Iterable[TableRow], *, costs: CostTable = EYERISS_65NM, hardware: Hardware = EYERISS
) -> tuple[LayerEnergy, ...]:
    """Energy of every row, for its whole batch."""
    return tuple(
        layer_energy(
            row.shape, batch=row.batch, bits=row.bits, zeros=row.zeros, costs=costs,
            hardware=hardware,
        )
        for row in rows
    )  # fmt: skip
