"""Prices and intervals judged where they are used: on layers, devices and networks never fitted.

What was chosen by the rows that judge here, the table says below its figures
(:func:`~pytest_neuralpower.report.accuracy.reach_text`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from pytest_neuralpower.calibrate.fit.cells import (
    Cells,
    network_layers,
    price_cells,
    read_cells,
    sharpened,
)
from pytest_neuralpower.calibrate.fit.devices import find_device
from pytest_neuralpower.calibrate.fit.fit import platform_of
from pytest_neuralpower.calibrate.fit.prior import (
    Board,
    DeviceClass,
    device_class,
    errors_without,
    fit_priors,
    judge_priors,
    read_boards,
)
from pytest_neuralpower.calibrate.fit.readers import READERS, scaled
from pytest_neuralpower.calibrate.fit.recipe import Recipe
from pytest_neuralpower.calibrate.fit.sweep import sweep
from pytest_neuralpower.calibrate.fit.uncertainty import with_intervals
from pytest_neuralpower.errors import ProfileError
from pytest_neuralpower.estimators.physics import Ceilings
from pytest_neuralpower.layers import Layer
from pytest_neuralpower.platform.catalog import list_platforms, load_platform
from pytest_neuralpower.platform.differences import ratio_interval
from pytest_neuralpower.platform.price import FittedPlatform
from pytest_neuralpower.report.accuracy import Figure

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.fit.rows import Row
    from pytest_neuralpower.estimators.features import FloatArray

Progress = Callable[[str], None]


def judge_reach(
    names: Sequence[str],
    *,
    calibration: Path,
    data_root: Path,
    progress: Progress = lambda _: None,
) -> Iterator[Figure]:
    """Every line of the table, as it is found.

    Parameters
    ----------
    names
        Platforms, by name or path; empty for all fitted ones that ship.
    calibration
        Folder of the recipes.
    data_root
        Folder of the public tables.
    progress
        Told what is judged next, in a few words; by default nobody is.

    Raises
    ------
    ProfileError
        A table is not there.
    PlatformError
        A platform is not there, or its file is broken.
    """
    if not (calibration / "prior.yaml").is_file():
        raise ProfileError(f"no recipes at {calibration}: run it in a checkout")
    loaded = [load_platform(name) for name in names or list_platforms()]
    platforms = [each for each in loaded if isinstance(each, FittedPlatform)]
    yield from judge_sweeps(platforms, _RANDOM_LAYERS, progress)
    progress("rows of every device")
    boards = read_boards(calibration, data_root)
    progress("kinds on a device left out")
    yield from judge_kinds(boards)
    progress("cards left out")
    yield from judge_cards(boards)
    progress("networks of small cells")
    yield from judge_cells(boards, data_root)
    progress("rows left out of a fit")
    yield from judge_withheld(platforms, data_root)
    progress("ratios")
    yield from judge_ratios(boards, platforms, data_root)


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}%"


# -- Random layers.

#: Drawn for each platform.
_RANDOM_LAYERS: Final = 60_000


def judge_sweeps(
    platforms: Sequence[FittedPlatform], layers: int, progress: Progress
) -> Iterator[Figure]:
    """Prices that cannot be, among random layers."""
    for platform in platforms:
        progress(f"{layers:,} random layers on {platform.name}")
        found = sweep(platform, layers=layers)
        yield Figure(
            f"{found.layers:,} random layers on {platform.name}: impossible / above 20 rooflines / "
            "cheaper when doubled",
            f"{found.too_fast} / {found.too_slow} / {found.cheaper}",
            "0 / 0 / 0",
            found.impossible == 0,
        )


# -- Priors.

#: By family that is to reach any: factor of half and of 90% of the rows.
_REACH: Final[Mapping[str, tuple[float, float]]] = {
    **dict.fromkeys(("norm", "softmax", "activation"), (1.13, 1.4)),
    **dict.fromkeys(("linear", "matmul", "conv"), (1.22, 1.65)),
    "pool": (1.2, 1.5),
}

_CLASSES: Final[Mapping[DeviceClass, str]] = {
    "gpu": "GPUs",
    "tensor": "tensor cores",
    "cpu": "processors",
}


def judge_kinds(boards: Sequence[Board]) -> Iterator[Figure]:
    """Priors by family, with one device after the other left out."""
    for kind, plural in _CLASSES.items():
        for name, judged in judge_priors(boards, kind).items():
            median = float(np.median([each.median for each in judged]))
            ninety = float(np.median([each.ninety for each in judged]))
            found = f"{median:.2f} / {ninety:.2f}"
            label = "activation, elementwise" if name == "activation" else name
            what = f"{label} on {len(judged)} {plural}, each left out: median / 90% factor"
            if name not in _REACH:
                yield Figure(what, found)
                continue
            most = _REACH[name]
            # As precise as it is printed.
            met = round(median, 2) <= most[0] and round(ninety, 2) <= most[1]
            yield Figure(what, found, f"{most[0]:g} / {most[1]:g}", met)


#: Mean factor of the cards that is to be reached.
_MOST_OF_CARDS: Final = 1.2


def judge_cards(boards: Sequence[Board]) -> Iterator[Figure]:
    """Each of NeuSight's cards priced by the others: every kind of layer counts alike."""
    found: dict[str, float] = {}
    for device in dict.fromkeys(board.device for board in boards if board.kind == "gpu"):
        mine = [board for board in boards if board.device == device and board.kind == "gpu"]
        priors = fit_priors(boards, "gpu", without=device)
        errors = errors_without(mine, priors, stack="neusight")
        if errors:
            size = np.concatenate([np.abs(each) for each in errors.values()])
            weight = np.concatenate([np.full(len(each), 1 / len(each)) for each in errors.values()])
            found[device] = float(np.exp(_weighted_median(size, weight)))
            yield Figure(
                f"{device} left out, {len(errors)} kinds alike: median factor",
                f"{found[device]:.2f}",
            )
    mean = float(np.mean(list(found.values())))
    yield Figure(
        f"mean of these {len(found)} cards",
        f"{mean:.2f}",
        f"{_MOST_OF_CARDS:g}",
        round(mean, 2) <= _MOST_OF_CARDS,
    )


