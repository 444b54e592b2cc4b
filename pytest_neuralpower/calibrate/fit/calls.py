"""Whole calls as evidence: what networks took teaches how the kinds of layers in them run.

A call's time is the sum over groups of layers of a factor times what the prior says. Few calls move
all factors alike, many tell them apart; factors that they cannot tell stay where the prior has
them. Which layer of a call takes how much of it is then inferred, and predictions say so.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as dataclass_replace
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np
from msgspec.structs import replace

from pytest_neuralpower.calibrate.fit.power import power_of_calls
from pytest_neuralpower.calibrate.fit.uncertainty import conformal_distance, with_totals
from pytest_neuralpower.errors import FitError, ImportPathError, NeuralPowerError, ProfileError
from pytest_neuralpower.estimators import Physical
from pytest_neuralpower.estimators.base import need_extra
from pytest_neuralpower.estimators.features import columns, family
from pytest_neuralpower.estimators.physics import Ceilings, least_ms
from pytest_neuralpower.estimators.selection import MIN_GROUPS, Score, grouped_folds
from pytest_neuralpower.estimators.terms import Condition, Regime, assign
from pytest_neuralpower.files import read_table
from pytest_neuralpower.layers import ITEMSIZE
from pytest_neuralpower.model_source import in_folder, read_arguments
from pytest_neuralpower.platform.fusion import fused
from pytest_neuralpower.platform.price import in_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.calibrate.fit.recipe import Recipe, Source
    from pytest_neuralpower.estimators.features import FloatArray
    from pytest_neuralpower.layers import Layer
    from pytest_neuralpower.platform.price import FittedPlatform


@dataclass(frozen=True, slots=True)
class TimedCall:
    """One call of a network on the device.

    Attributes
    ----------
    name
        Of the network.
    group
        What is held out together: networks of one family resemble each other.
    layers
        Different layers of the call, and how many equal ones it has.
    runtime_ms, energy_mj
        Of the call; time NaN where its energy alone is known, energy None where it was not metered.
    part
        Of the table, where calls of one are ranked among themselves: ``batch 32``; else empty.
    """

    name: str
    group: Hashable
    layers: tuple[tuple[Layer, int], ...]
    runtime_ms: float
    energy_mj: float | None = None
    part: str = ""

    @property
    def count(self) -> int:
        """How many layers run."""
        return sum(count for _, count in self.layers)


# -- Reading: tables of calls, whose models are built and traced.


class _Model(NamedTuple):
    """What is built, and how it runs: its import path, the arguments of its factory, the dtype that
    it is converted to, and the dtype of autocast."""

    target: str
    arguments: tuple[tuple[str, Any], ...] = ()
    dtype: str = ""
    autocast: str = ""


class _Row(NamedTuple):
    """A line of a table, before its model was traced."""

    line: int
    name: str
    group: str
    model: _Model
    inputs: tuple[str, ...]
    runtime_ms: float
    energy_mj: float | None = None
    parameters: float | None = None
    part: str = ""


class _Traced(NamedTuple):
    """The layers of one call without their paths, which of them each reads, and how many parameters
    its model has."""

    layers: tuple[Layer, ...]
    reads: tuple[tuple[int, ...], ...]
    parameters: int


#: A model whose parameters differ from the table's by more than this share is another model, such
#: as one whose branches were merged before it was timed.
_OTHER_MODEL: Final = 0.003
#: Tables round to so many parameters.
_ROUNDED: Final = 5000


def read_all_calls(
    recipe: Recipe, data_root: Path | None, progress: Callable[[str], None]
) -> tuple[list[TimedCall], Recipe]:
    """The calls of a recipe's sources, and the recipe with their numbers; raises as
    :func:`read_calls` does."""
    calls: list[TimedCall] = []
    sources = []
    for source in recipe.calls:
        found, left_out = read_calls(recipe, source, data_root, progress)
        calls += found
        sources.append(replace(source, rows=len(found), left_out=left_out))
    return calls, replace(recipe, calls=tuple(sources))


def read_calls(
    recipe: Recipe,
    source: Source,
    data_root: Path | None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[list[TimedCall], Mapping[str, int]]:
    """The calls of one source, and how many were left out, by reason. Of a source with the option
    ``thin`` (1 by default) every so-many-th call is read.

    Raises
    ------
    ProfileError
        The table cannot be read, or none of its calls can be traced.
    """
    reader = READERS.get(source.reader or "")
    if reader is None:
        raise ProfileError(
            f"recipe of {recipe.name}: unknown reader {source.reader!r} of calls; there are "
            f"{', '.join(READERS)}"
        )
    rows = reader(recipe, source, data_root)[:: int(source.options.get("thin", 1))]
    own = source.reader == "runs"  # of models that may change, and of a few of them
    trace = _traced_call if own else _traces(recipe.folder.parent / ".traces")
    found, left_out, reason = [], Counter[str](), ""
    for number, row in enumerate(rows):
        if number % 25 == 0:
            progress(f"tracing {source.path or 'calls'}, {number} of {len(rows)}")
        try:
            traced = trace(row.model, row.inputs, _tracing_version())
        except NeuralPowerError as error:
            if own:
                raise ProfileError(f"{source.path}, line {row.line}: {error}") from None
            left_out["not traced"] += 1
            reason = reason or f"; the first: {row.name}: {error}"
            continue
        if row.parameters and (
            abs(traced.parameters - row.parameters) > _OTHER_MODEL * row.parameters + _ROUNDED
        ):
            left_out["of another number of parameters than the model"] += 1
            continue
        run = traced.layers
        if recipe.fused:
            run = fused(run, traced.reads, folds=recipe.fused == "folded")
        layers = tuple(Counter(run).items())
        known = row.runtime_ms, row.energy_mj, row.part
        found.append(TimedCall(row.name, row.group, layers, *known))
    if not rows:
        raise ProfileError(f"{source.path}: the table has no calls")
    if not found:
        raise ProfileError(
            f"recipe of {recipe.name}: no call of {source.path} can be used; "
            f"{', '.join(f'{count} {what}' for what, count in left_out.items())}{reason}"
        )
    return found, dict(sorted(left_out.items()))


def _traces(folder: Path) -> Callable[..., _Traced]:
    """What traces one call, and keeps it in ``folder``: hundreds of models take minutes."""
    try:
        from joblib import Memory  # noqa: PLC0415 - of scikit-learn, which only fitting needs
    except ImportError:
        raise need_extra("joblib") from None
    return Memory(folder, compress=3, verbose=0).cache(_traced_call)  # type: ignore[no-any-return]


def _traced_call(
    how: _Model,
    inputs: tuple[str, ...],
    version: str,  # noqa: ARG001 - a part of the key
) -> _Traced:
    from pytest_neuralpower.model_source import parse_inputs  # noqa: PLC0415 - loads torch
    from pytest_neuralpower.tracing import trace  # noqa: PLC0415

    model = _built(how)
    positional, keywords = parse_inputs(inputs)
    found = trace(
        _under_autocast(model, how.autocast) if how.autocast else model, *positional, **keywords
    )
    parameters = sum(each.numel() for each in model.parameters())
    same: dict[Layer, Layer] = {}  # one object each: what is kept is much smaller
    nameless = [replace(layer, path="") for layer in found]
    layers = tuple(same.setdefault(layer, layer) for layer in nameless)
    return _Traced(layers, found.reads, parameters)


@lru_cache(maxsize=1)  # tables time one model at several sizes
def _built(how: _Model) -> Any:
    import torch  # noqa: PLC0415 - slow

    from pytest_neuralpower.model_source import load_model  # noqa: PLC0415 - loads torch

    model = load_model(how.target, dict(how.arguments), in_file=True).eval()
    return model.to(getattr(torch, how.dtype)) if how.dtype else model


def _under_autocast(model: Any, dtype: str) -> Any:
    import torch  # noqa: PLC0415 - slow

    class Autocast(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            with torch.autocast("cuda", getattr(torch, dtype)):
                return self.model(*args, **kwargs)

    return Autocast().eval()


@cache
def _tracing_version() -> str:
    """Changes with the code that traces, and with torch."""
    import torch  # noqa: PLC0415 - slow

    package = Path(__file__).parents[2]
    files = [package / "layers.py", *sorted((package / "tracing").rglob("*.py"))]
    content = b"".join(file.read_bytes() for file in files)
    return f"{torch.__version__} {sha256(content).hexdigest()[:16]}"


def table(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Lines of a CSV file, perhaps compressed, with their numbers.

    Raises
    ------
    ProfileError
        It cannot be read, or a column that is needed is not there.
    """
    for line, record in read_table(path, file=str(path), error=ProfileError):
        missing = [name for name in needed if name not in record]
        if missing:
            raise ProfileError(
                f"{path}: column {missing[0]!r} is missing; a table of calls has "
                f"{', '.join(needed)}, parted by commas"
            )
        if None in record:
            raise ProfileError(
                f"{path}, line {line}: it has more fields than the header; put quotes around a "
                'field that has commas, such as "1,3,224,224"'
            )
        yield line, record


