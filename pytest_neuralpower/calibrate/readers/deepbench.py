"""DeepBench (Baidu Research): convolutions and matrix products of speech and vision models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_neuralpower.calibrate.readers.table import Options, selected
from pytest_neuralpower.calibrate.rows import Row, conv_layer, linear_layer, matmul_layer

if TYPE_CHECKING:
    from pathlib import Path


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
