"""Readers of public tables: measured rows in memory, never copied here."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from msgspec import structs

from pytest_neuralpower import files
from pytest_neuralpower.calibrate.fit.devices import find_device
from pytest_neuralpower.calibrate.fit.profile import read_profile
from pytest_neuralpower.calibrate.fit.rows import (
    Row,
    conv_layer,
    linear_layer,
    matmul_layer,
    pool_layer,
    streaming_layer,
)
from pytest_neuralpower.errors import ProfileError
from pytest_neuralpower.estimators.features import columns, family
from pytest_neuralpower.estimators.physics import Ceilings, roofline_ms
from pytest_neuralpower.layers import Layer, TensorSpec

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.fit.recipe import Recipe, Source

#: Where the public tables are, where not in ``../shared/data`` next to the repository.
DATA_VARIABLE: Final = "NEURALPOWER_DATA"

Options = Mapping[str, Any]
Record = dict[str, str]


def data_root(repository: Path) -> Path:
    """Folder of the public tables.

    Raises
    ------
    ProfileError
        It is neither where the environment says nor at the default place.
    """
    named = os.environ.get(DATA_VARIABLE)
    root = Path(named) if named else repository.parent / "shared" / "data"
    if not root.is_dir():
        raise ProfileError(
            f"no public tables at {root}: set {DATA_VARIABLE} to the folder that has deepbench/ "
            "and convnet-benchmarks/"
        )
    return root


def read_table(path: Path) -> Iterator[tuple[int, Record]]:
    """Lines of a CSV file (gzipped or not) with their number; the header is line 1.

    Raises
    ------
    ProfileError
        There is no such file, or it is no table.
    """
    if not path.exists():
        raise ProfileError(f"{path}: there is no such table; see its recipe's sources")
    yield from files.read_table(path, file=str(path), error=ProfileError)


def selected(path: Path, options: Options) -> Iterator[tuple[int, Record]]:
    """Lines whose columns have the values that the option ``select`` gives, one or a list; without
    those whose columns have all the values that ``unless`` gives."""
    wanted, unwanted = options.get("select", {}), options.get("unless", {})
    for line, record in read_table(path):
        if _agrees(record, wanted) and not (unwanted and _agrees(record, unwanted)):
            yield line, record


def _agrees(record: Record, values: Mapping[str, Any]) -> bool:
    return all(
        record[column] in value if isinstance(value, list) else record[column] == value
        for column, value in values.items()
    )


def _ints(record: Record, *names: str) -> list[int]:
    return [int(record[name]) for name in names]


# -- DeepBench (Baidu Research): convolutions and matrix products of speech and vision models.


def deepbench_conv(path: Path, options: Options) -> list[Row]:
    """Forward convolutions: ``select`` names column values."""
    rows = []
    for line, record in selected(path, options):
        layer = conv_layer(
            _ints(record, "N", "C", "H", "W"),
            cout=int(record["K"]),
            kernel=tuple(_ints(record, "R_filter_h", "S_filter_w")),
            stride=tuple(_ints(record, "stride_h", "stride_w")),
            padding=tuple(_ints(record, "pad_h", "pad_w")),
        )
        rows.append(Row(layer, float(record["forward_ms"]), line=line))
    return rows


def deepbench_gemm(path: Path, options: Options) -> list[Row]:
    """Matrix products, as the layers that make cuBLAS run them.

    A product is column-major there: ``C (M x N) = op(A) (M x K) op(B) (K x N)``. With row-major
    tensors a fully connected layer of N samples, K inputs and M outputs is that product with A
    transposed when the weight is ``(M, K)`` as in PyTorch, and with neither transposed when it is
    ``(K, M)`` as in TensorFlow. Option ``as`` is ``linear`` or ``matmul``.
    """
    rows = []
    for line, record in selected(path, options):
        m, n, k = _ints(record, "M", "N", "K")
        layer = linear_layer(n, k, m) if options["as"] == "linear" else matmul_layer((n, k), (k, m))
        rows.append(Row(layer, float(record["time_ms"]), line=line))
    return rows


# -- convnet-benchmarks: layers of whole networks timed by ``caffe time``.

_WINDOW: Final = re.compile(r"(\d+)x\d+(?:_s(\d))?")
_BRANCHES: Final = ("1x1", "3x3", "5x5", "pool_proj")


def caffe_layers(path: Path, options: Options) -> list[Row]:
    """convnet-benchmarks' layers of four networks timed by ``caffe time``: ``kinds`` to keep.

    Reads convolutions (with bias), pools (max, and GoogLeNet's last one average), ReLUs (in
    place: read and written once) and concatenations. Splits launch nothing and inputs compute
    nothing: left out. The table has each layer's output; its input is the layer below.
    """
    rows: list[Row] = []
    shapes: dict[str, tuple[int, ...]] = {}
    network, block = "", ""
    previous: tuple[int, ...] = ()
    entered: tuple[int, ...] = ()
    for line, record in read_table(path):
        name = record["layer"]
        if record["network"] != network:
            network, shapes = record["network"], {}
        top = tuple(int(size) for size in record["top_shape"].split())
        if not top:  # the network's total
            continue
        if name.split("/")[0] != block:
            block, entered = name.split("/")[0], previous
        below = shapes.get(f"{name}_reduce", entered if name.startswith("inception") else previous)
        layer = _caffe_layer(name, top, below, shapes)
        if layer is not None and layer.kind in options["kinds"]:
            rows.append(Row(layer, float(record["forward_ms"]), line=line))
        shapes[name] = previous = top
    return rows


def _caffe_layer(
    name: str, top: tuple[int, ...], below: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]
) -> Layer | None:
    if name.endswith("_split") or name == "input":
        return None
    if "relu" in name:
        return streaming_layer("activation", "relu", [top], top)
    if name.endswith("/output"):
        block = name.removesuffix("output")
        return streaming_layer("memory", "cat", [shapes[block + each] for each in _BRANCHES], top)
    if len(top) == 2:
        depth = below[1] * below[2] * below[3] if len(below) == 4 else below[1]
        return linear_layer(top[0], depth, top[1], bias=True)
    found = _WINDOW.search(name)
    if name.endswith("/pool"):  # inside an inception block: 3x3, stride 1, same size
        size, step = 3, 1
    elif name.endswith(("/pool_proj", "_reduce")):
        size, step = 1, 1
    elif found is None:  # AlexNet's first convolution is not named for its kernel
        size, step = 11, 4
    else:
        size, step = int(found[1]), int(found[2] or 1)
    if name.endswith("/pool") or name.startswith("pool"):
        op = "avg_pool2d" if size == 7 else "max_pool2d"
        pad = 1 if step == 1 and size == 3 else 0
        return pool_layer(
            below, top, op=op, kernel=(size, size), stride=(step, step), padding=(pad, pad)
        )
    # The smallest padding that gives the output's size.
    pad = next(pad for pad in range(size) if (below[2] + 2 * pad - size) // step + 1 == top[2])
    kernel, stride, padding = (size, size), (step, step), (pad, pad)
    return conv_layer(below, cout=top[1], kernel=kernel, stride=stride, padding=padding, bias=True)


# -- aiconfigurator (NVIDIA): layers of vLLM timed on GPUs, on some with their power.

_DTYPE = "bfloat16"


def aiconfigurator_gemm(path: Path, options: Options) -> list[Row]:
    """Products of M rows of K features by a weight (N, K).

    Option ``as`` is ``linear`` or ``matmul``. Of all readers of these tables ``least_ms`` leaves
    out what takes less, ``power_least_ms`` the power of what takes less, and rows that agree in
    the columns ``groups`` are held out together. ``times_of_more`` leaves out products that take
    over so many times what one of more rows by the same weight takes: a library's poor choice of a
    kernel, which would raise the prices of all larger batches. ``dtype`` is that of the operands
    of products, of experts and of cached keys, bfloat16 by default; all results are in bfloat16.
    """
    rows = []
    for line, record in selected(path, options):
        m, n, k = _ints(record, "m", "n", "k")
        layer = (
            linear_layer(m, k, n, dtype=options.get("dtype", _DTYPE))
            if options["as"] == "linear"
            else matmul_layer((m, k), (k, n), dtype=_DTYPE)
        )
        layer = structs.replace(layer, outputs=(TensorSpec((m, n), _DTYPE),))
        rows.append(_powered(layer, record, line, options))
    if "times_of_more" in options:
        return _without_poor_choices(rows, float(options["times_of_more"]))
    return rows


def _without_poor_choices(rows: Sequence[Row], times: float) -> list[Row]:
    values = columns(family(rows[0].layer), [row.layer for row in rows])
    runtime = np.array([row.runtime_ms for row in rows])
    least: dict[tuple[float, float], float] = {}
    found = list(rows)
    for place in np.argsort(-values["m"], kind="stable").tolist():
        weight = float(values["n"][place]), float(values["k"][place])
        of_more = least.get(weight, np.inf)
        if runtime[place] > times * of_more:
            flaw = f"over {times:g} times what more rows take by the same weight"
            found[place] = replace(rows[place], flaw=flaw)
        least[weight] = min(of_more, float(runtime[place]))
    return found


def aiconfigurator_attention(path: Path, options: Options) -> list[Row]:
    """Self-attention over whole sequences: option ``causal`` says which.

    Grouped queries where the table has ``num_key_value_heads``.
    """
    rows = []
    for line, record in selected(path, options):
        batch, length, heads, width = _ints(record, "batch_size", "isl", "num_heads", "head_dim")
        shared = int(record.get("num_key_value_heads", heads))
        shape = (batch, heads, length, width)
        layer = attention_layer(shape, shared, causal=bool(options["causal"]))
        rows.append(_powered(layer, record, line, options))
    return rows


def aiconfigurator_decode(path: Path, options: Options) -> list[Row]:
    """Attention of one query a sequence to itself and to what came before it (``step`` tokens)."""
    rows = []
    for line, record in selected(path, options):
        batch, new, old = _ints(record, "batch_size", "isl", "step")
        heads, shared, width = _ints(record, "num_heads", "num_key_value_heads", "head_dim")
        layer = attention_layer(
            (batch, heads, new, width), shared, keys=new + old, dtype=options.get("dtype", _DTYPE)
        )
        rows.append(_powered(layer, record, line, options))
    return rows


def attention_layer(
    shape: tuple[int, int, int, int],
    shared: int,
    *,
    causal: bool = False,
    keys: int | None = None,
    dtype: str = _DTYPE,
) -> Layer:
    """Attention of queries ``(B, H, L, E)`` to as many keys, or to ``keys``, in ``shared`` heads of
    keys and values in ``dtype``."""
    query = TensorSpec(shape, _DTYPE)
    batch, _, queries, width = shape
    key = TensorSpec((batch, shared, queries if keys is None else keys, width), dtype)
    params: tuple[tuple[str, Any], ...] = (("causal", causal), ("dropout", 0.0), ("masked", False))
    op = "scaled_dot_product_attention"
    return Layer("attention", op, "", (query, key, key), (), (query,), dtype, params)


#: Rows of each expert from which balanced routing reads as many experts as uniform routing does.
_ROWS_OF_EACH: Final = 4


def aiconfigurator_moe(path: Path, options: Options) -> list[Row]:
    """A mixture of experts as its two grouped products, gate and up side by side, and down.

    A row of the table is the time of a whole expert layer, routing and activation included. It is
    shared out by the operations of the products, to which the bytes of their weights are
    proportional. Of the ways in which tokens spread over experts the one nearest to uniform routing
    is taken: ``power_law_1.01`` (which leaves out as many experts, within a sixth) where an expert
    has less than 4 rows in the mean, ``balanced`` beyond, where that was timed (option
    ``balanced: false`` says that it was not). Experts are those of one rank, whose
    width may be split over several (``moe_tp_size``).
    """
    rows = []
    for line, record in selected(path, options):
        tokens, hidden, inner = _ints(record, "num_tokens", "hidden_size", "inter_size")
        chosen, experts, ranks = _ints(record, "topk", "num_experts", "moe_tp_size")
        few = tokens * chosen < _ROWS_OF_EACH * experts or not options.get("balanced", True)
        if record["distribution"] != ("power_law_1.01" if few else "balanced"):
            continue
        width = inner // ranks
        for depth, out, share in ((hidden, 2 * width, 2 / 3), (width, hidden, 1 / 3)):
            layer = experts_layer(
                tokens, chosen, experts, depth, out, dtype=options.get("dtype", _DTYPE)
            )
            row = _powered(layer, record, line, options)
            rows.append(replace(row, runtime_ms=row.runtime_ms * share))
    return rows


def experts_layer(
    tokens: int, chosen: int, experts: int, depth: int, width: int, *, dtype: str = _DTYPE
) -> Layer:
    """Tokens, each by its ``chosen`` of ``experts`` matrices (depth, width)."""
    given = TensorSpec((tokens * chosen, depth), dtype)
    weights = TensorSpec((experts, depth, width), dtype)
    result = TensorSpec((tokens * chosen, width), _DTYPE)
    params = (("chosen", chosen),)
    return Layer("matmul", "grouped_mm", "", (given, weights), (), (result,), dtype, params)


def _powered(layer: Layer, record: Record, line: int, options: Options) -> Row:
    runtime = float(record["latency"])
    power = float(record["power"]) if record.get("power") else None
    if runtime < float(options.get("power_least_ms", 0.0)):
        power = None
    least = float(options.get("least_ms", 0.0))
    flaw = f"under {least:g} ms" if runtime < least else ""
    group = tuple((column, record[column]) for column in options.get("groups", ()))
    return Row(layer, runtime, power, line=line, flaw=flaw, group=group)


# -- characterizing-pytorch-power: layers on CPUs, energy by RAPL, one pass of 10 batches a row.


def rapl_layers(path: Path, options: Options) -> list[Row]:
    """Forward time (microseconds) and package energy (microjoules) of one batch.

    Option ``kind`` is ``conv``, ``linear`` or ``pool``. A counter that wrapped while it was read
    gives a negative energy, one that did not advance gives zero, and one that was read too
    early gives less than the package draws at rest (``least_w``) or more than it can
    (``limit_w``): such rows are flawed.
    """
    rows = []
    for line, record in read_table(path):
        energy, time = float(record["for_energy"]), float(record["for_time"])
        power = energy / time
        layer = _rapl_layer(options["kind"], record)
        rows.append(Row(layer, time / 1e3, power, line=line, flaw=_flaw(power, options)))
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


def _rapl_layer(kind: str, record: Record) -> Layer:
    batch = int(record["batch_size"])
    if kind == "linear":
        return linear_layer(batch, *_ints(record, "in_size", "out_size"), bias=True)
    channels = int(record["in_chan"])
    if kind == "conv":
        size, kernel, step = _ints(record, "side_len", "k_size", "stride")
        return conv_layer(
            (batch, channels, size, size),
            cout=int(record["out_chan"]),
            kernel=(kernel, kernel),
            stride=(step, step),
            padding=(0, 0),
            bias=True,
        )
    size, kernel, step = _ints(record, "im_side_length", "k_side_length", "stride")
    result = (size - kernel) // step + 1
    return pool_layer(
        (batch, channels, size, size),
        (batch, channels, result, result),
        op="max_pool2d",
        kernel=(kernel, kernel),
        stride=(step, step),
        padding=(0, 0),
    )


# -- NeuSight (Lee, Phanishayee, Mahajan, ASPLOS 2025): layers timed on GPUs in PyTorch 2.1, fp32.

_UNMEASURED: Final = "without a latency"

#: A latency is known where so much of it is left without the overhead.
_LEAST_SHARE: Final = 0.1


def neusight_conv(path: Path, options: Options) -> list[Row]:
    """Convolutions of random sizes, 3x3 of stride 1.

    Every latency holds an overhead that has nothing to do with the layer: it grows along the
    table, in the order in which rows were measured, by the same milliseconds for large layers
    and for small ones. Option ``drift_ms: [a, b]`` subtracts ``a u + b u**2`` from the latency
    of a row that stands at share ``u`` of the selected rows. Option ``start_ms`` is subtracted
    from every latency: what small layers take beyond those of other tables, in the first row as in
    the last.
    """
    lines = list(selected(path, options))
    drifts = "drift_ms" in options
    start = float(options.get("start_ms", 0.0))
    linear, square = options.get("drift_ms", (0.0, 0.0))
    rows = []
    for above, (line, record) in enumerate(lines):
        batch, channels, size = _ints(record, "B", "Input_Channel", "Input_Size")
        layer = conv_layer(
            (batch, channels, size, size),
            cout=int(record["Output_Channel"]),
            kernel=(int(record["Kernel_Size"]),) * 2,
            stride=(int(record["Stride"]),) * 2,
            padding=(int(record["Padding"]),) * 2,
        )
        if not record["Latency"]:
            rows.append(Row(layer, 0.0, line=line, flaw=_UNMEASURED))
            continue
        share = above / len(lines)
        overhead = start + linear * share + square * share**2
        runtime = float(record["Latency"]) - overhead
        known = runtime > _LEAST_SHARE * float(record["Latency"])
        flaw = "" if known else "hardly longer than the overhead of its place in the table"
        place = share if drifts else None
        row = Row(layer, runtime, line=line, flaw=flaw, place=place, overhead_ms=overhead)
        rows.append(row)
    return rows


def neusight_linear(path: Path, options: Options) -> list[Row]:
    """Fully connected layers. Columns are not BLAS's: M rows of N features become K."""
    return [
        _timed(linear_layer(*_ints(record, "M", "N", "K"), bias=True), record["Latency"], line)
        for line, record in selected(path, options)
    ]