def _number(path: Path, line: int, record: Mapping[str, str], name: str) -> float:
    text = record.get(name) or ""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < np.inf:
        raise ProfileError(f"{path}, line {line}: {name} {text!r} must be a number above 0")
    return value


def _public(recipe: Recipe, data_root: Path | None) -> Path:
    """Folder of the public tables; raises ProfileError where nobody said which."""
    if data_root is None:
        raise ProfileError(
            f"recipe of {recipe.name} reads public tables: say where they are (--data DIR)"
        )
    return data_root


def timm_calls(recipe: Recipe, source: Source, data_root: Path | None) -> list[_Row]:
    """timm's tables of inference: ``model`` builds a model from its name and size of images."""
    root, options = _public(recipe, data_root), source.options
    path = root / source.path
    families = {
        record["model"]: record["family"]
        for _, record in table(root / str(options["families"]), ("model", "family"))
    }
    target = in_folder(str(options["model"]), recipe.folder)
    found = []
    needed = ("model", "infer_img_size", "infer_batch_size", "infer_step_time", "param_count")
    for line, record in table(path, needed):
        name, size = record["model"], record["infer_img_size"]
        arguments = (("img_size", int(size)), ("name", name))
        found.append(
            _Row(
                line,
                name,
                families.get(name, name),
                _Model(target, arguments, autocast=str(options.get("autocast", ""))),
                (f"{record['infer_batch_size']},3,{size},{size}",),
                _number(path, line, record, "infer_step_time"),
                parameters=_number(path, line, record, "param_count") * 1e6,
            )
        )
    return found


