"""Physical terms: what a layer makes the device do, each in a unit that a person can read.

A term's coefficient is then a rate: ms per GFLOP, ms per MB, ms per launch. Tile terms follow
the way GPU libraries cut a matrix product into tiles of rows x columns, hand them to the
multiprocessors in waves, and pay for the part of a tile or wave that holds nothing.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from pytest_neuralpower.estimators.features import op_code

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.estimators.features import Columns, FloatArray

_GIGA: Final = 1e-9
_MEGA: Final = 1e-6
#: Longest piece of a reduction that a library splits no further.
_PIECE: Final = 4096
#: Cost of one padded operation in a tile so many columns wide: a narrower tile reuses what it has
#: loaded less. Chosen by grouped cross-validation on the convolutions of titanx-tf, in steps of
#: 0.05 (error 11.6% in sum over both sources, 12 to 14% elsewhere on the grid).
_TILE_COST: Final = {128: 1.0, 64: 1.15, 32: 1.35}
#: Cost of an operation of other convolutions beside one of minimal filtering, which computes less
#: but not as fast. Where both were measured (v100, p100, t4) rates fitted to 3x3 convolutions of
#: stride 1 alone err least on the others with it: by 54, 22 and 30%; with 1 by 105, 47 and 64%.
_PLAIN_COST: Final = 0.5
_TILE: Final = re.compile(r"(\w+)\[(\d+)x(\d+)\]")
_SIZE: Final = re.compile(r"(\w+)\[(\d+)\]")


def _tiles(columns: Columns, rows: int, cols: int) -> FloatArray:
    across = np.ceil(columns["m"] / rows) * np.ceil(columns["n"] / cols)
    return np.asarray(across * columns["groups"])


_PLAIN: Final[dict[str, Callable[[Columns], FloatArray]]] = {
    # One kernel launch, ms.
    "launch": lambda columns: np.ones_like(columns["flops"]),
    # GFLOP and MB.
    "flops": lambda columns: columns["flops"] * _GIGA,
    "pointwise_flops": lambda columns: np.where(
        columns["kernel_area"] == 1, columns["flops"] * _GIGA, 0.0
    ),
    "bytes_in": lambda columns: columns["bytes_in"] * _MEGA,
    "bytes_out": lambda columns: columns["bytes_out"] * _MEGA,
    "bytes_weight": lambda columns: columns["bytes_weight"] * _MEGA,
    "bytes_moved": lambda columns: columns["bytes_moved"] * _MEGA,
    # MB written to memory of its own, not over an input.
    "bytes_new": lambda columns: np.where(
        columns["inplace"] > 0, 0.0, columns["bytes_out"] * _MEGA
    ),
    # Inputs and outputs, without parameters, MB.
    "bytes_io": lambda columns: (columns["bytes_in"] + columns["bytes_out"]) * _MEGA,
    "bytes_workspace": lambda columns: columns["bytes_workspace"] * _MEGA,
    # What was done per unit of time, for power: TFLOP/s and GB/s. Need the column runtime_ms.
    "flop_rate": lambda columns: columns["flops"] / columns["runtime_ms"] * _GIGA,
    "io_rate": lambda columns: (
        (columns["bytes_in"] + columns["bytes_out"]) / columns["runtime_ms"] * _MEGA
    ),
    "weight_rate": lambda columns: columns["bytes_weight"] / columns["runtime_ms"] * _MEGA,
    # Products that a library is called for: of a convolution one a sample and group.
    "samples": lambda columns: columns.get("batch", 1.0) * columns["groups"],
    # Elements of the left operand, of the right one and of the result of all products, millions.
    "left": lambda columns: columns["m"] * columns["k"] * columns["groups"] * _MEGA,
    "right": lambda columns: columns["n"] * columns["k"] * columns["groups"] * _MEGA,
    "products": lambda columns: columns["m"] * columns["n"] * columns["groups"] * _MEGA,
    # Rows that a norm or softmax treats alike, millions: one block or warp each.
    "rows": lambda columns: columns["rows"] * _MEGA,
    # MB that raising to a constant power writes: it computes more per element than it moves.
    "pow_bytes": lambda columns: np.where(columns["pow"] > 0, columns["bytes_out"] * _MEGA, 0.0),
    # GFLOP of an attention without the scores that its causal mask skips.
    "scored_flops": lambda columns: columns["scored_flops"] * _GIGA,
    # Scores of an attention, millions: each is exponentiated.
    "scores": lambda columns: columns["scored_flops"] / np.maximum(4 * columns["width"], 1) * _MEGA,
    # Steps of one multiprocessor through the reduction: nothing hides them in a small product.
    "depth": lambda columns: columns["k"] * 1e-3,
    # A bias added by a kernel of its own reads and writes the output once more, MB.
    "bias_pass": lambda columns: 2 * (columns["bias"] > 0) * columns["bytes_out"] * _MEGA,
    # Channels-last tensors turned for a channels-first library and back, MB: input, weight and
    # output are read and written once more; a 1x1 convolution of stride 1 needs no turning.
    "layout_pass": lambda columns: np.where(
        columns["kernel_area"] * columns["stride"] > 1, 2 * columns["bytes_moved"] * _MEGA, 0.0
    ),
}


def evaluate(name: str, columns: Columns, multiprocessors: int) -> FloatArray:
    """Values of one term, shape ``(rows,)``.

    Parameters
    ----------
    name
        A plain term (``launch``, ``flops``, ``bytes_out``, ...), or a term with its size:

        - ``bytes_over[6]``: MB of inputs, outputs and weights beyond a cache of 6 MB;
        - ``io_over[6]``, ``weight_over[6]``: the same of inputs and outputs, of weights;
        - ``fresh_out[33]``, ``fresh_workspace[33]``: MB of outputs, of workspace, where they are
          33 MB or larger: an allocator gets these from the system anew each time, page by page;
        - ``unaligned_in[16]``, ``unaligned_out[16]``, ``unaligned_weight[16]``: MB of a
          convolution's input, output, weights where its channels are no multiple of 16: libraries
          that keep blocks of channels side by side pad them on the way;
        - ``unaligned_flops[8]``: GFLOP where the depth or the columns of the product are no
          multiple of 8, so that no vector unit or matrix unit of that width can be used fully;

        or a tile term with its tile:

        - ``tile_flops[128x64]``: GFLOP with rows and columns padded to the tile;
        - ``wave_flops[128x64]``: the same with the last wave of tiles filled up;
        - ``split_wave_flops[128x64]``: the same with a long reduction cut into pieces that run side
          by side, as matrix-product libraries do;
        - ``chosen_wave_flops[128x32]``: ``wave_flops`` of the cheapest of tiles 128, 64 and 32
          columns wide, narrower ones dearer per operation;
        - ``wave_depth[128x64]``: waves x reduction length, thousands;
        - ``tiles[128x64]``: thousands of tiles;
        - ``reread[128x64]``: MB of both operands as the tiles read them;
        - ``winograd_flops[2x32]``: GFLOP of a 3x3 convolution of stride 1 as Winograd's minimal
          filtering computes it in output tiles of 2 x 2, channels padded to 32; of others, plain
          GFLOP;
        - ``filtered_flops[4x32]``: the same, but of others half their GFLOP, which run that much
          faster: to price them where only the former were measured;
        - ``padded_flops[8x16]``: GFLOP of a convolution with input channels padded to 8 and output
          channels to 16, as libraries that keep blocks of channels side by side compute it;
        - ``wide_bytes[1x1024]``: MB read of rows wider than 1024, which a block of threads reads
          again for each of its passes;
        - ``attention_flops[128x128]``: GFLOP of an attention with queries and keys padded to the
          tile, scores above a causal mask's diagonal skipped by whole tiles, and the last wave
          of query tiles filled up.
    multiprocessors
        Tiles that run at once.

    Raises
    ------
    ValueError
        There is no such term.
    """
    plain = _PLAIN.get(name)
    if plain is not None:
        return plain(columns)
    sized = _SIZE.fullmatch(name)
    if sized is not None and sized[1] in _SIZED:
        return _SIZED[sized[1]](columns, int(sized[2]))
    match = _TILE.fullmatch(name)
    if match is None or match[1] not in _TILED:
        raise ValueError(f"unknown term {name!r}; there are {', '.join(term_names())}")
    return _TILED[match[1]](columns, int(match[2]), int(match[3]), multiprocessors)


def term_names() -> tuple[str, ...]:
    """Every term's name, without the sizes that some take."""
    return (*_PLAIN, *_SIZED, *_TILED)


