"""Fully connected layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_neuralpower.layers import TensorSpec
from pytest_neuralpower.tracing.recorder import dtype_name
from pytest_neuralpower.tracing.rules.table import rule
from pytest_neuralpower.tracing.signals import NoRule

if TYPE_CHECKING:
    from torch import Tensor

    from pytest_neuralpower.tracing.recorder import Recorder

__all__ = ["linear", "list_linear"]


@rule("linear")
def linear(
    recorder: Recorder, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    shape = input.shape
    wide = weight.shape
    if (
        not shape
        or shape[-1] != wide[-1]
        or not recorder.same_dtype(input.dtype, weight.dtype)
        or (bias is not None and (len(wide) != 2 or bias.shape != wide[:1]))
    ):
        raise NoRule
    dtype = recorder.autocast(input.dtype)
    # A 1-d weight, as a vector's dot product, yields no feature axis.
    out = (*shape[:-1], wide[0]) if len(wide) == 2 else shape[:-1]
    if len(wide) == 1:
        wide = (1, *wide)
    list_linear(recorder, "linear", input, weight, bias, out, dtype)
    return recorder.new(out, dtype)


def list_linear(
    recorder: Recorder,
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Any,
    dtype: Any,
) -> None:
    """List one projection ``(*, K) -> (*, N)``."""
    name = dtype_name(dtype)
    recorder.add(
        "linear",
        op,
        (recorder.spec(input),),
        recorder.weight_specs(weight, bias),
        (TensorSpec(out, name),),
        (),
        name,
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
