"""Physical terms: what a layer makes the device do, each in a unit that a person can read.

A term's coefficient is then a rate: ms per GFLOP, ms per MB, ms per launch. Tile terms follow
the way GPU libraries cut a matrix product into tiles of rows x columns, hand them to the
multiprocessors in waves, and pay for the part of a tile or wave that holds nothing.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, TypeAlias

import numpy as np
from msgspec import Meta, Struct, field

from pytest_neuralpower.estimators.base import NonNegative
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
#: Cost of an operation of other convolutions relative to one of minimal filtering, which computes
#: less but not as fast. Where both were measured (v100, p100, t4) rates fitted to 3x3 convolutions
#: of stride 1 alone err least on the others with it: by 54, 22 and 30%; with 1 by 105, 47 and 64%.
_PLAIN_COST: Final = 0.5

_Values: TypeAlias = "Callable[..., FloatArray]"


def _sum_of(*names: str, factor: float = _MEGA) -> _Values:
    def term(columns: Columns) -> FloatArray:
        return np.asarray(sum((columns[name] for name in names[1:]), columns[names[0]]) * factor)

    return term


def _beyond(*names: str) -> _Values:
    def term(columns: Columns, megabytes: int) -> FloatArray:
        total = sum((columns[name] for name in names[1:]), columns[names[0]])
        return np.asarray(np.maximum(total * _MEGA - megabytes, 0.0))

    return term


def _where(holds: Callable[[Columns], Any], name: str, factor: float = _MEGA) -> _Values:
    def term(columns: Columns) -> FloatArray:
        return np.where(holds(columns), columns[name] * factor, 0.0)

    return term


def _unaligned(name: str, *channels: str) -> _Values:
    def term(columns: Columns, width: int) -> FloatArray:
        aligned = np.logical_and.reduce([columns[each] % width == 0 for each in channels])
        return np.where(aligned, 0.0, columns[name] * _MEGA)

    return term


def _product(*names: str) -> _Values:
    def term(columns: Columns) -> FloatArray:
        return np.asarray(columns[names[0]] * columns[names[1]] * columns["groups"] * _MEGA)

    return term


def _tiles(columns: Columns, rows: int, cols: int) -> FloatArray:
    across = np.ceil(columns["m"] / rows) * np.ceil(columns["n"] / cols)
    return np.asarray(across * columns["groups"])


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


def _cached(columns: Columns, keys: int, width: int, _: int) -> FloatArray:
    padded = np.ceil(columns["keys"] / keys) * keys * np.ceil(columns["width"] / width) * width
    return np.asarray(2 * columns["shared_heads"] * padded * _MEGA)


def _wave_cached(columns: Columns, keys: int, width: int, multiprocessors: int) -> FloatArray:
    heads = np.maximum(columns["shared_heads"], 1.0)
    filled = np.ceil(heads / multiprocessors) * multiprocessors
    return np.asarray(_cached(columns, keys, width, multiprocessors) * filled / heads)


def _split_cached(columns: Columns, keys: int, width: int, multiprocessors: int) -> FloatArray:
    heads = columns["shared_heads"]
    whole = _wave_cached(columns, keys, width, multiprocessors)
    split = _cached(columns, keys, width, multiprocessors)
    return np.where(heads < multiprocessors, split, whole)


def _more_than(name: str) -> _Values:
    def term(columns: Columns, megabytes: int) -> FloatArray:
        size = columns[name] * _MEGA
        return np.where(size > megabytes, size, 0.0)

    return term


def _wave_depth(columns: Columns, rows: int, cols: int, multiprocessors: int) -> FloatArray:
    return np.asarray(_waves(columns, rows, cols, multiprocessors) * columns["k"] * 1e-3)


def _tile_count(columns: Columns, rows: int, cols: int, _: int) -> FloatArray:
    return np.asarray(_tiles(columns, rows, cols) * 1e-3)


def _reread(columns: Columns, rows: int, cols: int, _: int) -> FloatArray:
    left = columns["m"] * np.ceil(columns["n"] / cols)
    right = columns["n"] * np.ceil(columns["m"] / rows)
    return np.asarray((left + right) * columns["k"] * columns["groups"] * 4.0 * _MEGA)


class Term(NamedTuple):
    """One physical term.

    Attributes
    ----------
    values
        Its values, shape ``(rows,)``, of columns; of a term with one size, of columns and the size;
        of a tile term, of columns, both sizes and the number of tiles that run at once.
    factor, unit
        How to read it: a value over ``factor`` is a number of ``unit``.
    text
        What it is, in words.
    sizes
        How many sizes its name takes: ``bytes_over[6]`` has one, ``tile_flops[128x64]`` two.
    """

    values: _Values
    factor: float
    unit: str
    text: str
    sizes: int = 0


#: Every term by its name without sizes.
TERMS: Final[Mapping[str, Term]] = {
    "launch": Term(lambda columns: np.ones_like(columns["flops"]), 1.0, "", "once a layer"),
    "flops": Term(
        _sum_of("flops", factor=_GIGA), _GIGA, "FLOPs", "operations, 2 per multiply-accumulate"
    ),
    "pointwise_flops": Term(
        _where(lambda columns: columns["kernel_area"] == 1, "flops", _GIGA),
        *(_GIGA, "FLOPs", "operations of a convolution of kernel 1 x 1"),
    ),
    "bytes_in": Term(_sum_of("bytes_in"), _MEGA, "bytes", "inputs"),
    "bytes_out": Term(_sum_of("bytes_out"), _MEGA, "bytes", "outputs"),
    "bytes_weight": Term(_sum_of("bytes_weight"), _MEGA, "bytes", "parameters"),
    "bytes_moved": Term(_sum_of("bytes_moved"), _MEGA, "bytes", "inputs, outputs and parameters"),
    "bytes_new": Term(
        _where(lambda columns: ~(columns["inplace"] > 0), "bytes_out"),
        *(_MEGA, "bytes", "outputs that are not written over an input"),
    ),
    "bytes_io": Term(_sum_of("bytes_in", "bytes_out"), _MEGA, "bytes", "inputs and outputs"),
    "bytes_workspace": Term(
        _sum_of("bytes_workspace"), _MEGA, "bytes", "unfolded input, or score matrix"
    ),
    # Products that a library is called for: of a convolution one a sample and group.
    "samples": Term(
        lambda columns: columns.get("batch", 1.0) * columns["groups"],
        *(1.0, "", "once a sample and group"),
    ),
    "left": Term(_product("m", "k"), _MEGA, "", "elements of the left operands of all products"),
    "right": Term(_product("n", "k"), _MEGA, "", "elements of the right operands of all products"),
    "products": Term(_product("m", "n"), _MEGA, "", "elements of the results of all products"),
    # One block or warp each.
    "rows": Term(_sum_of("rows"), _MEGA, "", "rows that a norm or softmax treats alike"),
    # It computes more per element than it moves.
    "pow_bytes": Term(
        _where(lambda columns: columns["pow"] > 0, "bytes_out"),
        *(_MEGA, "bytes", "outputs of raising to a constant power"),
    ),
    "scored_flops": Term(
        _sum_of("scored_flops", factor=_GIGA),
        *(_GIGA, "FLOPs", "operations without the scores that a mask skips"),
    ),
    # Each is exponentiated.
    "scores": Term(
        lambda columns: columns["scored_flops"] / np.maximum(4 * columns["width"], 1) * _MEGA,
        *(_MEGA, "", "scores of an attention"),
    ),
    # Steps of one multiprocessor: nothing hides them in a small product.
    "depth": Term(_sum_of("k", factor=1e-3), 1e-3, "", "length of the reduction, k"),
    "bias_pass": Term(
        lambda columns: 2 * (columns["bias"] > 0) * columns["bytes_out"] * _MEGA,
        *(_MEGA, "bytes", "outputs read and written once more to add a bias"),
    ),
    # Input, weight and output are read and written once more for a channels-first library; a 1x1
    # convolution of stride 1 needs no turning.
    "layout_pass": Term(
        lambda columns: np.where(
            columns["kernel_area"] * columns["stride"] > 1, 2 * columns["bytes_moved"] * _MEGA, 0.0
        ),
        *(_MEGA, "bytes", "tensors turned to channels-first and back"),
    ),
    # One multiprocessor reads the keys and values of one head at a time.
    "shared_waves": Term(
        lambda columns, size: np.ceil(columns["shared_heads"] / size),
        *(1.0, "", "waves of so many heads of keys and values", 1),
    ),
    "uncached": Term(
        _more_than("cached_bytes"),
        *(_MEGA, "bytes", "keys and values, where they are more than so many MB", 1),
    ),
    "uncached_weight": Term(
        _more_than("bytes_weight"),
        *(_MEGA, "bytes", "parameters, where they are more than so many MB", 1),
    ),
    "wide_heads": Term(
        lambda columns, size: np.where(columns["width"] > size, columns["shared_heads"], 0.0),
        *(1.0, "", "heads of keys and values wider than that", 1),
    ),
    # With one size.
    "bytes_over": Term(
        _beyond("bytes_moved"), _MEGA, "bytes", "all tensors beyond a cache of so many MB", 1
    ),
    "io_over": Term(
        _beyond("bytes_in", "bytes_out"),
        *(_MEGA, "bytes", "inputs and outputs beyond a cache of so many MB", 1),
    ),
    # Libraries that keep blocks of channels side by side pad them on the way.
    "unaligned_in": Term(
        _unaligned("bytes_in", "cin"),
        *(_MEGA, "bytes", "inputs whose channels are no multiple of that", 1),
    ),
    "unaligned_out": Term(
        _unaligned("bytes_out", "cout"),
        *(_MEGA, "bytes", "outputs whose channels are no multiple of that", 1),
    ),
    "unaligned_weight": Term(
        _unaligned("bytes_weight", "cin", "cout"),
        *(_MEGA, "bytes", "parameters with channels no multiple of that", 1),
    ),
    # With two sizes: rows and columns of a tile, unless the text says otherwise.
    "tile_flops": Term(
        _tile_flops, _GIGA, "FLOPs", "operations with rows and columns padded to the tile", 2
    ),
    "wave_flops": Term(
        _wave_flops, _GIGA, "FLOPs", "padded operations, the last wave of tiles filled up", 2
    ),
    "split_wave_flops": Term(
        _split_wave_flops,
        *(_GIGA, "FLOPs"),
        *("operations padded to waves, a long reduction cut into pieces side by side", 2),
    ),
    # The second size is the narrowest of tiles 128, 64 and 32 columns wide.
    "chosen_wave_flops": Term(
        _chosen_wave_flops,
        *(_GIGA, "FLOPs", "operations padded to waves of the cheapest of several tiles", 2),
    ),
    # Output tiles of so many rows and columns, and channels padded to so many.
    "winograd_flops": Term(
        _winograd_flops, _GIGA, "FLOPs", "operations of Winograd's minimal filtering", 2
    ),
    # To price others, which run that much faster, where only 3x3 of stride 1 were measured.
    "filtered_flops": Term(
        _filtered_flops,
        *(_GIGA, "FLOPs"),
        *("operations of Winograd's minimal filtering, half of those it does not suit", 2),
    ),
    "wave_depth": Term(_wave_depth, 1e-3, "", "waves of tiles x length of the reduction", 2),
    "tiles": Term(
        _tile_count, 1e-3, "", "tiles of so many rows x columns that cover the product", 2
    ),
    "reread": Term(_reread, _MEGA, "bytes", "both operands as often as the tiles read them", 2),
    # 1 x a width: a block of threads reads a wider row again for each of its passes.
    "wide_bytes": Term(_wide_bytes, _MEGA, "bytes", "inputs whose rows are wider than that", 2),
    # Input channels padded to the first size, output channels to the second.
    "padded_flops": Term(
        _padded_flops, _GIGA, "FLOPs", "operations with channels padded to blocks", 2
    ),
    # Tiles of queries x keys, scores above a causal mask's diagonal skipped by whole tiles.
    "prior": Term(_sum_of("prior_ms", factor=1.0), 1.0, "ms", "as other devices run it"),
    "attention_flops": Term(
        _attention_flops,
        *(_GIGA, "FLOPs", "operations padded to tiles and waves, masked ones skipped", 2),
    ),
    # Tiles of keys x width.
    "cached": Term(_cached, _MEGA, "", "elements of keys and values, padded to tiles", 2),
    "wave_cached": Term(
        _wave_cached,
        *(_MEGA, "", "padded elements of keys and values, the last wave of heads filled up", 2),
    ),
    "split_cached": Term(
        _split_cached,
        *(_MEGA, ""),
        *("the same, the keys of few heads split among all multiprocessors", 2),
    ),
}

_NAME: Final = re.compile(r"(\w+)(?:\[(\d+)(?:x(\d+))?\])?")


@cache
def _read(name: str) -> tuple[_Values, tuple[int, ...]]:
    """What evaluates the term of this name, and the sizes in it."""
    match = _NAME.fullmatch(name)
    sizes = tuple(int(size) for size in match.groups()[1:] if size) if match else ()
    term = TERMS.get(match[1]) if match else None
    if term is None or term.sizes != len(sizes):
        raise ValueError(f"unknown term {name!r}; there are {', '.join(TERMS)}")
    return term.values, sizes


def evaluate(name: str, columns: Columns, multiprocessors: int) -> FloatArray:
    """Values of one term, shape ``(rows,)``.

    Parameters
    ----------
    name
        A name of :data:`TERMS`, with its sizes if it takes any: ``launch``, ``bytes_over[6]`` (MB
        beyond a cache of 6 MB), ``tile_flops[128x64]`` (GFLOP padded to tiles of 128 x 64).
    multiprocessors
        Tiles that run at once.

    Raises
    ------
    ValueError
        There is no such term.
    KeyError
        It needs a column that there is not.
    """
    values, sizes = _read(name)
    if len(sizes) == 2:
        return values(columns, *sizes, multiprocessors)
    return values(columns, *sizes)


def is_term(name: str) -> bool:
    """Whether :func:`evaluate` knows the term."""
    try:
        _read(name)
    except ValueError:
        return False
    return True


def meaning(name: str) -> Term:
    """How to read a term that :func:`evaluate` knows."""
    return TERMS[name.split("[", maxsplit=1)[0]]


# -- Regimes: parts of a family that run on different code, each fitted on its own rows.

_COMPARE: Final[dict[str, Callable[[FloatArray, float], NDArray[np.bool_]]]] = {
    "==": operator.eq,
    "<=": operator.le,
    ">=": operator.ge,
    # Integer multiples set kernels apart as much as sizes do (FastDeepIoT, section 4.2).
    "%": lambda column, value: column % value == 0,
}


class Condition(Struct, frozen=True, array_like=True):
    """``column op value``; ``%`` is true of whole multiples of ``value``, ``is`` of the operation's
    name alone (``["op", "is", "gelu"]``)."""

    column: str
    op: str
    value: float | str

    def __post_init__(self) -> None:
        if self.op != "is" and self.op not in _COMPARE:
            raise ValueError(f"unknown comparison {self.op!r}; there are {', '.join(_COMPARE)}, is")
        if (self.op == "is") != isinstance(self.value, str):
            raise ValueError(f"{self.op} cannot compare with {self.value!r}")

    def holds(self, columns: Columns) -> NDArray[np.bool_]:
        if isinstance(self.value, str):
            return np.asarray(columns["op"] == op_code(self.value))
        return _COMPARE[self.op](columns[self.column], self.value)

    def __str__(self) -> str:
        if isinstance(self.value, str):
            return f"{self.column} is {self.value}"
        if self.op == "%":
            return f"{self.column} is a multiple of {self.value:g}"
        return f"{self.column} {self.op} {self.value:.10g}"


class Regime(Struct, frozen=True, forbid_unknown_fields=True):
    """Rows for which all of ``when`` hold, and the physical terms that price them.

    Attributes
    ----------
    name
        What runs there (``winograd``, ``gemm``).
    terms
        Names that :func:`pytest_neuralpower.estimators.terms.evaluate` knows.
    when
        Conditions on columns; none holds for every row.
    rates, scale, time_over_roofline
        Once fitted: rates per unit of each term that has one; what all are multiplied by; and the
        range of time over roofline that the rows had.
    """

    name: str
    terms: tuple[str, ...]
    when: tuple[Condition, ...] = ()
    rates: dict[str, NonNegative] = field(default_factory=dict)
    scale: NonNegative = 1.0
    #: The second, by default, is no limit.
    time_over_roofline: tuple[NonNegative, Annotated[float, Meta(ge=0)]] = (0.0, 1e300)

    def __post_init__(self) -> None:
        for term in self.terms:
            if not is_term(term):
                raise ValueError(f"unknown term {term!r} in regime {self.name!r}")
        for term in self.rates:
            if term not in self.terms:
                raise ValueError(f"rate of {term!r}, which is no term of regime {self.name!r}")

    def holds(self, columns: Columns) -> NDArray[np.bool_]:
        mask = np.ones(len(columns["flops"]), dtype=bool)
        for condition in self.when:
            mask &= condition.holds(columns)
        return mask


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