def mlperf_calls(recipe: Recipe, source: Source, data_root: Path | None) -> list[_Row]:
    """MLPerf's results of boards with power, one image a call: ``model`` builds a model from the
    submitter's name of the network and its width. Families are generations of networks."""
    root, options = _public(recipe, data_root), source.options
    path = root / source.path
    target = in_folder(str(options["model"]), recipe.folder)
    found = []
    for line, record in table(path, ("network", "width", "image", "latency_mean_ms", "energy_mj")):
        if any(record.get(name) != value for name, value in options.get("select", {}).items()):
            continue
        network, side = record["network"], record["image"]
        found.append(
            _Row(
                line,
                f"{network} {record['width']} {side}",
                network[: len("mobilenet-v1")],
                _Model(target, (("network", network), ("width", record["width"]))),
                (f"1,3,{side},{side}",),
                _number(path, line, record, "latency_mean_ms"),
                _number(path, line, record, "energy_mj"),
            )
        )
    return found


def help_calls(recipe: Recipe, source: Source, data_root: Path | None) -> list[_Row]:
    """HELP's times of all cells of NAS-Bench-201, images of 32 pixels a side: ``model`` builds a
    network from its cell. Of the table's cells in their order each ``every``-th is taken."""
    root, options = _public(recipe, data_root), source.options
    path, every = root / source.path, int(options["every"])
    target = in_folder(str(options["model"]), recipe.folder)
    places: dict[str, int] = {}
    found = []
    for line, record in table(path, ("architecture", "device", "batch", "latency_ms")):
        cell, batch = record["architecture"], record["batch"]
        place = places.setdefault(cell, len(places))
        if place % every or not options["select"].items() <= record.items():
            continue
        found.append(
            _Row(
                line,
                f"{cell} of {batch}",
                cell,
                _Model(target, (("cell", cell),)),
                (f"{batch},3,32,32",),
                _number(path, line, record, "latency_ms"),
                part=f"batch {batch}",
            )
        )
    return sorted(found, key=lambda row: places[row.group])  # each model is built once


#: Columns that a user's own table must have, and all that it may.
NEEDED: Final = ("model", "inputs", "runtime_ms")
_RUN_COLUMNS: Final = (
    *("model", "arguments", "inputs", "runtime_ms", "energy_mj"),
    *("dtype", "autocast", "family", "mode"),
)


def run_calls(recipe: Recipe, source: Source, data_root: Path | None) -> list[_Row]:  # noqa: ARG001
    """A table of one's own: a line a call.

    ``model`` (an import path), ``inputs`` (``1,3,224,224 mask=1,128:bool``: one or several, parted
    by blanks) and ``runtime_ms`` or ``energy_mj`` are needed. ``arguments`` (of the factory,
    ``depth=50 pretrained=false``), ``dtype`` (that the model is converted to), ``autocast``,
    ``family`` (what is held out together; the model by default) and ``mode`` may be there.

    Raises
    ------
    ProfileError
        A line is not what it must be, or calls ran in several modes.
    """
    path = recipe.folder / source.path
    found = []
    modes: dict[str, int] = {}
    metered = any("energy_mj" in record for _, record in table(path, ()))
    for line, record in table(path, NEEDED[:2] if metered else NEEDED):
        for name in record:
            if name not in _RUN_COLUMNS:
                raise ProfileError(
                    f"{path}: unknown column {name!r}; a table of calls has "
                    f"{', '.join(_RUN_COLUMNS)}"
                )
        modes.setdefault(record.get("mode") or "", line)
        timed = bool(record.get("runtime_ms") or not record.get("energy_mj"))
        found.append(
            _Row(
                line,
                record["model"],
                record.get("family") or record["model"],
                _of_run(record, path, line),
                tuple(record["inputs"].split()),
                _number(path, line, record, "runtime_ms") if timed else np.nan,
                _number(path, line, record, "energy_mj") if record.get("energy_mj") else None,
            )
        )
    if len(modes) > 1:
        both = ", ".join(f"{mode or 'none'} (line {line})" for mode, line in modes.items())
        raise ProfileError(f"{path}: a platform has one mode, these calls have {both}: part them")
    return found


