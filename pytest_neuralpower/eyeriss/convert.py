"""Layers as work for the row-stationary array: convolutions with their batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_neuralpower.eyeriss.shapes import ConvShape

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Layer

__all__ = ["Work", "from_layer", "works"]


@dataclass(frozen=True, slots=True)
class Work:
    """One convolution of ``batch`` samples; ``input_zeros`` of the input map are zero by
    construction (the zeros that a transposed convolution inserts), over the whole batch.
    """

    shape: ConvShape
    batch: int
    input_zeros: int = 0


def from_layer(layer: Layer) -> ConvShape | None:
    """Shape of a layer that is exactly one convolution or fully connected layer, else None.

    A linear layer over tokens is a 1 x 1 convolution over a column of them.
    """
    found = works(layer)
    return found[0].shape if len(found) == 1 else None


def works(layer: Layer) -> tuple[Work, ...]:
    """Convolutions that do a layer's multiply-accumulates; empty where there are none.

    * conv of one or two dimensions as it is; of three with the depth of the kernel as channels and
      the depth of the output as batch (overlapping slices of the input are read again);
    * transposed conv as the convolution of the zero-stuffed input;
    * linear as a 1 x 1 convolution; matmul likewise with the right operand as weights, one group
      per matrix of the batch; attention as its two products.

    Recurrent layers have no mapping here: their steps depend on each other.
    """
    if layer.kind == "conv":
        return (_transposed(layer) if layer.param("transposed", False) else _conv(layer),)
    if layer.kind == "linear":
        shape = layer.inputs[0].shape
        batch = shape[0] if len(shape) > 1 else 1
        outputs = layer.outputs[0].shape[-1]
        rows = math.prod(shape[1:-1])
        return (Work(ConvShape(rows, 1, shape[-1], outputs), batch),)
    if layer.kind == "matmul":
        reduced = int(layer.param("reduced") or layer.inputs[0].shape[-1])
        return (_product(layer.outputs[0].shape, reduced),)
    if layer.kind == "attention":
        query, key, value = (tensor.shape for tensor in layer.inputs[:3])
        scores = (*query[:-1], key[-2])
        return _product(scores, query[-1]), _product((*query[:-1], value[-1]), key[-2])
    return ()


def _product(output: tuple[int, ...], reduced: int) -> Work:
    """(rows x reduced) by (reduced x columns), once per leading index: weights are not shared."""
    rows, columns = (1, 1, *output)[-2:]
    matrices = math.prod(output[:-2])
    return Work(
        ConvShape(rows, 1, reduced * matrices, columns * matrices, groups=matrices), batch=1
    )


def _pair(values: tuple[int, ...], fill: int) -> tuple[int, int]:
    """The last two of one, two or three spatial values; a single one lies along x."""
    return (fill, *values)[-2:] if len(values) < 2 else values[-2:]  # type: ignore[return-value]


def _spatial(layer: Layer, name: str, default: int) -> tuple[int, ...]:
    count = len(layer.weights[0].shape) - 2
    values = layer.param(name, default)
    return tuple(values) if isinstance(values, tuple) else (int(values),) * count


def _conv(layer: Layer) -> Work:
    source, weight = layer.inputs[0].shape, layer.weights[0].shape
    kernel = weight[2:]
    dims = len(kernel)
    padding = _spatial(layer, "padding", 0)
    # One value a dimension, or (before, after) for each where they differ.
    sides = padding if len(padding) == 2 * dims else tuple(p for p in padding for _ in range(2))
    height, width = _pair(source[2:], 1)
    depth_out = layer.outputs[0].shape[2] if dims == 3 else 1
    depth_kernel = kernel[0] if dims == 3 else 1
    shape = ConvShape(
        height=height,
        width=width,
        channels=source[1] * depth_kernel,
        filters=weight[0],
        kernel=_pair(kernel, 1),
        stride=_pair(_spatial(layer, "stride", 1), 1),
        padding=(0, 0, *sides)[-4:],  # type: ignore[arg-type]
        dilation=_pair(_spatial(layer, "dilation", 1), 1),
        groups=int(layer.param("groups", 1)),
    )
    return Work(shape, source[0] * depth_out)


def _transposed(layer: Layer) -> Work:
    """The convolution of stride 1 over the input with stride - 1 zeros between its values."""
    source, weight, output = (
        layer.inputs[0].shape, layer.weights[0].shape, layer.outputs[0].shape
    )  # fmt: skip
    stride, dilation = _spatial(layer, "stride", 1), _spatial(layer, "dilation", 1)
    padding = _spatial(layer, "padding", 0)
    groups = int(layer.param("groups", 1))
    stuffed: list[int] = []
    sides: list[int] = []
    for axis, size in enumerate(source[2:]):
        length = (size - 1) * stride[axis] + 1
        reach = dilation[axis] * (weight[axis + 2] - 1)
        before = reach - padding[axis]
        after = output[axis + 2] + reach - length - before
        # A negative margin drops input values; they are then not read.
        stuffed.append(length + min(before, 0) + min(after, 0))
        sides += [max(before, 0), max(after, 0)]
    batch, depth_kernel = source[0], 1
    if len(stuffed) == 3:
        batch, depth_kernel = batch * output[2], weight[2]
    height, width = _pair(tuple(stuffed), 1)
    shape = ConvShape(
        height=height,
        width=width,
        channels=source[1] * depth_kernel,
        filters=weight[1] * groups,
        kernel=_pair(weight[2:], 1),
        padding=(0, 0, *sides)[-4:],  # type: ignore[arg-type]
        dilation=_pair(dilation, 1),
        groups=groups,
    )
    density = math.prod(source[2:]) / math.prod(stuffed)
    return Work(shape, batch, input_zeros=int(shape.inputs * batch * max(0.0, 1 - density)))