def is_term(name: str) -> bool:
    """Whether :func:`evaluate` knows the term."""
    sized, tiled = _SIZE.fullmatch(name), _TILE.fullmatch(name)
    return (
        name in _PLAIN
        or (sized is not None and sized[1] in _SIZED)
        or (tiled is not None and tiled[1] in _TILED)
    )


def _bytes_over(columns: Columns, megabytes: int) -> FloatArray:
    return np.maximum(columns["bytes_moved"] * _MEGA - megabytes, 0.0)


def _unaligned_flops(columns: Columns, width: int) -> FloatArray:
    aligned = (columns["k"] % width == 0) & (columns["n"] % width == 0)
    return np.where(aligned, 0.0, columns["flops"] * _GIGA)


def _beyond(*names: str) -> Callable[[Columns, int], FloatArray]:
    def term(columns: Columns, megabytes: int) -> FloatArray:
        total = sum(columns[name] for name in names)
        return np.asarray(np.maximum(total * _MEGA - megabytes, 0.0))

    return term


def _fresh(name: str) -> Callable[[Columns, int], FloatArray]:
    def term(columns: Columns, megabytes: int) -> FloatArray:
        found = columns[name] * _MEGA
        return np.where(found >= megabytes, found, 0.0)

    return term


def _unaligned(name: str, *channels: str) -> Callable[[Columns, int], FloatArray]:
    def term(columns: Columns, width: int) -> FloatArray:
        aligned = np.logical_and.reduce([columns[each] % width == 0 for each in channels])
        return np.where(aligned, 0.0, columns[name] * _MEGA)

    return term