def _of_run(record: Mapping[str, str], path: Path, line: int) -> _Model:
    """What a line of a user's table says of its model."""
    for column in ("dtype", "autocast"):
        if (name := record.get(column)) and name not in ITEMSIZE:
            raise ProfileError(
                f"{path}, line {line}: {column} {name!r} is not one of {', '.join(ITEMSIZE)}"
            )
    try:
        arguments = read_arguments((record.get("arguments") or "").split())
    except ImportPathError as error:
        raise ProfileError(f"{path}, line {line}: {error}") from None
    return _Model(
        in_folder(record["model"], path.parent),
        tuple(sorted(arguments.items())),
        record.get("dtype") or "",
        record.get("autocast") or "",
    )


def run_model(record: Mapping[str, str], path: Path, line: int) -> Any:
    """The model of a line of a user's table, as it runs.

    Raises
    ------
    ProfileError, ImportPathError
        The line is not what it must be, or the model cannot be built.
    """
    how = _of_run(record, path, line)
    model = _built(how)
    return _under_autocast(model, how.autocast) if how.autocast else model


#: Readers of whole calls, by name.
READERS: Final[Mapping[str, Callable[[Recipe, Source, Path | None], list[_Row]]]] = {
    "help": help_calls,
    "mlperf": mlperf_calls,
    "runs": run_calls,
    "timm": timm_calls,
}


# -- Groups of layers that run alike.

#: Channels that fill the tiles of tensor cores.
_ALIGNED: Final = (Condition("cin", "%", 8.0), Condition("cout", "%", 8.0))


_BATCH_NORM: Final = Condition("op", "is", "batch_norm")

#: On a processor, tensors of a layer that together exceed this share of the last cache come from
#: memory: of 1, 1/4 and 1/8 what predicts whole families of networks best on an i7-12700H.
_OF_CACHE: Final = 0.25


def _regimes(ridge: float) -> Mapping[str, Sequence[tuple[str, tuple[Condition, ...]]]]:
    """Groups of each family in order, the first that holds counts; others are one group.

    Parameters
    ----------
    ridge
        Operations per byte at which the device computes as long as it moves.
    """
    computing = Condition("intensity", ">=", ridge)
    joined = Condition("bytes_in", "<=", 0.0)
    kernels = {
        "1x1": (Condition("kernel_area", "==", 1.0),),
        "3x3": (Condition("kernel_area", "==", 9.0), Condition("stride", "==", 1.0)),
        "other kernels": (),
    }
    several = Condition("groups", ">=", 2.0)
    conv = [
        ("of images", (Condition("cin", "<=", 4.0),)),
        ("grouped, up to 16 wide", (several, Condition("n", "<=", 16.0))),
        (
            "grouped, 32 or 64 wide",
            (several, Condition("n", "%", 32.0), Condition("n", "<=", 64.0)),
        ),
        ("grouped, wider multiples of 32", (several, Condition("n", "%", 32.0))),
        ("grouped, other widths", (several,)),
    ]
    for name, kernel in kernels.items():
        for bound, when in (("computing", (computing,)), ("moving", ())):
            for widths, aligned in (("multiples of 8", _ALIGNED), ("other widths", ())):
                conv.append((f"{name}, {widths}, {bound}", (*kernel, *when, *aligned)))
    depthwise = [
        (f"up to {edge}x{edge}, stride {stride}", (area, Condition("stride", step, float(stride))))
        for edge in (3, 5, 7)
        for area in (Condition("kernel_area", "<=", float(edge**2)),)
        for stride, step in (("1", "=="), ("2", ">="))
    ]

    def ops(*names: str) -> list[tuple[str, tuple[Condition, ...]]]:
        return [(name, (Condition("op", "is", name),)) for name in names]

    return {
        "conv": conv,
        "conv.depthwise": [*depthwise, ("larger, stride 1", (Condition("stride", "==", 1.0),))],
        "linear": [("computing", (computing,))],
        "matmul": [("computing", (computing,))],
        "norm": [
            # Of weights, as a rule: networks without norms standardise them in every call.
            ("by statistics of their own", (_BATCH_NORM, Condition("training", ">=", 1.0))),
            *ops("batch_norm", "layer_norm", "group_norm", "rms_norm"),
        ],
        # Within another's kernel they cost their arithmetic and what it writes.
        "activation": [
            group
            for name, when in (*ops("gelu", "silu", "hardswish"), ("others", ()))
            for group in ((f"{name}, joined", (*when, joined)), (name, when))
        ],
        "elementwise": ops("mul"),
        "memory": ops(
            *("to", "contiguous", "reshape", "cat", "pad", "roll", "repeat", "getitem"),
            "interpolate",
        ),
    }


