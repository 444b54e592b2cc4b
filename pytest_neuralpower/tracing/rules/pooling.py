"""Pooling: maximum, average, power-average, and the adaptive ones."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

import torch

from pytest_neuralpower.tracing.fallbacks import NoRule
from pytest_neuralpower.tracing.recorder import REMEMBERED, OperationPlan, planned, spec_of
from pytest_neuralpower.tracing.rules.conv import full
from pytest_neuralpower.tracing.strides import Ints, channels_last_strides, is_channels_last

if TYPE_CHECKING:
    from torch import Tensor

    from pytest_neuralpower.tracing.recorder import Recorder
    from pytest_neuralpower.tracing.rules.table import Rule


def max_pool(
    recorder: Recorder,
    op: str,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    indices: bool = False,
) -> Any:
    """A window sliding over as many last dimensions as ``op`` names.

    ``indices`` says what is returned: torch has a function for either, whatever it is told.
    """
    dims = int(op[-2])
    kernel = full(kernel_size, dims)
    stride = kernel if stride is None or stride in ((), []) else full(stride, dims)
    plan = _plan(
        op, dims, input.shape, input.stride(), input.dtype, kernel, stride, full(padding, dims),
        full(dilation, dims), ceil_mode, indices,
    )  # fmt: skip
    return _follow(recorder, plan, input, indices)


def avg_pool(
    recorder: Recorder,
    op: str,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    return max_pool(recorder, op, input, kernel_size, stride, padding, 1, ceil_mode)


def _lp_pool(
    recorder: Recorder,
    op: str,
    input: Tensor,
    norm_type: Any,
    kernel_size: Any,
    stride: Any = None,
    ceil_mode: bool = False,
) -> Any:
    return max_pool(recorder, op, input, kernel_size, stride, 0, 1, ceil_mode)


def _follow(recorder: Recorder, plan: OperationPlan, input: Tensor, indices: bool) -> Any:
    values = recorder.follow(plan, (input,))
    if indices:
        places = recorder.new(plan.shape, torch.int64, plan.strides)
        recorder.made(places)
        return values, places
    return values


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
) -> OperationPlan:
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
        # avg_pool3d alone counts without the padding.
        narrow = spare < 0 or (op == "avg_pool3d" and size < kernel[axis])
        if narrow or 2 * padding[axis] > kernel[axis]:
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
) -> OperationPlan:
    last = len(out) == dims + 2 and is_channels_last(shape, strides)
    outputs = [spec_of(out, each) for each in ((dtype, torch.int64) if indices else (dtype,))]
    return planned(
        "pool", op, (spec_of(shape, dtype),), out, dtype, outputs=tuple(outputs), params=params,
        strides=channels_last_strides(out) if last else None,
    )  # fmt: skip


def adaptive_pool(
    recorder: Recorder,
    op: str,
    input: Tensor,
    output_size: Any,
    return_indices: bool = False,
    *,
    indices: bool = False,
) -> Any:
    """Pooling to a given size; ``None`` keeps a dimension."""
    dims = int(op[-2])
    size = output_size
    wanted = tuple(size) if isinstance(size, (tuple, list)) else (size,) * dims
    plan = _plan_adaptive(op, dims, input.shape, input.stride(), input.dtype, wanted, indices)
    return _follow(recorder, plan, input, indices)


@lru_cache(REMEMBERED)
def _plan_adaptive(
    op: str,
    dims: int,
    shape: Ints,
    strides: Ints,
    dtype: torch.dtype,
    wanted: tuple[int | None, ...],
    indices: bool,
) -> OperationPlan:
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


_MAXIMA: Final = ("max_pool1d", "max_pool2d", "max_pool3d")
_ADAPTIVE_MAXIMA: Final = ("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
WITH_INDICES: Final = (*_MAXIMA, *_ADAPTIVE_MAXIMA)

_max_pool_with_indices = partial(max_pool, indices=True)
_adaptive_with_indices = partial(adaptive_pool, indices=True)

RULES: Final[dict[Any, Rule]] = {
    **dict.fromkeys(_MAXIMA, max_pool),
    **{f"{name}_with_indices": _max_pool_with_indices for name in _MAXIMA},
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), avg_pool),
    **dict.fromkeys(("lp_pool1d", "lp_pool2d", "lp_pool3d"), _lp_pool),
    **dict.fromkeys(
        ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"), adaptive_pool
    ),
    # Torch's own function returns both; the functional of that name the values alone.
    **dict.fromkeys(_ADAPTIVE_MAXIMA, _adaptive_with_indices),
    **{f"{name}_with_indices": _adaptive_with_indices for name in _ADAPTIVE_MAXIMA},
    **{getattr(torch.nn.functional, name): adaptive_pool for name in _ADAPTIVE_MAXIMA},
}
