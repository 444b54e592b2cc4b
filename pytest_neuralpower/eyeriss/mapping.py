"""The row-stationary mapping of a layer: the one of least energy that the hardware can hold.

Chen, Emer, Sze (ISCA 2016, section VI) optimise the mapping of each layer for energy under the
sizes of the array, the register files and the buffer. The same is done here by search: every tile
of the buffer is tried in the order of its DRAM energy, against every filling of the array, until
no remaining tile can win. Accesses to each memory are counted with halos and strides exact.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from pytest_neuralpower.eyeriss.hardware import WORD_BITS, Bits, CostTable, EyerissError, Hardware

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.eyeriss.hardware import ConvShape


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
        return rows_read(strip, **self._axis(0))

    @cached_property
    def columns_read(self) -> int:
        return rows_read(self.strip_width, **self._axis(1))

    @cached_property
    def row_deliveries(self) -> int:
        return rows_delivered(**self._axis(0))

    def _axis(self, axis: int) -> dict[str, int]:
        """Sizes along y (0) or x (1), as :func:`rows_read` takes them."""
        shape = self.shape
        return {
            "outputs": (shape.out_height, shape.out_width)[axis],
            "length": (shape.height, shape.width)[axis],
            "kernel": shape.kernel[axis],
            "stride": shape.stride[axis],
            "dilation": shape.dilation[axis],
            "before": shape.padding[2 * axis],
        }


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


# -- The search for the mapping.

#: Sizes tried per dimension: all nearly equal splits up to this many, thinned beyond it.
_SIZES: Final = 16
#: Tiles priced at a time, against all fillings of the array.
_CHUNK: Final = 16
#: What idle PEs cost: a mapping may take up to this share more energy if it keeps all PEs busy
#: rather than none, since clocks and leakage, which the model leaves out, run for as long as the
#: layer does. Without it energies fall by under 1% and some layers run twice as long.
_IDLE: Final = 0.05


@dataclass(frozen=True, slots=True)
class Mapping:
    """How one layer runs (parameters of JSSC 2017, Table II, and the buffer's tile).

    Attributes
    ----------
    n, m, c, strip
        Images, filters, channels and output rows that the buffer holds at a time.
    order
        Loops over those tiles, outermost first.
    e, p, q, r, t
        A pass computes ``e`` output rows of ``p`` x ``t`` filters from ``q`` x ``r`` channels.
    accesses
        Words moved at each level, for the whole batch, nothing compressed.
    cycles
        Multiply cycles of the whole batch, without the time to fill the array.
    utilisation
        Share of the PEs busy in a cycle, on average.
    """

    n: int
    m: int
    c: int
    strip: int
    order: str
    e: int
    p: int
    q: int
    r: int
    t: int
    accesses: Accesses
    cycles: int
    utilisation: float


def movement_cost(accesses: Accesses, costs: CostTable, bits: Bits) -> tuple[float, float, float]:
    """Energy (MACs) of moving input map, weight and output map; linear in their bit widths."""
    found = []
    for name in ("input_map", "weight", "output_map"):
        counts = getattr(accesses, name)
        energy = (
            counts.dram * getattr(costs.dram, name)
            + counts.buffer * getattr(costs.buffer, name)
            + counts.array * getattr(costs.array, name)
            + counts.register_file * getattr(costs.register_file, name)
        )
        found.append(energy * (getattr(bits, name) / WORD_BITS))
    return found[0], found[1], found[2]


@lru_cache(maxsize=4096)
def best_mapping(
    shape: ConvShape, batch: int, bits: Bits, costs: CostTable, hardware: Hardware
) -> Mapping:
    """The mapping of least data movement energy for dense data; cached.

    Zeros do not enter: a mapping is configured before the data are known.

    Raises
    ------
    EyerissError
        Not even the smallest tile fits the buffer or the register file.
    """
    widest = max(bits.input_map, bits.weight, bits.output_map)
    geometry = Geometry(shape, batch, hardware, hardware.register_bytes * 8 // widest)
    passes = _fillings(geometry, bits)
    tiles, orders = _tiles(geometry, bits, costs)
    dram = _dram_energy(geometry, tiles, costs, bits)

    # The buffer could not do better than hold the whole layer: a bound for every tile.
    whole = TileSizes(
        batch, shape.out_height, geometry.filters, geometry.channels,
        geometry.rows_read(shape.out_height), 1, 1, 1,
    )  # fmt: skip
    unbounded = count_accesses(geometry, whole, passes)
    floor = sum(movement_cost(unbounded, costs, bits)) - _dram_energy(geometry, whole, costs, bits)
    least = float(np.min(floor))

    macs = shape.macs * batch
    best, choice = np.inf, (0, 0)
    by_bound = np.argsort(dram, kind="stable")
    for start in range(0, len(by_bound), _CHUNK):
        chosen = by_bound[start : start + _CHUNK]
        if dram[chosen[0]] + least >= best:
            break
        part = TileSizes(*(column[chosen, None] for column in tiles))
        energy = sum(movement_cost(count_accesses(geometry, part, passes), costs, bits))
        busy = macs / (count_cycles(geometry, part, passes) * hardware.pes)
        judged = energy * (1 + _IDLE * (1 - busy))
        index = np.unravel_index(int(np.argmin(judged)), judged.shape)
        if judged[index] < best:
            best, choice = float(judged[index]), (int(chosen[index[0]]), int(index[1]))
    return _mapping(geometry, tiles, orders, passes, choice)


def _mapping(
    geometry: Geometry,
    tiles: TileSizes,
    orders: NDArray[np.intp],
    passes: PassSizes,
    choice: tuple[int, int],
) -> Mapping:
    tile = TileSizes(*(int(column[choice[0]]) for column in tiles))
    one = PassSizes(*(int(column[choice[1]]) for column in passes))
    counted = count_accesses(geometry, tile, one)
    accesses = Accesses(*(type(counts)(*map(float, counts)) for counts in counted))
    cycles = count_cycles(geometry, tile, one)
    macs = geometry.shape.macs * geometry.batch
    return Mapping(
        n=tile.n, m=tile.m, c=tile.c, strip=tile.strip, order=ORDERS[int(orders[choice[0]])],
        e=one.e, p=one.p, q=one.q, r=one.r, t=one.t,
        accesses=accesses, cycles=cycles, utilisation=macs / (cycles * geometry.hardware.pes),
    )  # fmt: skip


def _fillings(geometry: Geometry, bits: Bits) -> PassSizes:
    """Every filling of the array that fits its PEs and their register files."""
    hardware, shape = geometry.hardware, geometry.shape
    width, filters, channels = geometry.kernel_width, geometry.filters, geometry.channels
    found: list[tuple[int, ...]] = []
    capacity = hardware.register_bytes * 8
    # A PE holds p x q rows of weights, q windows of inputs and p partial sums (JSSC 2017, IV-A).
    # A dilated filter slides over every d-th column, one phase after the other: no wider window.
    interleaved = [
        (p, q)
        for p in strip_sizes(filters, _SIZES, limit=capacity // bits.output_map)
        for q in strip_sizes(channels, _SIZES, limit=capacity // bits.weight)
        if p * q * width * bits.weight + q * width * bits.input_map + p * bits.output_map
        <= capacity
    ]
    if not interleaved:
        raise EyerissError(
            f"a register file of {hardware.register_bytes} bytes holds no weight, input and sum: "
            "enlarge Hardware.register_bytes"
        )
    for e in strip_sizes(shape.out_height, _SIZES, limit=hardware.pes // geometry.set_height):
        stacked, abreast = _parallel_sets(geometry.set_height, e, hardware)
        if stacked < 1:
            continue
        rows = geometry.rows_read(e)
        most = stacked if hardware.column_sums else stacked * abreast
        for p, q in interleaved:
            for r in strip_sizes(-(-channels // q), _SIZES, limit=most):
                # More sets on other filters cost nothing and save reads of the input map.
                sets = stacked // r * abreast if hardware.column_sums else stacked * abreast // r
                t = min(sets, -(-filters // p))
                found.append((e, p, q, r, t, rows))
    return PassSizes(*np.array(found, dtype=float).T)


def _parallel_sets(height: int, e: int, hardware: Hardware) -> tuple[int, int]:
    """PE sets of ``height`` x ``e`` that fit one above the other, and side by side.

    A set wider than the array is cut into segments placed one above the other (JSSC 2017,
    section IV-A).
    """
    stacked = hardware.rows // height
    if e <= hardware.columns:
        return stacked, hardware.columns // e
    return stacked // -(-e // hardware.columns), 1


def _tiles(geometry: Geometry, bits: Bits, costs: CostTable) -> tuple[TileSizes, NDArray[np.intp]]:
    """Every tile that fits the buffer, each with the order of loops of least DRAM energy."""
    shape, hardware = geometry.shape, geometry.hardware
    strips = strip_sizes(shape.out_height, _SIZES)
    rows = {strip: geometry.rows_read(strip) for strip in strips}
    reach = shape.dilation[0] * (shape.kernel[0] - 1) + 1
    held = {strip: min(shape.height, (strip - 1) * shape.stride[0] + reach) for strip in strips}
    grid = np.meshgrid(
        strip_sizes(geometry.batch, _SIZES),
        strips,
        strip_sizes(geometry.filters, _SIZES),
        strip_sizes(geometry.channels, _SIZES),
        indexing="ij",
    )
    n, strip, m, c = (axis.ravel().astype(float) for axis in grid)
    place = np.searchsorted(strips, strip)  # ascending
    tile_rows = np.array([rows[each] for each in strips], dtype=float)[place]
    held_rows = np.array([held[each] for each in strips], dtype=float)[place]
    held_columns = min(
        shape.width,
        (geometry.strip_width - 1) * shape.stride[1]
        + shape.dilation[1] * (shape.kernel[1] - 1)
        + 1,
    )

    maps = n * c * held_rows * held_columns * bits.input_map
    maps = maps + n * m * strip * geometry.strip_width * bits.output_map
    weights = m * c * (shape.kernel[0] * shape.kernel[1] * bits.weight)
    streaming = hardware.stream_bytes * 8
    trips_n = -(-geometry.batch // n) * -(-shape.out_height // strip) * geometry.column_strips
    trips_m, trips_c = -(-geometry.filters // m), -(-geometry.channels // c)

    best = np.full(n.shape, np.inf)
    best_order = np.zeros(n.shape, dtype=np.intp)
    best_reloads = np.ones((3, *n.shape))
    for index, order in enumerate(ORDERS):
        factors = reloads(order, trips_n, trips_m, trips_c)
        # Weights read again for every tile of the maps stream through; reused ones must stay.
        stays = np.where(factors[1] < trips_n, weights, 0.0)
        fits = maps + np.maximum(stays, streaming) <= hardware.buffer_bytes * 8
        candidate = TileSizes(n, strip, m, c, tile_rows, *factors)
        energy = np.where(fits, _dram_energy(geometry, candidate, costs, bits), np.inf)
        better = energy < best
        best, best_order = np.where(better, energy, best), np.where(better, index, best_order)
        best_reloads = np.where(better, np.array(factors), best_reloads)
    possible = np.isfinite(best)
    if not possible.any():
        raise EyerissError(
            f"no tile of {shape} fits a buffer of {hardware.buffer_bytes} bytes: "
            "enlarge Hardware.buffer_bytes"
        )
    tiles = TileSizes(n, strip, m, c, tile_rows, *best_reloads)
    return TileSizes(*(column[possible] for column in tiles)), best_order[possible]


def _dram_energy(
    geometry: Geometry, tile: TileSizes, costs: CostTable, bits: Bits
) -> NDArray[np.float64]:
    shape, batch = geometry.shape, geometry.batch
    column = shape.channels * batch * geometry.columns_read
    energy = (
        column * tile.rows * tile.reload_input * (costs.dram.input_map * bits.input_map)
        + shape.weights * tile.reload_weight * (costs.dram.weight * bits.weight)
        + shape.outputs
        * batch
        * (2 * tile.reload_output - 1)
        * (costs.dram.output_map * bits.output_map)
    )
    return np.asarray(energy / WORD_BITS)