def _empty(name: str, hardware: Mapping[str, float]) -> list[Regime]:
    """The groups of a family, before their factors are known."""
    groups = list(_regimes(hardware["peak_gflops"] / hardware["bandwidth_gbs"]).get(name, ()))
    if not groups or groups[-1][1]:
        groups.append(("rest", ()))
    ceilings = Ceilings.of(hardware)
    if not ceilings.gpu and ceilings.cache_mb:
        beyond = Condition("bytes_moved", ">=", _OF_CACHE * ceilings.cache_mb * 1e6)
        groups = [
            group
            for label, when in groups
            for group in ((f"{label}, from memory", (*when, beyond)), (label, when))
        ]
    return [Regime(label, ("prior",), when, {"prior": 1.0}) for label, when in groups]


# -- Fitting.

#: Relative errors beyond this count by their size, not their square.
_LARGE_ERROR: Final = 0.1
_REWEIGHINGS: Final = 6

#: Pull towards the prior: what the square of a factor's distance from 1 counts against the squares
#: of calls' errors. Chosen on one board (RTX 3090) of 0.01, 0.03 and 0.1, whose errors differ by
#: less than half a point.
_PULL: Final = 0.03

#: Fewer families of networks pull by a deviation of a half.
_FEW_FAMILIES: Final = 10
_PULL_OF_FEW: Final = 0.4

_FOLDS: Final = 10

#: What families with rows of their own leave of a call, at least.
_LEAST_LEFT: Final = 0.05

#: A factor on the prior that nothing explains any more.
_MOST: Final = 15.0


def fit_factors(
    parts: FloatArray, runtime_ms: FloatArray, floor: FloatArray, *, families: int = _FEW_FAMILIES
) -> FloatArray:
    """Factors by which groups of layers take longer than the prior says.

    Least squares on relative errors, large ones counting by their size, with a pull towards 1; of
    few families of networks, which cannot tell all groups apart, more strongly towards the median.

    Parameters
    ----------
    parts
        What the prior says of each group in each call, ms, shape ``(calls, groups)``.
    runtime_ms
        Of each call, shape ``(calls,)``.
    floor
        Least factor of each group, shape ``(groups,)``: what the ceilings allow.
    families
        Of networks; by default enough.
    """
    try:
        from scipy.optimize import lsq_linear  # noqa: PLC0415 - only fitting needs it
    except ImportError:
        raise need_extra("SciPy") from None
    calls, groups = parts.shape
    relative = parts / runtime_ms[:, None]
    few = families < _FEW_FAMILIES
    usual = 1.0
    if few:
        usual = float(np.median(1.0 / np.maximum(relative.sum(axis=1), 1.0 / _MOST)))
    pulled = np.eye(groups) * (_PULL_OF_FEW if few else _PULL) ** 0.5
    lowest = np.minimum(floor, 1.0)
    weight, found = np.ones(calls), np.ones(groups)
    for _ in range(_REWEIGHINGS):
        root = np.sqrt(weight)
        matrix = np.concatenate([relative * root[:, None], pulled])
        wanted = np.concatenate([root, usual * pulled.sum(axis=1)])
        # The triangle of the matrix has the same least squares, in as many rows as groups.
        basis, triangle = np.linalg.qr(matrix)
        found = lsq_linear(triangle, basis.T @ wanted, (lowest, np.full(groups, _MOST))).x
        error = np.abs(relative @ found - 1)
        weight = np.minimum(1.0, _LARGE_ERROR / np.maximum(error, 1e-9))
    return np.asarray(found)


@dataclass(frozen=True, slots=True)
class _Parts:
    """Calls as what the prior says of the groups of their layers.

    Attributes
    ----------
    places
        Family, and number of its group.
    prior_ms
        Shape ``(calls, groups)``.
    fixed_ms
        Of families with rows of their own, and of layers joined to others, shape ``(calls,)``.
    floor
        Least factor of each group.
    families
        Number of families of networks.
    """

    places: tuple[tuple[str, int], ...]
    prior_ms: FloatArray
    fixed_ms: FloatArray
    floor: FloatArray
    families: int


