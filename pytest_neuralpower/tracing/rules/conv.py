"""Convolutions, plain and transposed, in one to three dimensions."""

# ruff: noqa: A002, PLR0917
# A rule has the signature of its torch function, names, order and unused arguments included.

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pytest_neuralpower.tracing.fallbacks import NoRule
from pytest_neuralpower.tracing.recorder import REMEMBERED, Plan, dtype_name, spec_of
from pytest_neuralpower.tracing.rules.table import rule
from pytest_neuralpower.tracing.strides import (
    channels_last_strides,
    contiguous_strides,
    is_channels_last,
)

if TYPE_CHECKING:
    import torch
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


def _kept(value: Any) -> Any:
    """A list as a tuple: plans are remembered by their arguments, and a list cannot be a key."""
    return tuple(value) if isinstance(value, list) else value


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
    dtype = input.dtype
    if not recorder.same_dtype(dtype, weight.dtype):
        raise NoRule
    plan = _plan(
        op, input.shape, input.stride(), dtype, recorder.autocast(dtype), weight.shape,
        weight.stride(), weight.dtype, bias is not None, _kept(stride), _kept(padding),
        _kept(dilation), groups,
    )  # fmt: skip
    recorder.seen.add(id(weight))
    recorder.seen.add(id(bias))
    return recorder.follow(plan)


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
    dtype = input.dtype
    if not recorder.same_dtype(dtype, weight.dtype):
        raise NoRule
    plan = _plan_transposed(
        op, input.shape, input.stride(), dtype, recorder.autocast(dtype), weight.shape,
        weight.stride(), weight.dtype, bias is not None, _kept(stride), _kept(padding),
        _kept(output_padding), groups, _kept(dilation),
    )  # fmt: skip
    recorder.seen.add(id(weight))
    recorder.seen.add(id(bias))
    return recorder.follow(plan)


@lru_cache(REMEMBERED)
def _plan(
    op: str,
    shape: Ints,
    strides: Ints,
    dtype: torch.dtype,
    result: torch.dtype,
    weight: Ints,
    weight_strides: Ints,
    weight_dtype: torch.dtype,
    biased: bool,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Plan:
    dims = len(weight) - 2
    batched = len(shape) == dims + 2
    whole = shape if batched else (1, *shape)
    stride, dilation = full(stride, dims), full(dilation, dims)
    kernel = weight[2:]
    if isinstance(padding, str):
        sides = _string_padding(padding, kernel, dilation)
    else:
        sides = tuple(one for one in full(padding, dims) for _ in range(2))
    if (
        len(whole) != dims + 2
        or int(op[4]) != dims
        or weight[1] * groups != whole[1]
        or weight[0] % groups
    ):
        raise NoRule
    out = [whole[0], weight[0]]
    for axis in range(dims):
        reach = dilation[axis] * (kernel[axis] - 1)
        room = whole[axis + 2] + sides[2 * axis] + sides[2 * axis + 1] - reach - 1
        if room < 0:
            raise NoRule
        out.append(room // stride[axis] + 1)
    symmetric = all(sides[2 * axis] == sides[2 * axis + 1] for axis in range(dims))
    params: tuple[tuple[str, Any], ...] = (
        ("dilation", dilation),
        ("groups", groups),
        ("padding", sides[::2] if symmetric else sides),
        ("stride", stride),
        ("transposed", False),
    )
    weights = (weight, (weight[0],)) if biased else (weight,)
    return _finish(
        op, batched, whole, strides, dtype, result, weights, weight_strides, weight_dtype, out,
        params,
    )  # fmt: skip


@lru_cache(REMEMBERED)
def _plan_transposed(
    op: str,
    shape: Ints,
    strides: Ints,
    dtype: torch.dtype,
    result: torch.dtype,
    weight: Ints,
    weight_strides: Ints,
    weight_dtype: torch.dtype,
    biased: bool,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
) -> Plan:
    dims = len(weight) - 2
    batched = len(shape) == dims + 2
    whole = shape if batched else (1, *shape)
    stride, dilation = full(stride, dims), full(dilation, dims)
    padding, output_padding = full(padding, dims), full(output_padding, dims)
    if len(whole) != dims + 2 or int(op[-2]) != dims or weight[0] != whole[1] or weight[0] % groups:
        raise NoRule
    out = [whole[0], weight[1] * groups]
    for axis in range(dims):
        reach = dilation[axis] * (weight[axis + 2] - 1)
        size = (whole[axis + 2] - 1) * stride[axis] - 2 * padding[axis] + reach
        size += output_padding[axis] + 1
        if size <= 0 or output_padding[axis] >= max(stride[axis], dilation[axis]):
            raise NoRule
        out.append(size)
    params: tuple[tuple[str, Any], ...] = (
        ("dilation", dilation),
        ("groups", groups),
        ("output_padding", output_padding),
        ("padding", padding),
        ("stride", stride),
        ("transposed", True),
    )
    weights = (weight, (weight[1] * groups,)) if biased else (weight,)
    return _finish(
        op, batched, whole, strides, dtype, result, weights, weight_strides, weight_dtype, out,
        params,
    )  # fmt: skip


def _finish(
    op: str,
    batched: bool,
    whole: Ints,
    strides: Ints,
    dtype: torch.dtype,
    result: torch.dtype,
    weights: tuple[Ints, ...],
    weight_strides: Ints,
    weight_dtype: torch.dtype,
    out: list[int],
    params: tuple[tuple[str, Any], ...],
) -> Plan:
    shape = tuple(out) if batched else tuple(out[1:])
    layout = contiguous_strides(shape)
    # The meta kernel always answers contiguous; oneDNN and cuDNN answer channels_last when either
    # side is. The device's answer matters to what follows, so it is the one kept.
    if batched and (
        is_channels_last(whole, strides) or is_channels_last(weights[0], weight_strides)
    ):
        layout = channels_last_strides(shape)
    return Plan(
        "conv",
        op,
        (spec_of(whole, dtype),),
        tuple(spec_of(one, weight_dtype) for one in weights),
        (spec_of(out, result),),
        dtype_name(result),
        params,
        shape,
        layout,
        result,
    )


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
