"""Normalisations."""

# ruff: noqa: A002, ARG001, PLR0917
# A rule has the signature of its torch function, names, order and unused arguments included.

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pytest_neuralpower.layers import TensorSpec
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

__all__ = ["batch_norm", "group_norm", "layer_norm"]

Ints = tuple[int, ...]


def _list_norm(
    recorder: Recorder,
    op: str,
    input: Tensor,
    weights: tuple[Tensor | None, ...],
    dtype: torch.dtype,
    *params: tuple[str, Any],
) -> None:
    recorder.add(
        "norm",
        op,
        (recorder.spec(input),),
        recorder.weight_specs(*weights),
        (TensorSpec(tuple(input.shape), dtype_name(dtype)),),
        params,
    )


@rule("batch_norm")
def batch_norm(
    recorder: Recorder,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """Running statistics are never updated here: the model stays as it was."""
    given = []
    for tensor in (weight, bias) if training else (weight, bias, running_mean, running_var):
        if tensor is not None:
            recorder.seen.add(id(tensor))
            given.append((tensor.shape, tensor.dtype))
    if running_mean is None and not training:
        raise NoRule
    return recorder.follow(
        _plan_batch(input.shape, input.stride(), input.dtype, tuple(given), training)
    )


@lru_cache(REMEMBERED)
def _plan_batch(
    shape: Ints,
    strides: Ints,
    dtype: torch.dtype,
    given: tuple[tuple[Ints, torch.dtype], ...],
    training: bool,
) -> Plan:
    if len(shape) < 2 or any(own != shape[1:2] for own, _ in given):
        raise NoRule
    # Statistics of one value per channel are refused in training, as torch does.
    if training and math.prod(shape) == shape[1]:
        raise NoRule
    last = is_channels_last(shape, strides)
    layout = channels_last_strides(shape) if last else contiguous_strides(shape)
    weights = tuple(spec_of(own, of) for own, of in given)
    return _plan_norm("batch_norm", shape, layout, dtype, dtype, weights, (("training", training),))


def _plan_norm(
    op: str,
    shape: Ints,
    strides: Ints,
    dtype: torch.dtype,
    result: torch.dtype,
    weights: tuple[TensorSpec, ...],
    params: tuple[tuple[str, Any], ...],
) -> Plan:
    output = spec_of(shape, result)
    return Plan(
        "norm", op, (spec_of(shape, dtype),), weights, (output,), output.dtype, params, shape,
        strides, result,
    )  # fmt: skip


@rule("layer_norm")
def layer_norm(
    recorder: Recorder,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    given = []
    for tensor in (weight, bias):
        if tensor is not None:
            recorder.seen.add(id(tensor))
            given.append((tensor.shape, tensor.dtype))
    dtype = input.dtype
    wanted = tuple(normalized_shape)
    return recorder.follow(
        _plan_layer(input.shape, dtype, recorder.autocast_up(dtype), wanted, tuple(given))
    )


@lru_cache(REMEMBERED)
def _plan_layer(
    shape: Ints,
    dtype: torch.dtype,
    result: torch.dtype,
    wanted: Ints,
    given: tuple[tuple[Ints, torch.dtype], ...],
) -> Plan:
    if not wanted or shape[-len(wanted) :] != wanted or any(own != wanted for own, _ in given):
        raise NoRule
    weights = tuple(spec_of(own, of) for own, of in given)
    return _plan_norm(
        "layer_norm", shape, contiguous_strides(shape), dtype, result, weights,
        (("normalized_shape", wanted),),
    )  # fmt: skip


@rule("rms_norm")
def rms_norm(
    recorder: Recorder,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    wanted = tuple(normalized_shape)
    if not wanted or tuple(input.shape[-len(wanted) :]) != wanted:
        raise NoRule
    if weight is not None and weight.shape != wanted:
        raise NoRule
    dtype = recorder.autocast_up(input.dtype)
    _list_norm(recorder, "rms_norm", input, (weight,), dtype, ("normalized_shape", wanted))
    return recorder.like(input, dtype)


@rule("group_norm")
def group_norm(
    recorder: Recorder,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    shape = input.shape
    # One value per group has no variance, and torch refuses it.
    if len(shape) < 2 or shape[1] % num_groups or input.numel() == num_groups:
        raise NoRule
    if weight is not None and weight.shape != shape[1:2]:
        raise NoRule
    dtype = recorder.autocast_up(input.dtype)
    _list_norm(recorder, "group_norm", input, (weight, bias), dtype, ("groups", num_groups))
    if is_channels_last(shape, input.stride()):
        return recorder.new(shape, dtype, channels_last_strides(tuple(shape)))
    return recorder.new(shape, dtype)


@rule("instance_norm")
def instance_norm(
    recorder: Recorder,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    shape = input.shape
    if len(shape) < 3 or (weight is not None and weight.shape != shape[1:2]):
        raise NoRule
    weights = (weight, bias) if use_input_stats else (weight, bias, running_mean, running_var)
    _list_norm(recorder, "instance_norm", input, weights, input.dtype)
    return recorder.new(shape, input.dtype)


@rule("local_response_norm")
def local_response_norm(
    recorder: Recorder,
    input: Tensor,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
) -> Tensor:
    if input.ndim < 3:
        raise NoRule
    _list_norm(recorder, "local_response_norm", input, (), input.dtype, ("size", size))
    return recorder.like(input)


@rule("normalize")
def normalize(
    recorder: Recorder,
    input: Tensor,
    p: float = 2.0,
    dim: Any = 1,
    eps: float = 1e-12,
    out: Tensor | None = None,
) -> Tensor:
    if out is not None:
        raise NoRule
    _list_norm(recorder, "normalize", input, (), input.dtype)
    return recorder.like(input)


@rule("_weight_norm", op="weight_norm")
def weight_norm(recorder: Recorder, v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Rescales a weight on every call, old style (a hook) and new (a parametrization)."""
    result = recorder.like(v)
    recorder.record("norm", "weight_norm", (v, g), (result,))
    return result
