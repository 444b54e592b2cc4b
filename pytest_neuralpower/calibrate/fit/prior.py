"""The prior: how other devices run a family of layers, fitted to the rows of all of them.

Each device counts alike, and so does each source of its rows. How far a prior is off on a device
that it has not seen is told by leaving out one device after the other.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec
import numpy as np
import yaml

from pytest_neuralpower.calibrate.fit.devices import find_device
from pytest_neuralpower.calibrate.fit.power_prior import (
    PowerPrior,
    fit_power_prior,
    read_metered,
)
from pytest_neuralpower.calibrate.fit.readers import READERS, read_source
from pytest_neuralpower.calibrate.fit.recipe import read_recipe
from pytest_neuralpower.estimators import Prior, Sparse
from pytest_neuralpower.estimators.features import FAMILIES, STREAMING, columns, family
from pytest_neuralpower.estimators.physics import FEATURES, Ceilings, features, roofline_ms
from pytest_neuralpower.platform.intervals import log_sizes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.calibrate.fit.rows import Row
    from pytest_neuralpower.estimators.features import Columns, FloatArray

#: Devices whose libraries are alike: GPUs on their plain cores, on tensor cores, and processors.
DeviceClass: TypeAlias = Literal["gpu", "tensor", "cpu"]

#: Rows of one table that are looked at, at most: more say the same.
_MOST_ROWS: Final = 500

#: Deviation from device to device of families that only one device has rows of: that of the
#: families of processors that several have.
_BETWEEN_UNKNOWN: Final = 0.4


@dataclass(frozen=True, slots=True)
class _Table:
    """Rows of one family from one source."""

    family: str
    columns: Columns
    runtime_ms: FloatArray
    stack: str


@dataclass(frozen=True, slots=True)
class Board:
    """One device with measured rows of some families."""

    device: str
    kind: DeviceClass
    ceilings: Ceilings
    tables: tuple[_Table, ...]


@dataclass(frozen=True, slots=True)
class Judged:
    """Errors on a device that a prior has not seen.

    Attributes
    ----------
    median, ninety
        Factors that hold half and 90% of the rows.
    bias
        Median factor of measured over predicted.
    rows
        How many.
    deviation
        Of the logarithmic errors about their median.
    stacks
        That of :func:`stack_deviation`, where the device has rows of several.
    correlations
        Of the errors about their median, by how far two rows are apart (:func:`variogram`).
    """

    device: str
    median: float
    ninety: float
    bias: float
    rows: int
    deviation: float
    stacks: float | None
    correlations: FloatArray


def device_class(hardware: Mapping[str, float], dtype: str) -> DeviceClass:
    """What a device's layers in this dtype are priced like."""
    if hardware.get("multiprocessors", 1) <= 1:
        return "cpu"
    return "tensor" if dtype in ("float16", "bfloat16") else "gpu"


class _Extra(msgspec.Struct, frozen=True):
    """A board of ``calibration/prior.yaml``: rows of a few kinds, too few for a platform. The
    device file has its figures, and its name where ``device`` does not say whose sibling it is."""

    datasheet: str
    sources: list[dict[str, object]]
    device: str = ""
    dtype: str = "float32"


@cache
def read_boards(calibration: Path, data_root: Path | None) -> tuple[Board, ...]:
    """Every device with rows: of the recipes in ``calibration`` and of its ``prior.yaml``.

    Parameters
    ----------
    calibration
        Folder of the recipes.
    data_root
        Folder of the public tables; None for devices whose rows are in ``calibration`` alone.

    Raises
    ------
    ProfileError
        A recipe, or the rows that it names, cannot be read.
    """
    boards = []
    for path in sorted(calibration.glob("*/recipe.yaml")):
        recipe = read_recipe(path.parent)
        rows = [
            read_source(recipe, source, data_root)
            for source in recipe.sources
            if source.profile or data_root is not None
        ]
        boards.append(_board(recipe.device, recipe.hardware, recipe.dtype, rows))
    if data_root is not None:
        text = (calibration / "prior.yaml").read_text(encoding="utf-8")
        for extra in msgspec.convert(yaml.safe_load(text)["boards"], list[_Extra]):
            rows = [_table_rows(data_root, source) for source in extra.sources]
            known = find_device(extra.datasheet)
            device = extra.device or known.device
            boards.append(_board(device, known.hardware(extra.dtype), extra.dtype, rows))
    return tuple(boards)


def _table_rows(data_root: Path, source: Mapping[str, object]) -> list[Row]:
    path = str(source["path"])
    found = READERS[str(source["reader"])](data_root / path, source)
    return [replace(row, stack=path.split("/", maxsplit=1)[0]) for row in found]


