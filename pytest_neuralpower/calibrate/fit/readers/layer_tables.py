"""NVIDIA's aiconfigurator: layers of vLLM timed on Hopper GPUs in bfloat16, power beside time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from pytest_neuralpower.calibrate.fit.readers.table import Options, Record, read_table, selected
from pytest_neuralpower.calibrate.fit.rows import (
    Row,
    conv_layer,
    linear_layer,
    matmul_layer,
    pool_layer,
    streaming_layer,
)
from pytest_neuralpower.layers import Layer, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_DTYPE = "bfloat16"


def aiconfigurator_gemm(path: Path, options: Options) -> list[Row]:
    """Products of M rows of K features by a weight (N, K).

    Option ``as`` is ``linear`` or ``matmul``; ``least_ms`` leaves out what takes less.
    """
    rows = []
    for line, record in selected(path, options):
        m, n, k = (int(record[name]) for name in ("m", "n", "k"))
        layer = (
            linear_layer(m, k, n, dtype=_DTYPE)
            if options["as"] == "linear"
            else matmul_layer((m, k), (k, n), dtype=_DTYPE)
        )
        rows.append(_row(layer, record, line, options))
    return rows


def aiconfigurator_attention(path: Path, options: Options) -> list[Row]:
    """Self-attention over whole sequences: option ``causal`` says which.

    Grouped queries where the table has ``num_key_value_heads``.
    """
    rows = []
    for line, record in selected(path, options):
        batch, length, heads, width = (
            int(record[name]) for name in ("batch_size", "isl", "num_heads", "head_dim")
        )
        shared = int(record.get("num_key_value_heads", heads))
        layer = attention_layer(
            (batch, heads, length, width), shared, causal=bool(options["causal"])
        )
        rows.append(_row(layer, record, line, options))
    return rows


def attention_layer(shape: tuple[int, int, int, int], shared: int, *, causal: bool) -> Layer:
    """Self-attention of queries ``(B, H, L, E)`` with ``shared`` heads of keys and values."""
    query = TensorSpec(shape, _DTYPE)
    key = TensorSpec((shape[0], shared, *shape[2:]), _DTYPE)
    params: tuple[tuple[str, Any], ...] = (("causal", causal), ("dropout", 0.0), ("masked", False))
    op = "scaled_dot_product_attention"
    return Layer("attention", op, "", (query, key, key), (), (query,), _DTYPE, params)


def _row(layer: Layer, record: dict[str, str], line: int, options: Options) -> Row:
    runtime = float(record["latency"])
    power = float(record["power"]) if record.get("power") else None
    least = float(options.get("least_ms", 0.0))
    flaw = f"under {least:g} ms" if runtime < least else ""
    return Row(layer, runtime, power, line=line, flaw=flaw)


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
    return conv_layer(
        below,
        cout=top[1],
        kernel=(size, size),
        stride=(step, step),
        padding=(pad, pad),
        bias=True,
    )


# -- DeepBench (Baidu Research): convolutions and matrix products of speech and vision models.


def deepbench_conv(path: Path, options: Options) -> list[Row]:
    """DeepBench's forward convolutions (Baidu Research): ``select`` names column values."""
    rows = []
    for line, record in selected(path, options):
        number = {key: int(record[key]) for key in ("N", "C", "H", "W", "K")}
        layer = conv_layer(
            (number["N"], number["C"], number["H"], number["W"]),
            cout=number["K"],
            kernel=(int(record["R_filter_h"]), int(record["S_filter_w"])),
            stride=(int(record["stride_h"]), int(record["stride_w"])),
            padding=(int(record["pad_h"]), int(record["pad_w"])),
        )
        rows.append(Row(layer, float(record["forward_ms"]), line=line))
    return rows


def deepbench_gemm(path: Path, options: Options) -> list[Row]:
    """DeepBench's matrix products, as the layers that make cuBLAS run them.

    A product is column-major there: ``C (M x N) = op(A) (M x K) op(B) (K x N)``. With row-major
    tensors a fully connected layer of N samples, K inputs and M outputs is that product with A
    transposed when the weight is ``(M, K)`` as in PyTorch, and with neither transposed when it is
    ``(K, M)`` as in TensorFlow. Option ``as`` is ``linear`` or ``matmul``.
    """
    rows = []
    for line, record in selected(path, options):
        m, n, k = (int(record[key]) for key in ("M", "N", "K"))
        layer = linear_layer(n, k, m) if options["as"] == "linear" else matmul_layer((n, k), (k, m))
        rows.append(Row(layer, float(record["time_ms"]), line=line))
    return rows


# -- characterizing-pytorch-power: layers on CPUs, energy by RAPL, one pass of 10 batches a row.


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