def _weighted_median(values: FloatArray, weight: FloatArray) -> float:
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weight[order])
    return float(values[order][np.searchsorted(reached, reached[-1] / 2)])


# -- Networks on a board without a row.


def without_own_rows(name: str, boards: Sequence[Board]) -> FittedPlatform:
    """A board by its datasheet and by the rows of all others: what the device takes, whatever its
    host does."""
    known, dtype = find_device(name), "float32"
    hardware = known.hardware(dtype)
    priors = fit_priors(boards, device_class(hardware, dtype), without=known.device)
    recipe = Recipe(
        name=name,
        device=known.device,
        dtype=dtype,
        mode="as other devices run layers",
        tiers={"runtime": "datasheet"},
        hardware=hardware,
    )
    ceilings = Ceilings.of(hardware)
    own = {family: prior.on(ceilings) for family, prior in priors.items()}
    return with_intervals(platform_of(recipe, own, {}), recipe, {})


#: The board of the networks, its name in their table, and their batch.
_BOARD: Final = "titan-rtx"
_BOARD_IN_TABLE: Final = "titan_rtx"
_BATCH: Final = 256

#: Networks that were measured, and draws of as many.
_FEW: Final = 3
_DRAWS: Final = 21

#: Pairs of networks that differ by one operation.
_NEIGHBOURS: Final = 20_000


def judge_cells(boards: Sequence[Board], data_root: Path) -> Iterator[Figure]:
    """Networks of NAS-Bench-201 on a Titan RTX: by datasheet and prior, and with three of them."""
    platform = without_own_rows(_BOARD, boards)
    cells = read_cells(data_root, _BOARD_IN_TABLE, _BATCH)
    groups, total = price_cells(platform, cells, _BATCH)
    measured = cells.runtime_ms
    title = f"{len(measured):,} networks of small cells on {platform.device}, batch {_BATCH}"
    one, other = _neighbours(cells, _NEIGHBOURS)
    change = measured[other] / measured[one]
    agrees = np.sign(change - 1) == np.sign(total[other] - total[one])
    shares = []
    for least in (0.02, 0.1):
        seen = np.abs(np.log(change)) > np.log1p(least)
        shares.append(float(agrees[seen].mean()))
    yield Figure(
        f"{title}: direction of one operation, above 2% / 10%",
        " / ".join(_percent(share, 2) for share in shares),
        "99% / 100%",
        shares[0] >= 0.99 and shares[1] >= 1.0,
    )
    yield Figure(
        f"{title}: MAPE, rank correlation, of no network",
        f"{_percent(_mape(total, measured))}, {_ranks(total, measured):.3f}",
    )
    deviations = {name: _deviation(platform, name.split()[0]) for name in groups}
    random = np.random.default_rng(0)
    draws = [
        _with_few(
            groups, measured, random.choice(len(measured), _FEW, replace=False).tolist(), deviations
        )
        for _ in range(_DRAWS)
    ]
    error, ranks = np.median(draws, axis=0).tolist()
    yield Figure(
        f"the same with {_FEW} networks drawn at random, median of {_DRAWS} draws",
        f"{_percent(error)}, {ranks:.3f}",
        "8%, 0.977",
        error <= 0.08 and ranks >= 0.977,
    )


