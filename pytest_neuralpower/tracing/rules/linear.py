"""Fully connected layers."""

# ruff: noqa: A002, PLR0917
# A rule has the signature of its torch function, names, order and unused arguments included.

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from pytest_neuralpower.layers import TensorSpec
from pytest_neuralpower.tracing.recorder import REMEMBERED, Plan, dtype_name, spec_of
from pytest_neuralpower.tracing.rules.table import rule
from pytest_neuralpower.tracing.signals import NoRule
from pytest_neuralpower.tracing.strides import contiguous_strides

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pytest_neuralpower.tracing.recorder import Recorder

__all__ = ["linear"]

Ints = tuple[int, ...]


@rule("linear")
def linear(recorder: Recorder, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    dtype = input.dtype
    if not recorder.same_dtype(dtype, weight.dtype):
        raise NoRule
    plan = _plan(
        input.shape,
        dtype,
        recorder.autocast(dtype),
        weight.shape,
        weight.dtype,
        None if bias is None else bias.shape,
    )
    recorder.seen.add(id(weight))
    recorder.seen.add(id(bias))
    return recorder.follow(plan)


@lru_cache(REMEMBERED)
def _plan(
    shape: Ints,
    dtype: torch.dtype,
    result: torch.dtype,
    weight: Ints,
    weight_dtype: torch.dtype,
    bias: Ints | None,
) -> Plan:
    if not shape or shape[-1] != weight[-1] or (bias is not None and bias != weight[:-1]):
        raise NoRule
    # A 1-d weight makes a dot product, without a feature axis.
    out = (*shape[:-1], *weight[:-1])
    wide = weight if len(weight) == 2 else (1, *weight)
    return Plan(
        "linear",
        "linear",
        (spec_of(shape, dtype),),
        tuple(spec_of(one, weight_dtype) for one in (wide, bias) if one is not None),
        (spec_of(out, result),),
        dtype_name(result),
        (),
        out,
        contiguous_strides(out),
        result,
    )


@rule("bilinear")
def bilinear(
    recorder: Recorder,
    input1: Tensor,
    input2: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """``x1 W x2`` as torch's ``_trilinear`` computes it: (N x I1) by (I1 x I2) for each output."""
    if input1.shape[:-1] != input2.shape[:-1] or weight.shape[1:] != (
        input1.shape[-1],
        input2.shape[-1],
    ):
        raise NoRule
    out = (*input1.shape[:-1], weight.shape[0])
    name = dtype_name(input1.dtype)
    recorder.add(
        "matmul",
        "bilinear",
        (recorder.spec(input1), recorder.spec(input2)),
        recorder.weight_specs(weight, bias),
        (TensorSpec(out, name),),
        # Every output element sums over both feature axes.
        (("reduced", input1.shape[-1] * input2.shape[-1]),),
        name,
    )
    return recorder.new(out, input1.dtype)
