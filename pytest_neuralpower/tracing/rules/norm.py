"""Normalisations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_neuralpower.layers import TensorSpec
from pytest_neuralpower.tracing.recorder import dtype_name
from pytest_neuralpower.tracing.strides import channels_last_strides, is_channels_last
from pytest_neuralpower.tracing.rules.table import rule
from pytest_neuralpower.tracing.signals import NoRule

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pytest_neuralpower.tracing.recorder import Recorder

__all__ = ["batch_norm", "group_norm", "layer_norm"]


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
    shape = input.shape
    if len(shape) < 2:
        raise NoRule
    channels = (shape[1],)
    for tensor in (running_mean, running_var, weight, bias):
        if tensor is not None and tensor.shape != channels:
            raise NoRule
    if running_mean is None and not training:
        raise NoRule
    # Statistics of one value per channel are refused in training, as torch does.
    if training and input.numel() == shape[1]:
        raise NoRule
    weights = (weight, bias) if training else (weight, bias, running_mean, running_var)
    _list_norm(recorder, "batch_norm", input, weights, input.dtype, ("training", training))
    if is_channels_last(shape, input.stride()):
        return recorder.new(shape, input.dtype, channels_last_strides(tuple(shape)))
    return recorder.new(shape, input.dtype)


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
    wanted = tuple(normalized_shape)
    if not wanted or tuple(input.shape[-len(wanted) :]) != wanted:
        raise NoRule
    if weight is not None and weight.shape != wanted:
        raise NoRule
    dtype = recorder.autocast_up(input.dtype)
    _list_norm(recorder, "layer_norm", input, (weight, bias), dtype, ("normalized_shape", wanted))
    return recorder.new(input.shape, dtype)


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