def neusight_bmm(path: Path, options: Options) -> list[Row]:
    """Batched products: B of (M x N) by (N x K)."""
    rows = []
    for line, record in selected(path, options):
        batch, m, n, k = _ints(record, "B", "M", "N", "K")
        rows.append(_timed(matmul_layer((batch, m, n), (batch, n, k)), record["Latency"], line))
    return rows


#: What each name of the table runs: kind, torch's name, whether its second operand is a tensor.
_VECTOR: Final = {
    "add": ("elementwise", "add", True),
    "mul": ("elementwise", "mul", True),
    "div": ("elementwise", "div", True),
    "pow": ("elementwise", "pow", True),
    "addu": ("elementwise", "add", False),
    "mulu": ("elementwise", "mul", False),
    "divu": ("elementwise", "div", False),
    "powu": ("elementwise", "pow", False),
    "relu": ("activation", "relu", False),
    "gelu": ("activation", "gelu", False),
    "tanh": ("activation", "tanh", False),
    "softmax": ("softmax", "softmax", False),
    "ln": ("norm", "layer_norm", False),
}


def neusight_vec(path: Path, options: Options) -> list[Row]:
    """Elementwise operations, activations, layer norms and softmaxes of (B, H) tensors."""
    rows = []
    for line, record in selected(path, options):
        kind, op, two = _VECTOR[record["OPName"]]
        shape = tuple(_ints(record, "B", "H"))
        if kind == "norm":
            layer = _layer_norm(shape)
        else:
            layer = streaming_layer(kind, op, [shape] * (2 if two else 1), shape)
        rows.append(_timed(layer, record["Latency"], line))
    return rows