def _deviation(platform: FittedPlatform, kind: str) -> float:
    """Of the logarithm of what a kind is off by: few distinct layers stand for it, so that errors
    of single layers do not average out."""
    prior = platform.inferred[kind].prior
    return float(np.hypot(prior.between, prior.within))


def _with_few(
    groups: Mapping[str, FloatArray],
    measured: FloatArray,
    chosen: Sequence[int],
    deviations: Mapping[str, float],
) -> tuple[float, float]:
    found = sharpened(groups, {place: float(measured[place]) for place in chosen}, deviations)
    rest = np.ones(len(measured), dtype=bool)
    rest[list(chosen)] = False
    return _mape(found[rest], measured[rest]), _ranks(found[rest], measured[rest])


def _mape(predicted: FloatArray, measured: FloatArray) -> float:
    return float(np.abs(predicted / measured - 1).mean())


def _ranks(one: FloatArray, other: FloatArray) -> float:
    """Spearman's rank correlation."""
    from scipy.stats import spearmanr  # noqa: PLC0415 - fitting has loaded it

    return float(spearmanr(one, other).statistic)


def _neighbours(cells: Cells, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of pairs of networks that differ by one operation."""
    random = np.random.default_rng(0)
    places = 5 ** np.arange(cells.operations.shape[1])
    code = cells.operations @ places
    known = {int(each): place for place, each in enumerate(code)}
    one = random.integers(0, len(code), pairs)
    edge = random.integers(0, cells.operations.shape[1], pairs)
    more = random.integers(1, 5, pairs)
    before = cells.operations[one, edge]
    changed = code[one] + ((before + more) % 5 - before) * places[edge]
    other = np.array([known[int(each)] for each in changed])
    return one, other


# -- Rows of a board that its platform was never fitted to.

#: By platform, its board in DeepBench's table, and the device that this is where a sibling.
_WITHHELD: Final[Mapping[str, tuple[str, str]]] = {
    "v100": ("NV_V100", "v100-sxm2"),
    "p100": ("NV_P100", ""),
    "t4": ("NV_T4", ""),
}

_LEAST_COVERAGE: Final = 0.85
_MOST_COVERAGE: Final = 0.95


def _withheld(platform: FittedPlatform, data_root: Path) -> list[Row]:
    """DeepBench's convolutions of 3 x 3 and stride 1 on a board, which recipes leave out."""
    board, sibling = _WITHHELD[platform.name]
    wanted = {"device": board, "precision": "Results FP32 | Float"}
    window = {"R_filter_h": "3", "S_filter_w": "3", "stride_h": "1", "stride_w": "1"}
    path = data_root / "deepbench/conv_forward.csv.gz"
    rows = READERS["deepbench_conv"](path, {"select": {**wanted, **window}})
    if sibling:
        hardware = find_device(sibling).hardware(platform.dtype)
        rows = scaled(rows, hardware, platform.hardware)
    return rows


def judge_withheld(platforms: Sequence[FittedPlatform], data_root: Path) -> Iterator[Figure]:
    """Rows of another stack on the same boards."""
    for platform in platforms:
        if platform.name not in _WITHHELD:
            continue
        rows = _withheld(platform, data_root)
        predicted = platform.predict([row.layer for row in rows])
        measured = np.array([row.runtime_ms for row in rows])
        error = _mape(np.array([each.runtime_ms for each in predicted.layers]), measured)
        held = [
            each.runtime_interval_ms is not None
            and each.runtime_interval_ms.low <= row.runtime_ms <= each.runtime_interval_ms.high
            for each, row in zip(predicted.layers, rows, strict=True)
        ]
        coverage = float(np.mean(held))
        yield Figure(
            f"{len(rows)} convolutions of 3x3 of another stack on {platform.name}: MAPE / coverage",
            f"{_percent(error)} / {_percent(coverage, 0)}",
            "15% / 85-95%",
            error <= 0.15 and _covers(coverage),
        )


def _covers(coverage: float) -> bool:
    return _LEAST_COVERAGE <= round(coverage, 2) <= _MOST_COVERAGE


# -- Ratios of two calls.

#: Pairs of a kind that are looked at.
_PAIRS: Final = 100

_Pair = tuple[Sequence[Layer], Sequence[Layer], float]


def judge_ratios(
    boards: Sequence[Board], platforms: Sequence[FittedPlatform], data_root: Path
) -> Iterator[Figure]:
    """How often the interval of a ratio holds the measured one."""
    unseen = without_own_rows(_BOARD, boards)
    cells = read_cells(data_root, _BOARD_IN_TABLE, _BATCH)
    one, other = _neighbours(cells, _PAIRS)
    pairs = [
        (
            network_layers(cells.operations[before].tolist(), _BATCH),
            network_layers(cells.operations[after].tolist(), _BATCH),
            float(cells.runtime_ms[after] / cells.runtime_ms[before]),
        )
        for before, after in zip(one.tolist(), other.tolist(), strict=True)
    ]
    yield _ratio_figure("small cells that differ by one operation", [(unseen, pairs)])
    ours = [platform for platform in platforms if platform.name in _WITHHELD]
    withheld = [(platform, _withheld(platform, data_root)) for platform in ours]
    cards = list(_cards(boards, data_root))
    for changed, title in enumerate(("twice the batch", "another width")):
        for source, known in (("DeepBench's 3x3 rows", withheld), ("NeuSight's rows", cards)):
            cases = [(platform, _pairs_of(rows, batch=changed == 0)) for platform, rows in known]
            yield _ratio_figure(f"{source}, {title}", cases)


#: NeuSight's cards by their datasheet, each priced without its own rows.
_CARDS: Final[Mapping[str, str]] = {
    "p100": "Tesla P100-PCIE-16GB",
    "v100": "Tesla V100-PCIE-32GB",
    "t4": "Tesla T4",
    "l4": "NVIDIA L4",
}


def _cards(boards: Sequence[Board], data_root: Path) -> Iterator[tuple[FittedPlatform, list[Row]]]:
    tables = {
        "neusight_linear": ("linear_latency_ms.csv.gz", {"split": "test"}),
        "neusight_bmm": ("bmm_test_latency_ms.csv.gz", {}),
        "neusight_vec": ("vec_test_latency_ms.csv.gz", {}),
    }
    for name, card in _CARDS.items():
        rows: list[Row] = []
        for reader, (file, more) in tables.items():
            path = data_root / "neusight" / file
            found = READERS[reader](path, {"select": {"Device": card, **more}})
            rows += [row for row in found if not row.flaw]
        yield without_own_rows(name, boards), rows


def _pairs_of(rows: Sequence[Row], *, batch: bool) -> list[_Pair]:
    """Pairs of layers that differ in one size alone: twice the batch, or a width up to four times
    as large; of each kind as many at most."""
    alike: dict[Hashable, list[tuple[int, Row]]] = {}
    for row in rows:
        sizes = _sizes(row.layer)
        for place in range(1) if batch else range(1, len(sizes)):
            rest = (*sizes[:place], *sizes[place + 1 :])
            shape = row.layer.inputs[0].shape[2:] if row.layer.kind == "conv" else ()
            key = (row.layer.kind, row.layer.op, len(row.layer.inputs), place, rest, shape)
            alike.setdefault(key, []).append((sizes[place], row))
    found: dict[str, list[_Pair]] = {}
    for members in alike.values():
        members.sort(key=itemgetter(0))
        for at, (size, row) in enumerate(members):
            for larger, other in members[at + 1 :]:
                if larger == 2 * size if batch else size < larger <= 4 * size:
                    ratio = other.runtime_ms / row.runtime_ms
                    found.setdefault(row.layer.kind, []).append(([row.layer], [other.layer], ratio))
    random = np.random.default_rng(0)
    return [
        each[place]
        for each in found.values()
        for place in random.permutation(len(each))[: _PAIRS // 5].tolist()
    ]


def _sizes(layer: Layer) -> tuple[int, ...]:
    """The batch, and the widths that a change of a model's width changes."""
    given = layer.inputs[0].shape
    if layer.kind == "conv":
        return (given[0], given[1], layer.weights[0].shape[0])
    if layer.kind == "linear":
        return (*given, layer.outputs[0].shape[-1])
    return (*given, layer.inputs[1].shape[-1]) if layer.kind == "matmul" else given


def _ratio_figure(what: str, cases: Sequence[tuple[FittedPlatform, Sequence[_Pair]]]) -> Figure:
    held: list[bool] = []
    widths: list[float] = []
    for platform, pairs in cases:
        for before, after, ratio in pairs:
            found = ratio_interval(platform.predict(before), platform.predict(after), "runtime")
            if found is not None:
                held.append(found.low <= ratio <= found.high)
                widths.append(float(np.log(found.high / found.low)) / 2)
    if not held:
        return Figure(f"ratios: {what}", "no pair")
    coverage = float(np.mean(held))
    return Figure(
        f"ratios: {what}, {len(held)} pairs: coverage / median half-width",
        f"{_percent(coverage, 0)} / {_percent(float(np.expm1(np.median(widths))), 0)}",
        "85-95%",
        _covers(coverage),
    )
