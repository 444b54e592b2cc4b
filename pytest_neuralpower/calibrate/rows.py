"""Measured rows: one layer and what it took; and short ways to write a row's layer."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from pytest_neuralpower.layers import Layer, TensorSpec

__all__ = ["Row", "conv_layer", "linear_layer", "matmul_layer", "pool_layer", "streaming_layer"]


@dataclass(frozen=True, slots=True)
class Row:
    """One measured layer.

    Attributes
    ----------
    layer
        Its configuration.
    runtime_ms
        Measured runtime of one call, ms.
    power_w
        Mean gross board power during it, W; None where it was not measured.
    line
        Line in the source file, the header being line 1.
    flaw
        Why the row must be left out; empty for a sound one.
    judges
        Set apart to judge a fit to the other rows first.
    place
        Share of its table above it, where latencies grow along the table; None elsewhere.
    overhead_ms
        What was taken off its published latency for that, ms.
    """

    layer: Layer
    runtime_ms: float
    power_w: float | None = None
    line: int = 0
    flaw: str = ""
    judges: bool = False
    place: float | None = None
    overhead_ms: float = 0.0

    @property
    def shape_group(self) -> Hashable:
        """The layer's shape without its batch: rows that share it never face each other.

        A norm's or softmax's batch is how many rows it treats: a size like others, kept.
        """
        layer = self.layer
        if layer.kind in ("norm", "softmax"):
            return (layer.kind, layer.op, layer.inputs, layer.params)
        return (
            layer.kind,
            layer.op,
            # A linear layer's rows are its batch, whatever axes they are spread over.
            tuple(
                tensor.shape[-1:] if layer.kind == "linear" else tensor.shape[1:]
                for tensor in layer.inputs
            ),
            # A bias makes no other shape of it.
            tuple(tensor.shape for tensor in layer.weights[:1]),
            layer.params,
        )


def conv_layer(
    shape: Sequence[int],
    *,
    cout: int,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...] | None = None,
    groups: int = 1,
    bias: bool = False,
    dtype: str = "float32",
) -> Layer:
    """A plain convolution of an input ``(N, Cin, *spatial)``."""
    dilation = dilation or (1,) * len(kernel)
    spatial = tuple(
        (size + 2 * pad - dil * (width - 1) - 1) // step + 1
        for size, pad, dil, width, step in zip(
            shape[2:], padding, dilation, kernel, stride, strict=True
        )
    )
    weights = [TensorSpec((cout, shape[1] // groups, *kernel), dtype)]
    if bias:
        weights.append(TensorSpec((cout,), dtype))
    return Layer(
        "conv",
        f"conv{len(kernel)}d",
        "",
        (TensorSpec(tuple(shape), dtype),),
        tuple(weights),
        (TensorSpec((shape[0], cout, *spatial), dtype),),
        dtype,
        (
            ("dilation", dilation),
            ("groups", groups),
            ("padding", padding),
            ("stride", stride),
            ("transposed", False),
        ),
    )


def linear_layer(
    rows: int, depth: int, width: int, *, bias: bool = False, dtype: str = "float32"
) -> Layer:
    """``(rows, depth) -> (rows, width)`` with a weight ``(width, depth)``."""
    weights = [TensorSpec((width, depth), dtype)]
    if bias:
        weights.append(TensorSpec((width,), dtype))
    return Layer(
        "linear",
        "linear",
        "",
        (TensorSpec((rows, depth), dtype),),
        tuple(weights),
        (TensorSpec((rows, width), dtype),),
        dtype,
    )


def matmul_layer(left: tuple[int, ...], right: tuple[int, ...], *, dtype: str = "float32") -> Layer:
    """``(*, M, K) @ (*, K, N)``."""
    result = (*left[:-1], right[-1])
    return Layer(
        "matmul",
        "matmul",
        "",
        (TensorSpec(left, dtype), TensorSpec(right, dtype)),
        (),
        (TensorSpec(result, dtype),),
        dtype,
    )


def pool_layer(
    shape: tuple[int, ...],
    result: tuple[int, ...],
    *,
    op: str,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dtype: str = "float32",
) -> Layer:
    """Pooling from one map to another."""
    params = (("kernel", kernel), ("padding", padding), ("stride", stride))
    given, made = (TensorSpec(shape, dtype),), (TensorSpec(result, dtype),)
    return Layer("pool", op, "", given, (), made, dtype, params)


def streaming_layer(
    kind: str,
    op: str,
    inputs: Sequence[tuple[int, ...]],
    result: tuple[int, ...],
    *,
    dtype: str = "float32",
) -> Layer:
    """A layer whose cost follows from its tensors alone: activation, copy, concatenation."""
    given = tuple(TensorSpec(shape, dtype) for shape in inputs)
    return Layer(kind, op, "", given, (), (TensorSpec(result, dtype),), dtype)