def _board(
    device: str, hardware: Mapping[str, float], dtype: str, sources: Sequence[Sequence[Row]]
) -> Board:
    tables = []
    for rows in sources:
        members: dict[str, list[Row]] = {}
        for row in rows:
            if not row.flaw and row.layer.dtype == dtype:
                members.setdefault(family(row.layer), []).append(row)
        for name, found in members.items():
            kept = [found[place] for place in _places_looked_at(len(found))]
            values = columns(name, [row.layer for row in kept])
            runtime = np.array([row.runtime_ms for row in kept])
            tables.append(_Table(name, values, runtime, kept[0].stack))
    return Board(device, device_class(hardware, dtype), Ceilings.of(hardware), tuple(tables))


def _places_looked_at(count: int) -> list[int]:
    """Places of at most :data:`_MOST_ROWS` rows, evenly over a table of ``count``."""
    places = np.unique(np.linspace(0, count - 1, min(count, _MOST_ROWS)).astype(int))
    return [int(place) for place in places]


def fit_priors(
    boards: Sequence[Board], kind: DeviceClass, *, without: str = ""
) -> dict[str, Prior]:
    """Priors of every family on a class of devices.

    Parameters
    ----------
    boards
        From :func:`read_boards`.
    kind
        The class; families that its devices have no rows of are those of plain GPUs.
    without
        A device that must not have a say; by default all have.

    Returns
    -------
    dict
        By family, with the ceilings of any of the devices: :meth:`Prior.on` takes another's.
    """
    known = [board for board in boards if board.device != without and board.kind == kind]
    found = {}
    for name in FAMILIES:
        own = _families(name)
        if any(table.family in own for board in known for table in board.tables):
            found[name] = _prior(known, own)
    others = {} if kind == "gpu" else fit_priors(boards, "gpu", without=without)
    for name in FAMILIES:
        if name not in found:
            found[name] = _inferred(name, found) or others[name]
    return found


def _families(name: str) -> tuple[str, ...]:
    """Families whose rows tell of this one."""
    return STREAMING if name in STREAMING else (name,)


def _prior(boards: Sequence[Board], names: Sequence[str]) -> Prior:
    factor = _fit(boards, names)
    judged = _left_out(boards, names)
    devices = tuple(sorted({each.device for each in judged}))
    within = float(np.median([each.deviation for each in judged]))
    between = _BETWEEN_UNKNOWN
    if len(devices) > 2:
        between = float(np.sqrt(np.mean([np.log(each.bias) ** 2 for each in judged])))
    known = [each.stacks for each in judged if each.stacks is not None]
    stacks = float(np.sqrt(np.mean(np.square(known)))) if known else 0.0
    between, within, stacks = (float(f"{each:.4g}") for each in (between, within, stacks))
    alike, reach = _alike([each.correlations for each in judged])
    return Prior(factor, between, within, devices, stacks=stacks, alike=alike, reach=reach)


def _alike(correlations: Sequence[FloatArray]) -> tuple[float, float]:
    """What errors of nearly equal sizes have in common on a device, and how far that reaches.

    Mean of the devices: correlations by distance, as :func:`variogram` gives them.
    """
    table = np.stack(correlations)
    counts = np.maximum((~np.isnan(table)).sum(axis=0), 1)
    seen = np.clip(np.nansum(table, axis=0) / counts, 0.0, 1.0)
    near = float(seen[:2].mean())  # rows less than two doublings apart
    if not near:
        return 0.0, 1.0
    # The area under exp(-distance / reach) is its reach.
    return float(f"{near:.4g}"), float(f"{max(float(seen.sum()) / near, 1.0):.4g}")


#: Sizes that tell how far two layers are apart.
_SIZES: Final = ("flops", "bytes_in", "bytes_out", "bytes_weight")

#: Doublings beyond which rows are not looked at for what their errors have in common.
FARTHEST: Final = 16

#: Rows that are held against all others, at most.
_MOST_HELD: Final = 2000


def places_of(columns: Columns) -> FloatArray:
    """Where rows lie among others, in doublings: shape ``(rows, 4)``."""
    return log_sizes(np.stack([columns[name] for name in _SIZES], axis=1))


