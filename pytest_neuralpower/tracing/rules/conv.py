"""Convolutions, plain and transposed, in one to three dimensions."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from pytest_neuralpower.tracing.fallbacks import NoRule
from pytest_neuralpower.tracing.recorder import REMEMBERED, OperationPlan, planned, spec_of
from pytest_neuralpower.tracing.strides import (
    Ints,
    channels_last_strides,
    contiguous_strides,
    is_channels_last,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pytest_neuralpower.tracing.recorder import Recorder
    from pytest_neuralpower.tracing.rules.table import Rule


def full(value: Any, dims: int) -> Ints:
    """``3`` or ``(3,)`` as ``(3, 3)``: torch lets both stand for every dimension."""
    if type(value) is int:
        return (value,) * dims
    values = tuple(value)
    return values * dims if len(values) == 1 and dims > 1 else values


def _kept(value: Any) -> Any:
    """A list as a tuple."""
    return tuple(value) if isinstance(value, list) else value


def conv(
    recorder: Recorder,
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    output_padding: Any = None,
) -> Tensor:
    """A convolution of an input ``(N, Cin, *spatial)`` or ``(Cin, *spatial)``.

    Plain, with a weight ``(Cout, Cin / groups, *kernel)``; given an ``output_padding``,
    transposed, with a weight ``(Cin, Cout / groups, *kernel)``.
    """
    dtype, of_weight = input.dtype, weight.dtype
    if dtype is not of_weight and not recorder.same_dtype(dtype, of_weight):
        raise NoRule
    dtype = recorder.autocast(dtype)
    data = recorder.cast(input, dtype)
    operands = (
        data.shape, data.stride(), data.dtype, dtype, weight.shape,
        weight.stride(), of_weight, bias is not None,
    )  # fmt: skip
    try:
        plan = _plan(op, *operands, stride, padding, dilation, groups, output_padding)
    except TypeError:  # plans are remembered by their arguments, and a list cannot be a key
        settings = map(_kept, (stride, padding, dilation, groups, output_padding))
        plan = _plan(op, *operands, *settings)
    recorder.seen.add(id(weight))
    recorder.seen.add(id(bias))
    return recorder.follow(plan, (data, weight, bias))


def conv_transpose(
    recorder: Recorder,
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    return conv(
        recorder, op, input, weight, bias, stride, padding, dilation, groups, output_padding
    )


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
    output_padding: Any,
) -> OperationPlan:
    dims = len(weight) - 2
    batched = len(shape) == dims + 2
    whole = shape if batched else (1, *shape)
    transposed = output_padding is not None
    features, channels = weight[0], weight[1] * groups
    if transposed:
        features, channels = channels, features
    if (
        len(whole) != dims + 2
        or int(op[-2]) != dims
        or channels != whole[1]
        or weight[0] % groups
    ):  # fmt: skip
        raise NoRule
    stride, dilation, kernel = full(stride, dims), full(dilation, dims), weight[2:]
    params: tuple[tuple[str, Any], ...] = (("stride", stride), ("transposed", transposed))
    reach = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
    out = [whole[0], features]
    if transposed:
        padding, extra = full(padding, dims), full(output_padding, dims)
        for axis in range(dims):
            size = (whole[axis + 2] - 1) * stride[axis] - 2 * padding[axis] + reach[axis]
            if size + extra[axis] < 0 or extra[axis] >= max(stride[axis], dilation[axis]):
                raise NoRule
            out.append(size + extra[axis] + 1)
        params = (("output_padding", extra), ("padding", padding), *params)
    else:
        before, after = _sides(padding, reach)
        for axis in range(dims):
            room = whole[axis + 2] + before[axis] + after[axis] - reach[axis] - 1
            if room < 0:
                raise NoRule
            out.append(room // stride[axis] + 1)
        both = tuple(side for pair in zip(before, after, strict=True) for side in pair)
        params = (("padding", before if before == after else both), *params)
    # The meta kernel always answers contiguous; oneDNN and cuDNN answer channels_last when either
    # side is. The device's answer matters to what follows, so it is the one kept.
    last = batched and (
        is_channels_last(whole, strides) or is_channels_last(weight, weight_strides)
    )  # fmt: skip
    shape = tuple(out) if batched else tuple(out[1:])
    weights = (weight, (features,)) if biased else (weight,)
    return planned(
        "conv", op, (spec_of(whole, dtype),), shape, result,
        strides=channels_last_strides(shape) if last else contiguous_strides(shape),
        weights=tuple(spec_of(one, weight_dtype) for one in weights),
        outputs=(spec_of(out, result),),
        params=(("dilation", dilation), ("groups", groups), *params),
    )  # fmt: skip


def _sides(padding: Any, reach: list[int]) -> tuple[Ints, Ints]:
    """Padding before and after each dimension: ``same`` puts the odd one at the end."""
    if padding == "same":
        before = tuple(total // 2 for total in reach)
        return before, tuple(total - total // 2 for total in reach)
    sides = (0,) * len(reach) if padding == "valid" else full(padding, len(reach))
    return sides, sides


RULES: Final[dict[Any, Rule]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), conv_transpose),
}