_SIZED: Final[dict[str, Callable[[Columns, int], FloatArray]]] = {
    "bytes_over": _bytes_over,
    "io_over": _beyond("bytes_in", "bytes_out"),
    "weight_over": _beyond("bytes_weight"),
    "fresh_out": _fresh("bytes_out"),
    "fresh_workspace": _fresh("bytes_workspace"),
    "unaligned_in": _unaligned("bytes_in", "cin"),
    "unaligned_out": _unaligned("bytes_out", "cout"),
    "unaligned_weight": _unaligned("bytes_weight", "cin", "cout"),
    "unaligned_flops": _unaligned_flops,
}


def _tile_flops(columns: Columns, rows: int, cols: int, _: int) -> FloatArray:
    return np.asarray(2 * _tiles(columns, rows, cols) * rows * cols * columns["k"] * _GIGA)


def _waves(columns: Columns, rows: int, cols: int, multiprocessors: int) -> FloatArray:
    return np.asarray(np.ceil(_tiles(columns, rows, cols) / multiprocessors))


def _wave_flops(columns: Columns, rows: int, cols: int, multiprocessors: int) -> FloatArray:
    filled = _waves(columns, rows, cols, multiprocessors) * multiprocessors
    return np.asarray(2 * filled * rows * cols * columns["k"] * _GIGA)


def _split_wave_flops(columns: Columns, rows: int, cols: int, multiprocessors: int) -> FloatArray:
    pieces = np.maximum(np.ceil(columns["k"] / _PIECE), 1.0)
    waves = np.ceil(_tiles(columns, rows, cols) * pieces / multiprocessors)
    each = rows * cols * columns["k"] / pieces
    return np.asarray(2 * waves * multiprocessors * each * _GIGA)