def _layer_norm(shape: tuple[int, ...]) -> Layer:
    tensor, weight = TensorSpec(shape, "float32"), TensorSpec(shape[1:], "float32")
    params = (("normalized_shape", shape[1:]),)
    return Layer(
        "norm", "layer_norm", "", (tensor,), (weight, weight), (tensor,), "float32", params
    )


def _timed(layer: Layer, latency: str, line: int) -> Row:
    if not latency:
        return Row(layer, 0.0, line=line, flaw=_UNMEASURED)
    return Row(layer, float(latency), line=line)


#: Readers by the name that recipes use.
READERS: Final[Mapping[str, Callable[[Path, Options], list[Row]]]] = {
    "deepbench_conv": deepbench_conv,
    "deepbench_gemm": deepbench_gemm,
    "caffe_layers": caffe_layers,
    "neusight_conv": neusight_conv,
    "neusight_linear": neusight_linear,
    "neusight_bmm": neusight_bmm,
    "neusight_vec": neusight_vec,
    "aiconfigurator_gemm": aiconfigurator_gemm,
    "aiconfigurator_attention": aiconfigurator_attention,
    "aiconfigurator_decode": aiconfigurator_decode,
    "aiconfigurator_moe": aiconfigurator_moe,
    "rapl_layers": rapl_layers,
}