def _parts(platform: FittedPlatform, calls: Sequence[TimedCall]) -> _Parts:
    groups: dict[tuple[str, int], int] = {}
    rows: list[dict[int, float]] = []
    fixed = np.zeros(len(calls))
    least: dict[int, float] = defaultdict(float)
    whole: dict[int, float] = defaultdict(float)
    for row, call in enumerate(calls):
        found: dict[int, float] = {}
        layers = [layer for layer, _ in call.layers]
        counts = np.array([count for _, count in call.layers])
        times = np.array([each.runtime_ms for each in platform.predict(layers).layers]) * counts
        members: dict[str, list[int]] = {}
        for place, layer in enumerate(layers):
            members.setdefault(family(layer), []).append(place)
        for name, places in members.items():
            if name in platform.families:
                fixed[row] += times[places].sum()
                continue
            # As the platform prices them: by their columns in its own dtype.
            alike = [in_dtype(layers[place], platform.dtype) for place in places]
            estimator = platform.inferred[name]
            values = estimator.seen(columns(name, alike))
            which = assign(_empty(name, platform.hardware), values)
            share = least_ms(name, values, estimator.ceilings) / values["prior_ms"]
            # What a layer takes in another's kernel says nothing of it by itself.
            alone = values["bytes_in"] + values["bytes_out"] > 0
            fixed[row] += times[places][~alone].sum()
            for place, group, floor in zip(
                np.array(places)[alone].tolist(),
                which[alone].tolist(),
                share[alone].tolist(),
                strict=True,
            ):
                at = groups.setdefault((name, group), len(groups))
                found[at] = found.get(at, 0.0) + float(times[place])
                least[at] += float(times[place] * floor) / call.runtime_ms
                whole[at] += float(times[place]) / call.runtime_ms
        rows.append(found)
    prior = np.zeros((len(calls), len(groups)))
    for row, found in enumerate(rows):
        prior[row, list(found)] = list(found.values())
    floor = np.array([least[at] / whole[at] for at in range(len(groups))])
    families = len({call.group for call in calls})
    return _Parts(tuple(groups), prior, fixed, floor, families)


class HostAccuracy(msgspec.Struct, frozen=True):
    """How calls are predicted that wait for the host's launches, by launches of other families.

    Attributes
    ----------
    held_out
        Errors of their runtime.
    factor
        90% of them are within it.
    inside
        Calls within what other hosts differ by, which is their interval.
    """

    held_out: Score
    factor: float
    inside: int


class CallsAccuracy(msgspec.Struct, frozen=True, omit_defaults=True):
    """How calls are predicted whose family no fit has seen.

    Attributes
    ----------
    calls, families
        Numbers of both.
    waiting
        Calls that take no longer than the host's launches, and so tell nothing of the device.
    held_out
        Errors of their runtime.
    prior
        Errors before any call was fitted.
    from_20
        Errors by 20 calls of as many families, on calls of all others: means of ten draws.
    host
        Of the waiting calls, where these are enough to tell what launches take.
    parts
        By part of the table, number of its calls, their mean error (%) and Spearman's correlation
        of measured and predicted; empty where it has no parts.
    metered_alone
        Of the calls, those whose time was told by their energy.
    """

    calls: int
    families: int
    waiting: int
    held_out: Score
    prior: Score
    from_20: Score | None
    host: HostAccuracy | None = None
    parts: Mapping[str, Mapping[str, float]] = {}
    metered_alone: int = 0


#: As many calls as a user may have, and how often they are drawn.
_FEW: Final = 20
_DRAWS: Final = 10


#: Calls that take this many times what is predicted, or this part of it, are in another unit.
_OTHER_UNIT: Final = 50.0


def check_units(
    calls: Sequence[TimedCall],
    predicted_ms: FloatArray,
    platform: FittedPlatform,
    table: Path | None = None,
) -> None:
    """Refuse calls whose times or energies no such device has, as in other units.

    Raises
    ------
    FitError
        One line says how far off they are.
    """
    where = f"{table}: " if table else ""
    ratios = np.array([call.runtime_ms for call in calls]) / predicted_ms
    ratios = ratios[np.isfinite(ratios)]  # some calls have an energy alone
    off = float(np.median(ratios)) if len(ratios) else 1.0
    if not 1 / _OTHER_UNIT < off < _OTHER_UNIT:
        raise FitError(
            f"{where}half of the calls take {off:.4g} times what {platform.name} predicts: "
            "runtime_ms is in ms (a second has 1000); or another device ran them"
        )
    limit = platform.hardware.get("limit_w")
    drawn = [
        call.energy_mj / call.runtime_ms
        for call in calls
        if call.energy_mj and np.isfinite(call.runtime_ms)
    ]
    watts = float(np.median(drawn)) if drawn else 0.0
    if limit and drawn and not limit / _OTHER_UNIT < watts < 2 * limit:
        raise FitError(
            f"{where}half of the metered calls draw {watts:.4g} W, of a device of {limit:g} W: "
            "energy_mj is in mJ (a joule has 1000), runtime_ms in ms"
        )