def _chosen_wave_flops(
    columns: Columns, rows: int, narrowest: int, multiprocessors: int
) -> FloatArray:
    choices = [
        cost * _wave_flops(columns, rows, cols, multiprocessors)
        for cols, cost in _TILE_COST.items()
        if cols >= narrowest
    ]
    return np.asarray(np.minimum.reduce(choices))


def _filtered_flops(columns: Columns, size: int, channels: int, _: int) -> FloatArray:
    return _minimal_filtering(columns, size, channels, others=_PLAIN_COST)


def _winograd_flops(columns: Columns, size: int, channels: int, _: int) -> FloatArray:
    return _minimal_filtering(columns, size, channels, others=1.0)


def _minimal_filtering(columns: Columns, size: int, channels: int, *, others: float) -> FloatArray:
    tiles = columns["batch"] * np.ceil(columns["oh"] / size) * np.ceil(columns["ow"] / size)
    padded = np.ceil(columns["n"] / channels) * channels * columns["groups"]
    products = (size + 2) ** 2  # Lavin and Gray, "Fast Algorithms for Convolutional Networks"
    found = 2 * tiles * products * padded * columns["k"] / columns["kernel_area"] * _GIGA
    suits = (columns["kernel_area"] == 9) & (columns["stride"] == 1)
    return np.asarray(np.where(suits, found, others * columns["flops"] * _GIGA))


def _padded_flops(columns: Columns, given: int, made: int, _: int) -> FloatArray:
    deep = columns["k"] / columns["kernel_area"]
    padded = np.ceil(deep / given) * given * np.ceil(columns["n"] / made) * made
    return np.asarray(columns["flops"] * padded / np.maximum(deep * columns["n"], 1) * _GIGA)


def _wide_bytes(columns: Columns, _: int, width: int, __: int) -> FloatArray:
    return np.asarray(np.where(columns["width"] > width, columns["bytes_in"] * _MEGA, 0.0))


def _attention_flops(columns: Columns, queries: int, keys: int, multiprocessors: int) -> FloatArray:
    tiles = columns["heads"] * np.ceil(columns["queries"] / queries)
    filled = np.ceil(tiles / multiprocessors) * multiprocessors
    padded = np.ceil(columns["keys"] / keys) * keys
    swept = np.where(columns["causal"] > 0, (padded + keys) / 2, padded)
    return np.asarray(4 * filled * queries * swept * columns["width"] * _GIGA)


def _wave_depth(columns: Columns, rows: int, cols: int, multiprocessors: int) -> FloatArray:
    return np.asarray(_waves(columns, rows, cols, multiprocessors) * columns["k"] * 1e-3)


def _tile_count(columns: Columns, rows: int, cols: int, _: int) -> FloatArray:
    return np.asarray(_tiles(columns, rows, cols) * 1e-3)


def _reread(columns: Columns, rows: int, cols: int, _: int) -> FloatArray:
    left = columns["m"] * np.ceil(columns["n"] / cols)
    right = columns["n"] * np.ceil(columns["m"] / rows)
    return np.asarray((left + right) * columns["k"] * columns["groups"] * 4.0 * _MEGA)


_TILED: Final[dict[str, Callable[[Columns, int, int, int], FloatArray]]] = {
    "tile_flops": _tile_flops,
    "wave_flops": _wave_flops,
    "split_wave_flops": _split_wave_flops,
    "chosen_wave_flops": _chosen_wave_flops,
    "winograd_flops": _winograd_flops,
    "filtered_flops": _filtered_flops,
    "wave_depth": _wave_depth,
    "tiles": _tile_count,
    "reread": _reread,
    "wide_bytes": _wide_bytes,
    "padded_flops": _padded_flops,
    "attention_flops": _attention_flops,
}


# -- How to read physical terms: in base units (operations, bytes), in words.


class Meaning(NamedTuple):
    """How to read a term: its value over ``factor`` is a number of ``unit``."""

    factor: float
    unit: str
    text: str


