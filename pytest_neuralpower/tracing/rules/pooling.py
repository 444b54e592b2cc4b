"""Pooling: maximum, average, power-average, and the adaptive ones."""

# ruff: noqa: A002, ARG001, PLR0917
# A rule has the signature of its torch function, names, order and unused arguments included.

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from pytest_neuralpower.tracing.fallbacks import NoRule
from pytest_neuralpower.tracing.recorder import REMEMBERED, Plan, spec_of
from pytest_neuralpower.tracing.rules.conv import full
from pytest_neuralpower.tracing.rules.table import TABLE, Entry, enter
from pytest_neuralpower.tracing.strides import (
    channels_last_strides,
    contiguous_strides,
    is_channels_last,
)
from pytest_neuralpower.tracing.torch_private import NATIVE_CLASS, NATIVE_MODULE

if TYPE_CHECKING:
    from torch import Tensor

    from pytest_neuralpower.tracing.recorder import Recorder

__all__ = ["adaptive_pool", "pool"]

Ints = tuple[int, ...]


def _follow(recorder: Recorder, plan: Plan, indices: bool) -> Any:
    values = recorder.follow(plan)
    if indices:
        return values, recorder.new(plan.shape, torch.int64, plan.strides)
    return values


def pool(
    recorder: Recorder,
    op: str,
    dims: int,
    input: Tensor,
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    indices: bool = False,
) -> Any:
    """A window sliding over the last ``dims`` dimensions."""
    kernel = full(kernel, dims)
    stride = kernel if stride is None or stride in ((), []) else full(stride, dims)
    plan = _plan(
        op, dims, input.shape, input.stride(), input.dtype, kernel, stride, full(padding, dims),
        full(dilation, dims), ceil_mode, indices,
    )  # fmt: skip
    return _follow(recorder, plan, indices)


@lru_cache(REMEMBERED)
def _plan(
    op: str,
    dims: int,
    shape: Ints,
    strides: Ints,
    dtype: torch.dtype,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    ceil_mode: bool,
    indices: bool,
) -> Plan:
    if len(shape) not in (dims + 1, dims + 2) or not len(kernel) == len(stride) == dims:
        raise NoRule
    out = list(shape)
    for axis in range(dims):
        size = shape[axis - dims]
        spare = size + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1
        steps = spare // stride[axis]
        # A last window may overhang, but must start inside the input or its left padding.
        overhangs = ceil_mode and spare % stride[axis] > 0
        if overhangs and (steps + 1) * stride[axis] < size + padding[axis]:
            steps += 1
        # Under the ceiling a window wider than its input fits some kernels and not others.
        if spare < 0 or 2 * padding[axis] > kernel[axis]:
            raise NoRule
        out[axis - dims] = steps + 1
    params: tuple[tuple[str, Any], ...] = (
        ("kernel", kernel),
        ("padding", padding),
        ("stride", stride),
    )
    if max(dilation) > 1:
        params = (("dilation", dilation), *params)
    return _finish(op, dims, shape, strides, dtype, tuple(out), params, indices)


def _finish(
    op: str,
    dims: int,
    shape: Ints,
    strides: Ints,
    dtype: torch.dtype,
    out: Ints,
    params: tuple[tuple[str, Any], ...],
    indices: bool,
) -> Plan:
    last = len(out) == dims + 2 and is_channels_last(shape, strides)
    layout = channels_last_strides(out) if last else contiguous_strides(out)
    output = spec_of(out, dtype)
    outputs = (output, spec_of(out, torch.int64)) if indices else (output,)
    return Plan(
        "pool", op, (spec_of(shape, dtype),), (), outputs, output.dtype, params, out, layout, dtype
    )


def adaptive_pool(
    recorder: Recorder, op: str, dims: int, input: Tensor, size: Any, indices: bool = False
) -> Any:
    """Pooling to a given size; ``None`` keeps a dimension."""
    wanted = tuple(size) if isinstance(size, (tuple, list)) else (size,) * dims
    plan = _plan_adaptive(op, dims, input.shape, input.stride(), input.dtype, wanted, indices)
    return _follow(recorder, plan, indices)


