"""NVIDIA's aiconfigurator: layers of vLLM timed on Hopper GPUs in bfloat16, power beside time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_neuralpower.calibrate.readers.table import Options, selected
from pytest_neuralpower.calibrate.rows import Row, linear_layer, matmul_layer
from pytest_neuralpower.layers import Layer, TensorSpec

if TYPE_CHECKING:
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