# -- Rows of a recipe's sources, brought to the recipe's own device.


def read_source(recipe: Recipe, source: Source, data_root: Path | None) -> list[Row]:
    """All rows of one source, flawed ones included.

    Raises
    ------
    ProfileError
        The source cannot be read, or none of its rows is selected.
    """
    if source.profile:
        return list(read_profile(recipe.folder / source.profile).rows)
    reader = READERS.get(source.reader or "")
    if reader is None:
        raise ProfileError(
            f"recipe of {recipe.name}: unknown reader {source.reader!r}; there are "
            f"{', '.join(READERS)}"
        )
    if data_root is None:
        raise ProfileError(
            f"recipe of {recipe.name} reads public tables: say where they are (--data DIR)"
        )
    rows = reader(data_root / source.path, source.options)
    if not rows:
        raise ProfileError(f"recipe of {recipe.name}: no row of {source.path} is selected")
    if source.datasheet is not None:
        sibling = find_device(source.datasheet).hardware(recipe.dtype)
        rows = scaled(rows, sibling, recipe.hardware)
    return [replace(row, stack=source.stack) for row in rows]


def scaled(
    rows: Sequence[Row], measured: Mapping[str, float], wanted: Mapping[str, float]
) -> list[Row]:
    """Times of one board as another would take them, by what both can at most do."""
    found = list(rows)
    members: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        members.setdefault(family(row.layer), []).append(place)
    for name, places in members.items():
        values = columns(name, [rows[place].layer for place in places])
        ratio = roofline_ms(name, values, Ceilings.of(wanted))
        ratio = np.asarray(ratio / roofline_ms(name, values, Ceilings.of(measured)))
        for place, factor in zip(places, ratio.tolist(), strict=True):
            found[place] = replace(found[place], runtime_ms=found[place].runtime_ms * factor)
    return found
