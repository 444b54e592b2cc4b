"""Table look-ups: embeddings and bags of them."""

# ruff: noqa: A002, ARG001, PLR0917
# A rule has the signature of its torch function, names, order and unused arguments included.

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_neuralpower.layers import TensorSpec
from pytest_neuralpower.tracing.recorder import dtype_name
from pytest_neuralpower.tracing.rules.table import rule
from pytest_neuralpower.tracing.signals import NoRule

if TYPE_CHECKING:
    from torch import Tensor

    from pytest_neuralpower.tracing.recorder import Recorder

__all__ = ["embedding"]


@rule("embedding")
def embedding(
    recorder: Recorder,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Indices are not looked at: one out of range is the device's error, not the shape's."""
    if weight.ndim != 2 or input.dtype.is_floating_point:
        raise NoRule
    out = (*input.shape, weight.shape[1])
    recorder.add(
        "embedding",
        "embedding",
        (recorder.spec(input),),
        recorder.weight_specs(weight),
        (TensorSpec(out, dtype_name(weight.dtype)),),
    )
    return recorder.new(out, weight.dtype)


@rule("embedding_bag")
def embedding_bag(
    recorder: Recorder,
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    if input.dtype.is_floating_point or (offsets is None) != (input.ndim == 2):
        raise NoRule
    if offsets is None:
        bags = input.shape[0]
    else:
        bags = offsets.shape[0] - (1 if include_last_offset else 0)
    out = (bags, weight.shape[1])
    inputs = [input, *(tensor for tensor in (offsets, per_sample_weights) if tensor is not None)]
    recorder.add(
        "embedding",
        "embedding_bag",
        [recorder.spec(tensor) for tensor in inputs],
        recorder.weight_specs(weight),
        (TensorSpec(out, dtype_name(weight.dtype)),),
        (("mode", mode), ("rows", input.numel())),
    )
    return recorder.new(out, weight.dtype)