def fit_calls(
    platform: FittedPlatform,
    calls: Sequence[TimedCall],
    progress: Callable[[str], None] = lambda _: None,
    *,
    one_kind: bool = False,
) -> FittedPlatform:
    """The platform with the factors that whole calls show on families without rows of their own.

    Families with rows keep their prices. Layers of the others stay flagged as inferred; intervals
    of totals are those of calls whose group was left out. Where many calls wait for the host, they
    show what launches take.

    Parameters
    ----------
    one_kind
        Whether all networks are of one kind, and so do not tell how alike the errors of others are;
        False by default.

    Raises
    ------
    FitError
        There are too few calls to hold any out.
    """
    given, metered_alone = calls, [bool(np.isnan(call.runtime_ms)) for call in calls]
    calls = _with_times(platform, calls)
    # A call that waits for the host tells nothing of the device.
    launch = 0.0 if platform.host is None else platform.host.layer_ms
    waits = [one for one in calls if one.runtime_ms <= launch * one.count]
    known, calls = len(calls), [one for one in calls if one.runtime_ms > launch * one.count]
    waiting = len(waits)
    progress(f"pricing {len(calls):,} calls")
    parts = _parts(platform, calls)
    check_units(calls, parts.prior_ms.sum(axis=1) + parts.fixed_ms, platform)
    runtime = np.array([call.runtime_ms for call in calls])
    groups = [call.group for call in calls]
    if (count := len(set(groups))) < MIN_GROUPS:
        left_out = (
            f"{waiting} of {known} calls are left out: they take less than {launch * 1e3:.0f} µs a "
            "layer, so eager PyTorch waits for the host (measure larger batches, or check that "
            "runtime_ms is in ms); "
        )
        raise FitError(
            f"{left_out if waiting else ''}{count} families of networks are left, and {MIN_GROUPS} "
            "are needed to hold any out: measure other networks too"
        )
    fold = grouped_folds(groups, _FOLDS)
    held_out = np.empty(len(calls))
    progress(f"fitting {len(calls):,} calls")
    for number in range(int(fold.max()) + 1):
        out = fold == number
        held_out[out] = _predicted(parts, runtime, ~out, out)
    platform, of_host, held_out_waits = _with_host(platform, waits)
    accuracy = CallsAccuracy(
        len(calls),
        len(set(groups)),
        waiting,
        Score.of(held_out, runtime),
        Score.of(parts.prior_ms.sum(axis=1) + parts.fixed_ms, runtime),
        _from_few(parts, runtime, groups),
        of_host,
        _by_part([*calls, *waits], np.concatenate([held_out, held_out_waits])),
        sum(metered_alone),
    )
    every = np.ones(len(calls), dtype=bool)
    platform = _corrected(platform, parts, _factors(parts, runtime, every))
    platform = replace(
        platform, accuracy={**platform.accuracy, "calls": msgspec.to_builtins(accuracy)}
    )
    progress("intervals of calls")
    layers = [[layer for layer, count in call.layers for _ in range(count)] for call in calls]
    alone = {each.layers for each, known in zip(given, metered_alone, strict=True) if known}
    watts = [
        None if each.layers in alone else each.energy_mj and each.energy_mj / each.runtime_ms
        for each in calls
    ]
    platform = power_of_calls(platform, layers, watts, groups)
    if len(known := (platform.accuracy.get("power") or {}).get("networks", {})) == len(calls):
        held_out_w = np.array([each["held_out_w"] for each in known.values()])
        energy = np.array([call.energy_mj for call in calls], dtype=np.float64)
        score = msgspec.to_builtins(Score.of(held_out * held_out_w, energy))
        fitted = {**platform.accuracy["calls"], "energy": score}
        platform = replace(platform, accuracy={**platform.accuracy, "calls": fitted})
    return with_totals(platform, layers, runtime, held_out, groups, correlated=not one_kind)


def _by_part(calls: Sequence[TimedCall], held_out: FloatArray) -> dict[str, dict[str, float]]:
    """What is known of each part of the table."""
    places: dict[str, list[int]] = {}
    for place, (call, predicted) in enumerate(zip(calls, held_out.tolist(), strict=True)):
        if call.part and np.isfinite(predicted):
            places.setdefault(call.part, []).append(place)
    found = {}
    for part, some in places.items():
        measured = np.array([calls[place].runtime_ms for place in some])
        error = 100 * float(np.mean(np.abs(held_out[some] / measured - 1)))
        ranks = np.argsort(np.argsort([measured, held_out[some]], kind="stable"))
        rank = float(np.asarray(np.corrcoef(ranks))[0, 1])
        found[part] = {"calls": len(some), "mape": round(error, 2), "spearman": round(rank, 4)}
    return found


# -- The host, from calls that wait for it: operations of some kinds take it longer than of others.

#: Least share of the usual launch that one of a kind takes.
_LEAST_LAUNCH: Final = 0.1