@lru_cache(REMEMBERED)
def _plan_adaptive(
    op: str,
    dims: int,
    shape: Ints,
    strides: Ints,
    dtype: torch.dtype,
    wanted: tuple[int | None, ...],
    indices: bool,
) -> Plan:
    if len(shape) not in (dims + 1, dims + 2):
        raise NoRule
    if len(wanted) == 1:
        wanted *= dims
    spatial = shape[-dims:]
    sizes = tuple(
        have if want is None else want for have, want in zip(spatial, wanted, strict=True)
    )
    # The window is even where the size divides; elsewhere windows differ and none is named.
    params: tuple[tuple[str, Any], ...] = (("adaptive", True),)
    if all(size and have % size == 0 for have, size in zip(spatial, sizes, strict=True)):
        window = tuple(have // size for have, size in zip(spatial, sizes, strict=True))
        params += (("kernel", window), ("padding", (0,) * dims), ("stride", window))
    out = (*shape[:-dims], *sizes)
    return _finish(op, dims, shape, strides, dtype, out, params, indices)


def _register(dims: int) -> None:
    """Enter the pooling functions of one dimensionality."""
    max_pool, avg_pool, lp_pool = f"max_pool{dims}d", f"avg_pool{dims}d", f"lp_pool{dims}d"

    def maximum(
        recorder: Recorder,
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        return pool(
            recorder, max_pool, dims, input, kernel_size, stride, padding, dilation, ceil_mode
        )

    def maximum_with_indices(
        recorder: Recorder,
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = True,
    ) -> Any:
        return pool(
            recorder, max_pool, dims, input, kernel_size, stride, padding, dilation, ceil_mode, True
        )

    def average(
        recorder: Recorder,
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Any:
        return pool(recorder, avg_pool, dims, input, kernel_size, stride, padding, 1, ceil_mode)

    def power_average(
        recorder: Recorder,
        input: Tensor,
        norm_type: Any,
        kernel_size: Any,
        stride: Any = None,
        ceil_mode: bool = False,
    ) -> Any:
        return pool(recorder, lp_pool, dims, input, kernel_size, stride, 0, 1, ceil_mode)

    def adaptive_average(recorder: Recorder, input: Tensor, output_size: Any) -> Any:
        return adaptive_pool(recorder, f"adaptive_avg_pool{dims}d", dims, input, output_size)

    def adaptive_maximum(
        recorder: Recorder, input: Tensor, output_size: Any, return_indices: bool = False
    ) -> Any:
        return adaptive_pool(recorder, f"adaptive_max_pool{dims}d", dims, input, output_size)

    def adaptive_maximum_with_indices(
        recorder: Recorder, input: Tensor, output_size: Any, return_indices: bool = True
    ) -> Any:
        return adaptive_pool(recorder, f"adaptive_max_pool{dims}d", dims, input, output_size, True)

    enter(Entry("rule", max_pool, maximum), max_pool)
    enter(Entry("rule", max_pool, maximum_with_indices), f"{max_pool}_with_indices")
    enter(Entry("rule", avg_pool, average), avg_pool)
    enter(Entry("rule", lp_pool, power_average), lp_pool)
    adaptive_avg, adaptive_max = f"adaptive_avg_pool{dims}d", f"adaptive_max_pool{dims}d"
    enter(Entry("rule", adaptive_avg, adaptive_average), adaptive_avg)
    with_indices = Entry("rule", adaptive_max, adaptive_maximum_with_indices)
    enter(with_indices, f"{adaptive_max}_with_indices")
    # Only the functional returns values alone; torch's own function of that name returns both.
    TABLE[getattr(torch.nn.functional, adaptive_max)] = Entry(
        "rule", adaptive_max, adaptive_maximum
    )
    for place in (torch, NATIVE_MODULE, NATIVE_CLASS):
        function = getattr(place, adaptive_max, None)
        if function is not None:
            TABLE[function] = with_indices


for _dims in (1, 2, 3):
    _register(_dims)