_MEANINGS: Final[dict[str, Meaning]] = {
    "launch": Meaning(1.0, "", "once a layer"),
    "flops": Meaning(_GIGA, "FLOPs", "operations, 2 per multiply-accumulate"),
    "pointwise_flops": Meaning(_GIGA, "FLOPs", "operations of a convolution of kernel 1 x 1"),
    "bytes_in": Meaning(_MEGA, "bytes", "inputs"),
    "bytes_out": Meaning(_MEGA, "bytes", "outputs"),
    "bytes_weight": Meaning(_MEGA, "bytes", "parameters"),
    "bytes_moved": Meaning(_MEGA, "bytes", "inputs, outputs and parameters"),
    "bytes_new": Meaning(_MEGA, "bytes", "outputs that are not written over an input"),
    "bytes_io": Meaning(_MEGA, "bytes", "inputs and outputs"),
    "bytes_workspace": Meaning(_MEGA, "bytes", "unfolded input, or score matrix"),
    "bytes_over": Meaning(_MEGA, "bytes", "all tensors beyond a cache of so many MB"),
    "io_over": Meaning(_MEGA, "bytes", "inputs and outputs beyond a cache of so many MB"),
    "weight_over": Meaning(_MEGA, "bytes", "parameters beyond a cache of so many MB"),
    "fresh_out": Meaning(_MEGA, "bytes", "outputs of so many MB or more, memory got anew"),
    "fresh_workspace": Meaning(_MEGA, "bytes", "workspace of so many MB or more, got anew"),
    "unaligned_in": Meaning(_MEGA, "bytes", "inputs whose channels are no multiple of that"),
    "unaligned_out": Meaning(_MEGA, "bytes", "outputs whose channels are no multiple of that"),
    "unaligned_weight": Meaning(_MEGA, "bytes", "parameters with channels no multiple of that"),
    "samples": Meaning(1.0, "", "once a sample and group"),
    "left": Meaning(_MEGA, "", "elements of the left operands of all products"),
    "right": Meaning(_MEGA, "", "elements of the right operands of all products"),
    "products": Meaning(_MEGA, "", "elements of the results of all products"),
    "unaligned_flops": Meaning(
        _GIGA, "FLOPs", "operations where depth or columns are no multiple of that"
    ),
    "flop_rate": Meaning(_GIGA, "FLOPs per ms", "operations over runtime"),
    "io_rate": Meaning(_MEGA, "bytes per ms", "inputs and outputs over runtime"),
    "weight_rate": Meaning(_MEGA, "bytes per ms", "parameters over runtime"),
    "rows": Meaning(_MEGA, "", "rows that a norm or softmax treats alike"),
    "pow_bytes": Meaning(_MEGA, "bytes", "outputs of raising to a constant power"),
    "wide_bytes": Meaning(_MEGA, "bytes", "inputs whose rows are wider than that"),
    "padded_flops": Meaning(_GIGA, "FLOPs", "operations with channels padded to blocks"),
    "scored_flops": Meaning(_GIGA, "FLOPs", "operations without the scores that a mask skips"),
    "scores": Meaning(_MEGA, "", "scores of an attention"),
    "attention_flops": Meaning(
        _GIGA, "FLOPs", "operations padded to tiles and waves, masked ones skipped"
    ),
    "depth": Meaning(1e-3, "", "length of the reduction, k"),
    "bias_pass": Meaning(_MEGA, "bytes", "outputs read and written once more to add a bias"),
    "layout_pass": Meaning(_MEGA, "bytes", "tensors turned to channels-first and back"),
    "tile_flops": Meaning(_GIGA, "FLOPs", "operations with rows and columns padded to the tile"),
    "wave_flops": Meaning(_GIGA, "FLOPs", "padded operations, the last wave of tiles filled up"),
    "split_wave_flops": Meaning(
        _GIGA, "FLOPs", "operations padded to waves, a long reduction cut into pieces side by side"
    ),
    "chosen_wave_flops": Meaning(
        _GIGA, "FLOPs", "operations padded to waves of the cheapest of several tiles"
    ),
    "winograd_flops": Meaning(_GIGA, "FLOPs", "operations of Winograd's minimal filtering"),
    "filtered_flops": Meaning(
        _GIGA, "FLOPs", "operations of Winograd's minimal filtering, half of those it does not suit"
    ),
    "wave_depth": Meaning(1e-3, "", "waves of tiles x length of the reduction"),
    "tiles": Meaning(1e-3, "", "tiles of so many rows x columns that cover the product"),
    "reread": Meaning(_MEGA, "bytes", "both operands as often as the tiles read them"),
}