def _with_host(
    platform: FittedPlatform, waits: Sequence[TimedCall]
) -> tuple[FittedPlatform, HostAccuracy | None, FloatArray]:
    """The platform whose launches take what calls show that wait for them, how well these are
    predicted without their group, and so predicted runtimes (ms); as it is where they are few."""
    groups = [call.group for call in waits]
    host = platform.host
    if host is None or len(set(groups)) < _FEW:
        return platform, None, np.full(len(waits), np.nan)
    kinds = sorted({layer.kind for call in waits for layer, _ in call.layers})
    launched = np.zeros((len(waits), len(kinds)))
    for row, call in enumerate(waits):
        for layer, count in call.layers:
            launched[row, kinds.index(layer.kind)] += count * host.layer_ms
    runtime = np.array([call.runtime_ms for call in waits])

    def fitted(seen: NDArray[np.bool_]) -> tuple[float, FloatArray]:
        usual = float(np.median(runtime[seen] / launched[seen].sum(axis=1)))
        least = np.full(len(kinds), _LEAST_LAUNCH)
        return usual, fit_factors(usual * launched[seen], runtime[seen], least)

    fold = grouped_folds(groups, _FOLDS)
    held_out = np.empty(len(waits))
    for number in range(int(fold.max()) + 1):
        usual, factors = fitted(fold != number)
        held_out[fold == number] = usual * (launched[fold == number] @ factors)
    off = np.log(runtime / held_out)
    accuracy = HostAccuracy(
        Score.of(held_out, runtime),
        round(float(np.exp(conformal_distance(off, groups))), 3),
        int((np.abs(off) <= np.log(host.factor)).sum()),
    )
    usual, factors = fitted(np.ones(len(waits), dtype=bool))
    times = {kind: _rounded(each) for kind, each in zip(kinds, factors.tolist(), strict=True)}
    host = replace(host, layer_ms=_rounded(usual * host.layer_ms), kinds=times)
    return replace(platform, host=host), accuracy, held_out


def _with_times(platform: FittedPlatform, calls: Sequence[TimedCall]) -> Sequence[TimedCall]:
    """The calls, whose time is what their energy takes at the power of the others where it alone is
    known; at the platform's own power where no other has both."""
    both = [call.energy_mj / call.runtime_ms for call in calls if call.energy_mj]
    both = [watts for watts in both if not np.isnan(watts)]
    found = []
    for call in calls:
        if not np.isnan(call.runtime_ms) or call.energy_mj is None:
            found.append(call)
            continue
        layers = [layer for layer, count in call.layers for _ in range(count)]
        watts = float(np.median(both)) if both else platform.predict(layers).power_w
        if watts is None:
            raise FitError(
                f"{call.name}: its energy alone is known, and no call has both energy_mj and "
                "runtime_ms to tell the power by: time one of them"
            )
        found.append(dataclass_replace(call, runtime_ms=call.energy_mj / watts))
    return found


def _factors(parts: _Parts, runtime: FloatArray, some: NDArray[np.bool_]) -> FloatArray:
    left = np.maximum(runtime - parts.fixed_ms, _LEAST_LEFT * runtime)
    return fit_factors(parts.prior_ms[some], left[some], parts.floor, families=parts.families)


def _predicted(
    parts: _Parts, runtime: FloatArray, seen: NDArray[np.bool_], wanted: NDArray[np.bool_]
) -> FloatArray:
    """Runtime of the calls that are wanted, by those that are seen."""
    factors = _factors(parts, runtime, seen)
    return np.asarray(parts.prior_ms[wanted] @ factors + parts.fixed_ms[wanted])


def _from_few(parts: _Parts, runtime: FloatArray, groups: Sequence[Hashable]) -> Score | None:
    """How a few calls do; None where there are hardly more."""
    families = list(dict.fromkeys(groups))
    if len(families) < 2 * _FEW:
        return None
    which = np.array([families.index(group) for group in groups])
    random = np.random.default_rng(0)
    predicted, measured = [], []
    for _ in range(_DRAWS):
        drawn = random.choice(len(families), _FEW, replace=False)
        seen = np.zeros(len(groups), dtype=bool)
        seen[[random.choice(np.flatnonzero(which == family)) for family in drawn]] = True
        wanted = ~np.isin(which, drawn)
        predicted.append(_predicted(parts, runtime, seen, wanted))
        measured.append(runtime[wanted])
    return Score.of(np.concatenate(predicted), np.concatenate(measured))


def _corrected(platform: FittedPlatform, parts: _Parts, factors: FloatArray) -> FittedPlatform:
    """The platform whose priors have these factors."""
    by_family: dict[str, dict[int, float]] = {}
    for (name, group), factor in zip(parts.places, factors.tolist(), strict=True):
        by_family.setdefault(name, {})[group] = factor
    weight = {
        place: float(share)
        for place, share in zip(parts.places, parts.prior_ms.sum(axis=0), strict=True)
    }
    inferred = dict(platform.inferred)
    for name, known in by_family.items():
        total = sum(weight[name, group] for group in known)
        usual = sum(weight[name, group] * factor for group, factor in known.items()) / total
        regimes = [
            replace(regime, rates={"prior": _rounded(known.get(number, usual))})
            for number, regime in enumerate(_empty(name, platform.hardware))
        ]
        estimator = inferred[name]
        logs = np.log(np.maximum([*known.values(), usual], 1e-3))
        inferred[name] = replace(
            estimator,
            inner=Physical(
                regimes,
                platform.hardware["peak_gflops"],
                platform.hardware["bandwidth_gbs"],
                rescale=False,
            ),
            center_=_rounded(float(np.log(max(usual, 1e-3)))),
            bounds_=(_rounded(float(logs.min())), _rounded(float(logs.max()))),
        )
    return replace(platform, inferred=inferred)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
