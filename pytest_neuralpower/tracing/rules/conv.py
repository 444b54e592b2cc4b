"""Convolutions, plain and transposed, in one to three dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_neuralpower.layers import TensorSpec
from pytest_neuralpower.tracing.recorder import dtype_name
from pytest_neuralpower.tracing.strides import channels_last_strides, is_channels_last
from pytest_neuralpower.tracing.rules.table import rule
from pytest_neuralpower.tracing.signals import NoRule

if TYPE_CHECKING:
    from torch import Tensor

    from pytest_neuralpower.tracing.recorder import Recorder

__all__ = ["conv", "conv_transpose", "full"]

Ints = tuple[int, ...]


def full(value: Any, dims: int) -> Ints:
    """``3`` or ``(3,)`` as ``(3, 3)``: torch lets both stand for every dimension."""
    if type(value) is int:
        return (value,) * dims
    values = tuple(value)
    return values * dims if len(values) == 1 and dims > 1 else values


def conv(
    recorder: Recorder,
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Tensor:
    """A convolution of an input ``(N, Cin, *spatial)`` or ``(Cin, *spatial)``."""
    shape = input.shape
    kernel = weight.shape
    dims = len(kernel) - 2
    batched = len(shape) == dims + 2
    if not batched:
        shape = (1, *shape)
    stride, dilation = full(stride, dims), full(dilation, dims)
    spatial = kernel[2:]
    if type(padding) is str:
        sides = _string_padding(padding, spatial, dilation)
    else:
        sides = None
        padding = full(padding, dims)
    if (
        len(shape) != dims + 2
        or int(op[4]) != dims
        or kernel[1] * groups != shape[1]
        or kernel[0] % groups
        or not recorder.same_dtype(input.dtype, weight.dtype)
    ):
        raise NoRule
    out: list[int] = [shape[0], kernel[0]]
    for axis in range(dims):
        both = 2 * padding[axis] if sides is None else sides[2 * axis] + sides[2 * axis + 1]
        reach = dilation[axis] * (spatial[axis] - 1)
        size = (shape[axis + 2] + both - reach - 1) // stride[axis] + 1
        if size <= 0:
            raise NoRule
        out.append(size)
    if sides is not None:
        symmetric = all(sides[2 * axis] == sides[2 * axis + 1] for axis in range(dims))
        padding = sides[::2] if symmetric else sides
    return _list(
        recorder, op, input, weight, bias, shape, tuple(out), batched,
        (
            ("dilation", dilation),
            ("groups", groups),
            ("padding", padding),
            ("stride", stride),
            ("transposed", False),
        ),
    )  # fmt: skip


def conv_transpose(
    recorder: Recorder,
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
) -> Tensor:
    """A transposed convolution; its weight is ``(Cin, Cout / groups, *kernel)``."""
    shape = input.shape
    kernel = weight.shape
    dims = len(kernel) - 2
    batched = len(shape) == dims + 2
    if not batched:
        shape = (1, *shape)
    stride, dilation = full(stride, dims), full(dilation, dims)
    padding, output_padding = full(padding, dims), full(output_padding, dims)
    if (
        len(shape) != dims + 2
        or int(op[-2]) != dims
        or kernel[0] != shape[1]
        or kernel[0] % groups
        or not recorder.same_dtype(input.dtype, weight.dtype)
    ):
        raise NoRule
    out: list[int] = [shape[0], kernel[1] * groups]
    for axis in range(dims):
        reach = dilation[axis] * (kernel[axis + 2] - 1)
        size = (shape[axis + 2] - 1) * stride[axis] - 2 * padding[axis] + reach
        size += output_padding[axis] + 1
        if size <= 0 or output_padding[axis] >= max(stride[axis], dilation[axis]):
            raise NoRule
        out.append(size)
    return _list(
        recorder, op, input, weight, bias, shape, tuple(out), batched,
        (
            ("dilation", dilation),
            ("groups", groups),
            ("output_padding", output_padding),
            ("padding", padding),
            ("stride", stride),
            ("transposed", True),
        ),
    )  # fmt: skip


def _list(
    recorder: Recorder,
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shape: Any,
    out: Ints,
    batched: bool,
    params: Any,
) -> Tensor:
    dtype = recorder.autocast(input.dtype)
    name = dtype_name(dtype)
    recorder.add(
        "conv",
        op,
        (recorder.spec(input) if batched else TensorSpec(tuple(shape), dtype_name(input.dtype)),),
        recorder.weight_specs(weight, bias),
        (TensorSpec(out, name),),
        params,
        name,
    )
    if not batched:
        return recorder.new(out[1:], dtype)
    # The meta kernel always answers contiguous; oneDNN and cuDNN answer channels_last when either
    # side is. The device's answer matters to what follows, so it is the one kept.
    if is_channels_last(input.shape, input.stride()) or is_channels_last(
        weight.shape, weight.stride()
    ):
        return recorder.new(out, dtype, channels_last_strides(out))
    return recorder.new(out, dtype)


def _string_padding(padding: str, kernel: Any, dilation: Ints) -> Ints:
    """Both sides of each dimension: ``same`` puts the odd one at the end, as torch does."""
    if padding == "valid":
        return (0,) * (2 * len(kernel))
    sides: list[int] = []
    for size, step in zip(kernel, dilation, strict=True):
        total = step * (size - 1)
        sides += (total // 2, total - total // 2)
    return tuple(sides)


@rule("conv1d")
def conv1d(
    recorder: Recorder,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    return conv(recorder, "conv1d", input, weight, bias, stride, padding, dilation, groups)


@rule("conv2d")
def conv2d(
    recorder: Recorder,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    return conv(recorder, "conv2d", input, weight, bias, stride, padding, dilation, groups)


@rule("conv3d")
def conv3d(
    recorder: Recorder,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    return conv(recorder, "conv3d", input, weight, bias, stride, padding, dilation, groups)


@rule("conv_transpose1d")
def conv_transpose1d(
    recorder: Recorder,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    return conv_transpose(
        recorder, "conv_transpose1d", input, weight, bias,
        stride, padding, output_padding, groups, dilation,
    )  # fmt: skip


@rule("conv_transpose2d")
def conv_transpose2d(
    recorder: Recorder,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    return conv_transpose(
        recorder, "conv_transpose2d", input, weight, bias,
        stride, padding, output_padding, groups, dilation,
    )  # fmt: skip


@rule("conv_transpose3d")
def conv_transpose3d(
    recorder: Recorder,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    return conv_transpose(
        recorder, "conv_transpose3d", input, weight, bias,
        stride, padding, output_padding, groups, dilation,
    )  # fmt: skip