def meaning(name: str) -> Meaning:
    """How to read a term that :func:`pytest_neuralpower.estimators.terms.evaluate` knows."""
    return _MEANINGS[name.split("[", maxsplit=1)[0]]


# -- Regimes: parts of a family that run on different code, each fitted on its own rows.

_COMPARE: Final[dict[str, Callable[[FloatArray, float], NDArray[np.bool_]]]] = {
    "==": operator.eq,
    "<=": operator.le,
    ">=": operator.ge,
    # Integer multiples set kernels apart as much as sizes do (FastDeepIoT, section 4.2).
    "%": lambda column, value: column % value == 0,
}


class Condition(NamedTuple):
    """``column op value``; ``%`` is true of whole multiples of ``value``, ``is`` of the operation's
    name alone (``["op", "is", "gelu"]``)."""

    column: str
    op: str
    value: float | str

    def holds(self, columns: Columns) -> NDArray[np.bool_]:
        if isinstance(self.value, str):
            return np.asarray(columns[self.column] == op_code(self.value))
        return _COMPARE[self.op](columns[self.column], self.value)

    def __str__(self) -> str:
        if isinstance(self.value, str):
            return f"{self.column} is {self.value}"
        if self.op == "%":
            return f"{self.column} is a multiple of {self.value:g}"
        return f"{self.column} {self.op} {self.value:.10g}"

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> Condition:
        """The condition ``[column, op, value]``.

        Raises
        ------
        TypeError, ValueError
            It is none, or there is no such comparison.
        """
        column, op, value = data
        if op == "is":
            return cls("op", "is", str(value))
        if op not in _COMPARE:
            raise ValueError(f"unknown comparison {op!r}")
        return cls(str(column), str(op), float(value))


class Regime(NamedTuple):
    """Rows for which all of ``when`` hold, and the physical terms that price them.

    Attributes
    ----------
    name
        What runs there (``winograd``, ``gemm``).
    terms
        Names that :func:`pytest_neuralpower.estimators.terms.evaluate` knows.
    when
        Conditions on columns; none holds for every row.
    """

    name: str
    terms: tuple[str, ...]
    when: tuple[Condition, ...] = ()

    def holds(self, columns: Columns) -> NDArray[np.bool_]:
        mask = np.ones(len(columns["flops"]), dtype=bool)
        for condition in self.when:
            mask &= condition.holds(columns)
        return mask

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "when": [[each.column, each.op, each.value] for each in self.when],
            "terms": list(self.terms),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Regime:
        try:
            conditions = tuple(Condition.from_json(each) for each in data["when"])
        except ValueError as error:
            raise ValueError(f"{error} in regime {data['name']!r}") from None
        terms = tuple(str(term) for term in data["terms"])
        for term in terms:
            if not is_term(term):
                raise ValueError(f"unknown term {term!r} in regime {data['name']!r}")
        return cls(str(data["name"]), terms, conditions)


def assign(regimes: Sequence[Regime], columns: Columns) -> NDArray[np.intp]:
    """Index of the first regime that holds for each row.

    Raises
    ------
    ValueError
        The last regime has conditions: some layer might fall through.
    """
    if regimes[-1].when:
        raise ValueError(f"the last regime, {regimes[-1].name!r}, must hold for every row")
    chosen = np.full(len(columns["flops"]), len(regimes) - 1, dtype=np.intp)
    for index in range(len(regimes) - 2, -1, -1):
        chosen[regimes[index].holds(columns)] = index
    return chosen
