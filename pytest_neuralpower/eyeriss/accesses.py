"""Accesses to each memory under a row-stationary mapping, with halos and strides exact."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from pytest_neuralpower.eyeriss.hardware import ConvShape, Hardware


def rows_read(
    size: int, *, outputs: int, length: int, kernel: int, stride: int, dilation: int, before: int
) -> int:
    """Input rows read when ``outputs`` output rows are computed in strips of ``size`` rows.

    Rows that two strips need are read twice; padding and rows that no filter touches (stride above
    kernel) are not read. Works for columns as well.
    """
    taps = np.arange(kernel) * dilation - before
    total = 0
    for start in range(0, outputs, size):
        first = np.arange(start, min(start + size, outputs)) * stride
        touched = np.zeros(length, dtype=bool)
        rows = (first[:, None] + taps).ravel()
        touched[rows[(rows >= 0) & (rows < length)]] = True
        total += int(touched.sum())
    return total


def rows_delivered(
    *, outputs: int, length: int, kernel: int, stride: int, dilation: int, before: int
) -> int:
    """Pairs of an output row and an input row it needs: deliveries to the PEs of a set."""
    rows = np.arange(outputs)[:, None] * stride + np.arange(kernel) * dilation - before
    return int(((rows >= 0) & (rows < length)).sum())


@lru_cache(maxsize=4096)  # one layer's search asks for the same few a hundred times
def strip_sizes(length: int, most: int, *, limit: int | None = None) -> tuple[int, ...]:
    """Sizes that split ``length`` into 1, 2, 3, ... nearly equal parts, none above ``limit``.

    At most about ``most`` of them, thinned evenly on a logarithmic scale; both ends are kept.
    """
    limit = length if limit is None else max(1, min(limit, length))
    parts = np.arange(-(-length // limit), length + 1)
    sizes = np.unique(-(-length // parts))
    if len(sizes) > most:
        wanted = np.geomspace(sizes[0], sizes[-1], most)
        sizes = np.unique(sizes[np.abs(sizes[:, None] - wanted).argmin(axis=0)])
    return tuple(sizes.tolist())


# -- Accesses by data type and memory.
#
# The counts follow the energy analysis of Chen, Emer, Sze (ISCA 2016, section VI). Every value's
# reuse is split over four levels, ``a`` x ``b`` x ``c`` x ``d``:
#
# * a weight or an input value is read ``a`` times from DRAM, ``ab`` times from the global buffer,
#   delivered ``abc`` times over the array and read ``abcd`` times from a register file;
# * an output value is accumulated over ``abcd`` products: ``2a - 1`` DRAM accesses, ``2a(b - 1)``
#   buffer accesses, ``ab(c - 1)`` hops between PEs, ``2abc(d - 1)`` register file accesses.
#
# Every function takes numbers or numpy arrays that broadcast, so that the search and the chosen
# mapping are priced by the same lines.

#: A number, or an array of one number per candidate. numpy's own operators keep the two alike.
Number = Any

#: Orders of the loops over the tiles of a layer, outermost first: ``n`` over images and strips of
#: output rows, ``m`` over filters, ``c`` over channels.
ORDERS: Final = tuple("".join(order) for order in itertools.permutations("nmc"))


class LevelCounts(NamedTuple):
    """Accesses (words) of one data type at each level."""

    dram: Number
    buffer: Number
    array: Number
    register_file: Number


class Accesses(NamedTuple):
    """Accesses (words) of the three data types, for the whole batch, nothing compressed."""

    input_map: LevelCounts
    weight: LevelCounts
    output_map: LevelCounts


@dataclass(frozen=True)
class Geometry:
    """One layer of one batch as loops over the array: sizes of one group, and exact row counts.

    A filter taller than the array, or wider than a register file can hold, is cut into
    ``row_folds`` x ``column_folds`` pieces whose partial sums are added through the buffer. An
    output row too wide for the buffer is cut into strips of ``strip_width`` columns.
    """

    shape: ConvShape
    batch: int
    hardware: Hardware
    register_words: int

    @property
    def channels(self) -> int:
        return self.shape.channels // self.shape.groups

    @property
    def filters(self) -> int:
        return self.shape.filters // self.shape.groups

    @property
    def row_folds(self) -> int:
        return -(-self.shape.kernel[0] // self.hardware.rows)

    @property
    def set_height(self) -> int:
        """Rows of the filter in one PE set: the set's height."""
        return -(-self.shape.kernel[0] // self.row_folds)

    @property
    def column_folds(self) -> int:
        # p = q = 1 needs S weights, S inputs and one partial sum.
        return -(-self.shape.kernel[1] // max(1, (self.register_words - 1) // 2))

    @property
    def kernel_width(self) -> int:
        """Columns of the filter in one PE."""
        return -(-self.shape.kernel[1] // self.column_folds)

    @property
    def folds(self) -> int:
        return self.row_folds * self.column_folds

    @cached_property
    def strip_width(self) -> int:
        """Output columns processed at a time: all, unless single rows overflow the buffer."""
        shape = self.shape
        rows = shape.dilation[0] * (shape.kernel[0] - 1) + 1
        words = self.hardware.buffer_bytes // 8  # a quarter of it, in 16-bit words
        width = max(1, (words - rows * shape.kernel[1]) // (rows * shape.stride[1] + 1))
        pieces = -(-shape.out_width // min(width, shape.out_width))
        return -(-shape.out_width // pieces)

    @property
    def column_strips(self) -> int:
        return -(-self.shape.out_width // self.strip_width)

    def rows_read(self, strip: int) -> int:
        """Input rows read for all output rows in strips of ``strip`` rows, halos included."""
        shape = self.shape
        return rows_read(
            strip, outputs=shape.out_height, length=shape.height, kernel=shape.kernel[0],
            stride=shape.stride[0], dilation=shape.dilation[0], before=shape.padding[0],
        )  # fmt: skip

    @cached_property
    def columns_read(self) -> int:
        shape = self.shape
        return rows_read(
            self.strip_width, outputs=shape.out_width, length=shape.width,
            kernel=shape.kernel[1], stride=shape.stride[1], dilation=shape.dilation[1],
            before=shape.padding[2],
        )  # fmt: skip

    @cached_property
    def row_deliveries(self) -> int:
        shape = self.shape
        return rows_delivered(
            outputs=shape.out_height, length=shape.height, kernel=shape.kernel[0],
            stride=shape.stride[0], dilation=shape.dilation[0], before=shape.padding[0],
        )  # fmt: skip


def reloads(
    order: str, trips_n: Number, trips_m: Number, trips_c: Number
) -> tuple[Number, Number, Number]:
    """DRAM reuse ``a`` of input, weight and output: how often each tile comes and goes.

    Each data type is independent of exactly one loop (the input map of ``m``, the weights of
    ``n``, the outputs of ``c``). Its tiles move again in every trip of that loop, unless no loop
    inside it replaces them.
    """
    trips = {"n": trips_n, "m": trips_m, "c": trips_c}

    def reload(independent: str) -> Number:
        replaced = np.zeros(np.shape(trips_n), dtype=bool)
        for inner in order[order.index(independent) + 1 :]:
            replaced |= np.asarray(trips[inner]) > 1
        return np.where(replaced, trips[independent], 1)

    return reload("m"), reload("n"), reload("c")


class PassSizes(NamedTuple):
    """How one processing pass fills the array (names of JSSC 2017, Table II).

    ``p`` filters and ``q`` channels are interleaved in a PE; ``t`` PE sets work on other filters
    and ``r`` on other channels; a set computes ``e`` output rows. ``rows`` is the layer's total
    of input rows read in strips of ``e``.
    """

    e: Number
    p: Number
    q: Number
    r: Number
    t: Number
    rows: Number


class TileSizes(NamedTuple):
    """What the global buffer holds: ``n`` images, ``strip`` output rows, ``m`` filters, ``c``
    channels; ``rows`` is the layer's total of input rows read in strips of ``strip``; ``reload_*``
    are the DRAM reuse factors of :func:`reloads`.
    """

    n: Number
    strip: Number
    m: Number
    c: Number
    rows: Number
    reload_input: Number
    reload_weight: Number
    reload_output: Number


def count_accesses(geometry: Geometry, tile: TileSizes, passes: PassSizes) -> Accesses:
    """Accesses of one batch under a tile of the buffer and a processing pass of the array."""
    shape, batch = geometry.shape, geometry.batch
    outputs, macs = shape.outputs * batch, shape.macs * batch
    column = shape.channels * batch * geometry.columns_read  # words of one row of every channel

    visits = (
        -(-batch // tile.n) * -(-shape.out_height // tile.strip) * geometry.column_strips
    )  # of each pair of filter and channel tiles
    tiles_m = -(-geometry.filters // tile.m)
    passes_m = tiles_m * -(-tile.m // (passes.p * passes.t))
    passes_c = -(-geometry.channels // tile.c) * -(-tile.c // (passes.q * passes.r))
    partial = passes_c * geometry.folds  # ab: parts of a sum that meet in the buffer

    # Within a tile, images and strips are the innermost loop: the weights of a pass stay in the
    # register files. They even stay from tile to tile where one pass covers all of a tile's
    # filters and channels.
    one_pass = (tile.m <= passes.p * passes.t) & (tile.c <= passes.q * passes.r)
    one_pass = one_pass & (geometry.folds == 1)
    weight_reads = shape.weights * np.where(one_pass, tile.reload_weight, visits)

    input_map = LevelCounts(
        dram=column * tile.rows * tile.reload_input,
        buffer=column * np.maximum(passes.rows, tile.rows) * passes_m,
        array=column * geometry.row_deliveries * (tiles_m * -(-tile.m // passes.p)),
        register_file=macs,
    )
    weight = LevelCounts(
        dram=shape.weights * tile.reload_weight,
        buffer=weight_reads,
        array=weight_reads * np.minimum(passes.e, tile.strip),
        register_file=macs,
    )
    chain = geometry.set_height * passes.r  # PEs that pass a sum on
    output_map = LevelCounts(
        dram=outputs * (2 * tile.reload_output - 1),
        buffer=2 * outputs * np.maximum(partial - tile.reload_output, 0),
        array=outputs * partial * (chain - 1),
        register_file=2 * np.maximum(macs - outputs * partial * chain, 0),
    )
    return Accesses(input_map, weight, output_map)


def count_cycles(geometry: Geometry, tile: TileSizes, passes: PassSizes) -> Number:
    """Multiply cycles of the whole batch: the passes, times the products of one PE in a pass."""
    shape = geometry.shape
    count = (
        shape.groups
        * geometry.batch
        * (-(-shape.out_height // tile.strip) * -(-tile.strip // passes.e))
        * (-(-geometry.filters // tile.m) * -(-tile.m // (passes.p * passes.t)))
        * (-(-geometry.channels // tile.c) * -(-tile.c // (passes.q * passes.r)))
        * geometry.folds
    )
    return count * passes.p * passes.q * geometry.kernel_width * shape.out_width
