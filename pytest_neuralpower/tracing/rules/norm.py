"""Normalisations."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from pytest_neuralpower.tracing.fallbacks import NoRule
from pytest_neuralpower.tracing.recorder import REMEMBERED, OperationPlan, planned, spec_of
from pytest_neuralpower.tracing.strides import Ints, formatted_like

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pytest_neuralpower.tracing.recorder import Recorder
    from pytest_neuralpower.tracing.rules.table import Rule

    Outline = tuple[Ints, torch.dtype]


def _read(recorder: Recorder, *weights: Tensor | None) -> tuple[Outline, ...]:
    """Shapes and dtypes of the weights that are there; marks them as read."""
    given = [tensor for tensor in weights if tensor is not None]
    recorder.seen.update(map(id, given))
    return tuple([(tensor.shape, tensor.dtype) for tensor in given])


def batch_norm(
    recorder: Recorder,
    op: str,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
    *,
    buffers: bool = False,
) -> Tensor:
    """Running statistics are never updated here: the model stays as it was.

    As a module's own ``buffers``, they are no layer's outputs.
    """
    if running_mean is None and not training:
        raise NoRule
    statistics = () if training else (running_mean, running_var)
    given = _read(recorder, weight, bias, *statistics)
    plan = _plan_batch(input.shape, input.stride(), input.dtype, given, training)
    operands = (input, weight, bias) if buffers else (input, weight, bias, *statistics)
    return recorder.follow(plan, operands)


@lru_cache(REMEMBERED)
def _plan_batch(
    shape: Ints, strides: Ints, dtype: torch.dtype, given: tuple[Outline, ...], training: bool
) -> OperationPlan:
    if len(shape) < 2 or any(own != shape[1:2] for own, _ in given):
        raise NoRule
    # Statistics of one value per channel are refused in training, as torch does.
    if training and math.prod(shape) == shape[1]:
        raise NoRule
    return planned(
        "norm", "batch_norm", (spec_of(shape, dtype),), shape, dtype,
        weights=tuple(spec_of(*one) for one in given), params=(("training", training),),
        strides=formatted_like(shape, strides, shape),
    )  # fmt: skip


def layer_norm(
    recorder: Recorder,
    op: str,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    dtype = recorder.autocast_up(input.dtype)
    data = recorder.dense(recorder.cast(input, dtype))
    given = _read(recorder, weight, bias)
    plan = _plan_layer(data.shape, data.dtype, dtype, tuple(normalized_shape), given)
    return recorder.follow(plan, (data, weight, bias))


@lru_cache(REMEMBERED)
def _plan_layer(
    shape: Ints, dtype: torch.dtype, result: torch.dtype, wanted: Ints, given: tuple[Outline, ...]
) -> OperationPlan:
    if not wanted or shape[-len(wanted) :] != wanted or any(own != wanted for own, _ in given):
        raise NoRule
    return planned(
        "norm", "layer_norm", (spec_of(shape, dtype),), shape, result,
        weights=tuple(spec_of(*one) for one in given), params=(("normalized_shape", wanted),),
    )  # fmt: skip


def _list_norm(
    recorder: Recorder,
    op: str,
    input: Tensor,
    weights: tuple[Tensor | None, ...],
    output: Tensor,
    *params: tuple[str, Any],
) -> Tensor:
    recorder.add(
        "norm", op, (recorder.spec(input),), recorder.weight_specs(*weights),
        (recorder.spec(output),), params, reads=(input, *weights), makes=(output,),
    )  # fmt: skip
    return output


def _rms_norm(
    recorder: Recorder,
    op: str,
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
    data = recorder.cast(input, recorder.autocast_up(input.dtype))
    output = recorder.like(data)
    return _list_norm(recorder, op, data, (weight,), output, ("normalized_shape", wanted))


def group_norm(
    recorder: Recorder,
    op: str,
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
    data = recorder.cast(input, recorder.autocast_up(input.dtype))
    output = recorder.formatted(data, tuple(shape), data.dtype)
    return _list_norm(recorder, op, data, (weight, bias), output, ("groups", num_groups))


def _instance_norm(
    recorder: Recorder,
    op: str,
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
    return _list_norm(recorder, op, input, weights, recorder.new(shape, input.dtype))


def _local_response_norm(
    recorder: Recorder,
    op: str,
    input: Tensor,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
) -> Tensor:
    if input.ndim < 3:
        raise NoRule
    return _list_norm(recorder, op, input, (), recorder.like(input), ("size", size))


def _normalize(
    recorder: Recorder,
    op: str,
    input: Tensor,
    p: float = 2.0,
    dim: Any = 1,
    eps: float = 1e-12,
    out: Tensor | None = None,
) -> Tensor:
    if out is not None:
        raise NoRule
    return _list_norm(recorder, op, input, (), recorder.like(input))


def _weight_norm(recorder: Recorder, op: str, v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Rescales a weight on every call, old style (a hook) and new (a parametrization)."""
    return recorder.record("norm", op, (v, g), recorder.like(v))


RULES: Final[dict[Any, Rule]] = {
    "batch_norm": batch_norm,
    "layer_norm": layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": group_norm,
    "instance_norm": _instance_norm,
    "local_response_norm": _local_response_norm,
    "normalize": _normalize,
    "_weight_norm": _weight_norm,
}
