"""NeuSight (Lee, Phanishayee, Mahajan, ASPLOS 2025): layers timed on GPUs in PyTorch 2.1, fp32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pytest_neuralpower.calibrate.fit.readers.table import Options, selected
from pytest_neuralpower.calibrate.fit.rows import (
    Row,
    conv_layer,
    linear_layer,
    matmul_layer,
    streaming_layer,
)
from pytest_neuralpower.layers import Layer, TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

_UNMEASURED: Final = "without a latency"


def neusight_conv(path: Path, options: Options) -> list[Row]:
    """Convolutions of random sizes, 3x3 of stride 1.

    Every latency holds an overhead that has nothing to do with the layer: it grows along the
    table, in the order in which rows were measured, by the same milliseconds for large layers
    and for small ones. Option ``drift_ms: [a, b]`` subtracts ``a u + b u**2`` from the latency
    of a row that stands at share ``u`` of the selected rows.
    """
    lines = list(selected(path, options))
    drifts = "drift_ms" in options
    linear, square = options.get("drift_ms", (0.0, 0.0))
    rows = []
    for above, (line, record) in enumerate(lines):
        size, kernel = int(record["Input_Size"]), int(record["Kernel_Size"])
        layer = conv_layer(
            (int(record["B"]), int(record["Input_Channel"]), size, size),
            cout=int(record["Output_Channel"]),
            kernel=(kernel, kernel),
            stride=(int(record["Stride"]),) * 2,
            padding=(int(record["Padding"]),) * 2,
        )
        if not record["Latency"]:
            rows.append(Row(layer, 0.0, line=line, flaw=_UNMEASURED))
            continue
        share = above / len(lines)
        overhead = linear * share + square * share**2
        runtime = float(record["Latency"]) - overhead
        flaw = "" if runtime > 0 else "shorter than the overhead of its place in the table"
        place = share if drifts else None
        row = Row(layer, runtime, line=line, flaw=flaw, place=place, overhead_ms=overhead)
        rows.append(row)
    return rows


def neusight_linear(path: Path, options: Options) -> list[Row]:
    """Fully connected layers. Columns are not BLAS's: M rows of N features become K."""
    return [
        _timed(
            linear_layer(int(record["M"]), int(record["N"]), int(record["K"]), bias=True),
            record["Latency"],
            line,
        )
        for line, record in selected(path, options)
    ]


def neusight_bmm(path: Path, options: Options) -> list[Row]:
    """Batched products: B of (M x N) by (N x K)."""
    rows = []
    for line, record in selected(path, options):
        batch, m, n, k = (int(record[name]) for name in ("B", "M", "N", "K"))
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
        shape = (int(record["B"]), int(record["H"]))
        if kind == "norm":
            layer = _layer_norm(shape)
        else:
            layer = streaming_layer(kind, op, [shape] * (2 if two else 1), shape)
        rows.append(_timed(layer, record["Latency"], line))
    return rows


def _layer_norm(shape: tuple[int, int]) -> Layer:
    tensor, weight = TensorSpec(shape, "float32"), TensorSpec(shape[1:], "float32")
    params = (("normalized_shape", shape[1:]),)
    return Layer(
        "norm", "layer_norm", "", (tensor,), (weight, weight), (tensor,), "float32", params
    )


def _timed(layer: Layer, latency: str, line: int) -> Row:
    if not latency:
        return Row(layer, 0.0, line=line, flaw=_UNMEASURED)
    return Row(layer, float(latency), line=line)