def variogram(errors: FloatArray, places: FloatArray, which: NDArray[np.intp]) -> FloatArray:
    """Correlation (about 0) of the errors of two rows of different groups, by their distance.

    Shape ``(16,)``: less than one doubling apart, less than two, and so on; NaN where no rows are.

    Parameters
    ----------
    errors
        Logarithmic, shape ``(rows,)``.
    places
        Of :func:`places_of`.
    which
        Group of each row.
    """
    sums, pairs = np.zeros(FARTHEST), np.zeros(FARTHEST)
    for row in range(0, len(errors), max(1, len(errors) // _MOST_HELD)):
        distance = np.sqrt(((places - places[row]) ** 2).sum(axis=1))
        others = np.flatnonzero((distance < FARTHEST) & (which != which[row]))
        bins = distance[others].astype(np.intp)
        sums += np.bincount(bins, errors[row] * errors[others], minlength=FARTHEST)
        pairs += np.bincount(bins, minlength=FARTHEST)
    variance = float((errors**2).mean()) or 1.0
    return np.where(pairs > 0, sums / np.maximum(pairs, 1.0) / variance, np.nan)


def stack_deviation(errors: Mapping[str, FloatArray]) -> float | None:
    """Deviation of the logarithmic error between two stacks of one device and family.

    Parameters
    ----------
    errors
        By stack, logarithms of measured over prior time: the prior makes layers of different sizes
        comparable.

    Returns
    -------
    float or None
        That of the difference of two stacks; None where there is only one.
    """
    if len(errors) < 2:
        return None
    middles = [float(np.median(each)) for each in errors.values()]
    return float(np.std(middles, ddof=1) * np.sqrt(2.0))


def _fit(boards: Sequence[Board], names: Sequence[str]) -> Sparse:
    inputs = features(names[0])
    values: dict[str, list[FloatArray]] = {name: [] for name in inputs}
    wanted, weight = [], []
    for board in boards:
        mine = [table for table in board.tables if table.family in names]
        for table in mine:
            for name in inputs:
                values[name].append(FEATURES[name][1](table.columns, board.ceilings))
            wanted.append(_log_ratio(table, board.ceilings))
            share = _MOST_ROWS / len(table.runtime_ms) / len(mine)
            weight.append(np.full(len(table.runtime_ms), share))
    factor = Sparse(inputs, boards[0].ceilings, "roofline_ms")
    return factor.fit_values(
        {name: np.concatenate(each) for name, each in values.items()},
        np.concatenate(wanted),
        np.concatenate(weight),
    )


def _log_ratio(table: _Table, ceilings: Ceilings) -> FloatArray:
    roofline = roofline_ms(table.family, table.columns, ceilings)
    return np.asarray(np.log(table.runtime_ms / roofline))


def _left_out(boards: Sequence[Board], names: Sequence[str]) -> list[Judged]:
    """Each device priced by the others; by itself where it is alone."""
    known = [board for board in boards if any(table.family in names for table in board.tables)]
    devices = dict.fromkeys(board.device for board in known)
    found = []
    for device in devices:
        rest = [board for board in known if board.device != device] or known
        factor = _fit(rest, names)
        errors: dict[str, list[FloatArray]] = {}
        places: dict[str, list[FloatArray]] = {}
        for board in known:
            if board.device == device:
                mine = msgspec.structs.replace(factor, ceilings=board.ceilings)
                for table in board.tables:
                    if table.family in names:
                        off = _log_ratio(table, board.ceilings) - mine.log_factor(table.columns)
                        errors.setdefault(table.stack, []).append(off)
                        places.setdefault(table.stack, []).append(places_of(table.columns))
        stacks = {stack: np.concatenate(each) for stack, each in errors.items()}
        where = np.concatenate([each for some in places.values() for each in some])
        found.append(_judged(device, stacks, where))
    return found


def _judged(device: str, stacks: Mapping[str, FloatArray], places: FloatArray) -> Judged:
    error = np.concatenate(list(stacks.values()))
    middle = float(np.median(error))
    size = np.abs(error)
    return Judged(
        device,
        median=float(np.exp(np.median(size))),
        ninety=float(np.exp(np.quantile(size, 0.9))),
        bias=float(np.exp(middle)),
        rows=len(error),
        # Of a normal error: its 90% quantile over 1.645.
        deviation=float(np.quantile(np.abs(error - middle), 0.9)) / 1.645,
        stacks=stack_deviation(stacks),
        correlations=variogram(error - middle, places, np.arange(len(error))),
    )


def errors_without(
    boards: Sequence[Board], priors: Mapping[str, Prior], *, stack: str
) -> dict[str, FloatArray]:
    """By family, logarithms of measured time over that of priors, for the rows of one stack.

    Parameters
    ----------
    boards
        Whose rows are priced, each at its own ceilings.
    priors
        Fitted without these boards.
    stack
        First folder of the rows' table, such as ``neusight``; families without rows of it are left
        out.
    """
    found: dict[str, list[FloatArray]] = {}
    for board in boards:
        for table in board.tables:
            if table.stack == stack:
                factor = priors[table.family].on(board.ceilings).factor
                error = _log_ratio(table, board.ceilings) - factor.log_factor(table.columns)
                found.setdefault(table.family, []).append(error)
    return {name: np.concatenate(each) for name, each in found.items()}


def judge_priors(boards: Sequence[Board], kind: DeviceClass) -> dict[str, list[Judged]]:
    """By family with rows on several devices, what a prior without each of them is off by there."""
    known = [board for board in boards if board.kind == kind]
    found = {}
    for name in FAMILIES:
        if name in STREAMING[1:]:
            continue  # judged with the first of them
        judged = _left_out(known, _families(name)) if known else []
        if len(judged) > 1:
            found[name] = judged
    return found


# -- Families that no device of the class was measured on.

#: By family: whose factor it takes, the logarithm that is added, and the deviation that adds to it.
#: Kinds that move tensors are taken to stream them; what is less alike is less sure.
_LIKE: Final[Mapping[str, tuple[str, float, float]]] = {
    "memory": ("activation", 0.0, 0.2),
    "reduction": ("activation", 0.0, 0.2),
    "embedding": ("activation", 0.2, 0.4),
    "uncovered": ("activation", 0.2, 0.6),
    # Few operations a byte, and hardly any reuse in cuDNN's kernels of plain layouts.
    "conv.depthwise": ("activation", 0.7, 0.5),
    "conv.transposed": ("conv", 0.0, 0.3),
    "softmax": ("activation", 0.0, 0.2),
    "norm": ("activation", 0.0, 0.2),
    # A step is a product of a matrix and a vector, an addition and the gates' activations.
    "rnn": ("activation", 0.4, 0.5),
    # A fused kernel reaches a good half of the peak.
    "attention": ("activation", 0.4, 0.4),
    # Keys and values are streamed once.
    "attention.decode": ("activation", 0.4, 0.4),
    "matmul.grouped": ("matmul", 0.0, 0.3),
    "pool": ("activation", 0.2, 0.2),
}


def _inferred(name: str, known: Mapping[str, Prior]) -> Prior | None:
    like, more, spread = _LIKE.get(name, ("", 0.0, 0.0))
    if like not in known:
        return None
    prior = known[like]
    factor = msgspec.structs.replace(
        prior.factor,
        intercept_=prior.factor.intercept_ + more,
        bounds_=tuple(edge + more for edge in prior.factor.bounds_),
    )
    between = float(f"{np.hypot(prior.between, spread):.4g}")
    return msgspec.structs.replace(prior, factor=factor, between=between, like=like)


# -- The prior that ships: for devices that their owners calibrate.

SHIPPED: Final = Path(__file__).parents[2] / "platform" / "prior.json"


class ShippedPriors(msgspec.Struct, frozen=True):
    """By family, how layers run on a class of devices, and what boards draw."""

    gpu: dict[str, Prior]
    tensor: dict[str, Prior]
    cpu: dict[str, Prior]
    power: PowerPrior


def save_priors(calibration: Path, data_root: Path, path: Path = SHIPPED) -> None:
    """Fit the priors of all classes and of power to all devices, and write them to ``path`` (the
    shipped file by default); ``calibration`` and ``data_root`` as :func:`read_boards` takes
    them."""
    boards = read_boards(calibration, data_root)
    found = ShippedPriors(
        gpu=fit_priors(boards, "gpu"),
        tensor=fit_priors(boards, "tensor"),
        cpu=fit_priors(boards, "cpu"),
        power=fit_power_prior(read_metered(calibration, data_root)),
    )
    path.write_text(json.dumps(msgspec.to_builtins(found), indent=1) + "\n", encoding="utf-8")


def _shipped() -> ShippedPriors:
    return msgspec.json.decode(SHIPPED.read_bytes(), type=ShippedPriors)


def priors_for(
    device: str,
    hardware: Mapping[str, float],
    dtype: str,
    *,
    calibration: Path,
    data_root: Path | None,
) -> dict[str, Prior]:
    """Priors of every family for a platform, at its ceilings.

    Parameters
    ----------
    device
        Its name: rows of it have no say, lest they count twice.
    hardware, dtype
        Of the platform; they tell the class of devices and the ceilings.
    calibration, data_root
        As :func:`read_boards` takes them. Without ``data_root``, or where ``calibration`` has no
        ``prior.yaml``, the priors are those that ship, which have seen all devices.
    """
    kind, ceilings = device_class(hardware, dtype), Ceilings.of(hardware)
    if data_root is not None and (calibration / "prior.yaml").is_file():
        found = fit_priors(read_boards(calibration, data_root), kind, without=device)
    else:
        shipped = _shipped()
        found = {"gpu": shipped.gpu, "tensor": shipped.tensor, "cpu": shipped.cpu}[kind]
    return {name: prior.on(ceilings) for name, prior in found.items()}


def power_prior_for(device: str, *, calibration: Path, data_root: Path | None) -> PowerPrior:
    """What boards other than the device draw; parameters as :func:`priors_for` takes them."""
    if data_root is not None and (calibration / "prior.yaml").is_file():
        return fit_power_prior(read_metered(calibration, data_root), without=device)
    return _shipped().power


if __name__ == "__main__":  # python -m pytest_neuralpower.calibrate.fit.prior CALIBRATION DATA
    save_priors(*map(Path, sys.argv[1:3]))
