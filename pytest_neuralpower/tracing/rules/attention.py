"""Attention: the fused call, and multi-head attention as its projections and one attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_neuralpower.layers import TensorSpec
from pytest_neuralpower.tracing.recorder import dtype_name
from pytest_neuralpower.tracing.strides import broadcast_shapes
from pytest_neuralpower.tracing.rules.table import rule
from pytest_neuralpower.tracing.signals import NoRule

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pytest_neuralpower.tracing.recorder import Recorder

__all__ = ["multi_head_attention", "scaled_dot_product_attention"]

Ints = tuple[int, ...]


def _four(shape: Any) -> Ints:
    """``(B, H, L, E)`` of any batch dimensions: missing ones are 1, further ones are merged."""
    lead, rest = tuple(shape[:-2]), tuple(shape[-2:])
    while len(lead) > 2:
        lead = (lead[0] * lead[1], *lead[2:])
    if len(lead) == 1:
        return (lead[0], 1, *rest)
    return (1,) * (2 - len(lead)) + lead + rest


def _list_attention(
    recorder: Recorder,
    query: Ints,
    key: Ints,
    value: Ints,
    dtype: torch.dtype,
    mask: Tensor | None,
    causal: bool,
    dropout: float,
) -> None:
    name = dtype_name(dtype)
    inputs = [TensorSpec(_four(shape), name) for shape in (query, key, value)]
    if mask is not None:
        inputs.append(recorder.spec(mask))
    recorder.add(
        "attention",
        "scaled_dot_product_attention",
        inputs,
        (),
        (TensorSpec((*_four(query)[:-1], value[-1]), name),),
        (("causal", causal), ("dropout", float(dropout)), ("masked", mask is not None)),
        name,
    )


@rule("scaled_dot_product_attention")
def scaled_dot_product_attention(
    recorder: Recorder,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    q, k, v = tuple(query.shape), tuple(key.shape), tuple(value.shape)
    if (
        min(len(q), len(k), len(v)) < 2
        or q[-1] != k[-1]
        or k[-2] != v[-2]
        or not recorder.same_dtype(query.dtype, key.dtype)
        or not recorder.same_dtype(query.dtype, value.dtype)
    ):
        raise NoRule
    if enable_gqa and len(q) >= 3 and q[-3] != k[-3]:
        if q[-3] % k[-3] or k[-3] != v[-3]:
            raise NoRule
        batch = (*broadcast_shapes(q[:-3], k[:-3], v[:-3]), q[-3])
    else:
        batch = broadcast_shapes(q[:-2], k[:-2], v[:-2])
    out = (*batch, q[-2], v[-1])
    if attn_mask is not None:
        scores = (*batch, q[-2], k[-2])
        if broadcast_shapes(tuple(attn_mask.shape), scores) != scores:
            raise NoRule
    dtype = recorder.autocast(query.dtype)
    recorder.note_seen(query, key, value)
    _list_attention(
        recorder, (*batch, *q[-2:]), k, v, dtype, attn_mask, is_causal, dropout_p
    )
    # The fused kernels answer (B, L, H, E) in memory, the plain one (B, H, L, E); torch's meta
    # kernel of the composite answers the plain one, and so do we.
    return recorder.new(out, dtype)


@rule("multi_head_attention_forward")
def multi_head_attention(
    recorder: Recorder,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Inputs ``(L, N, E)`` or ``(L, E)``; its layers are the projections it makes.

    One projection of the whole for self-attention, query alone and key with value together where
    those two are the same tensor, three otherwise: as ``_in_projection_packed`` does.
    """
    batched = query.ndim == 3
    if static_k is not None or static_v is not None or query.ndim not in (2, 3):
        raise NoRule
    length, width = query.shape[0], query.shape[-1]
    batch = query.shape[1] if batched else 1
    source = key.shape[0]
    if (
        width != embed_dim_to_check
        or width % num_heads
        or key.ndim != query.ndim
        or key.shape[:-1] != value.shape[:-1]
        or (batched and key.shape[1] != batch)
        or not recorder.same_dtype(query.dtype, out_proj_weight.dtype)
    ):
        raise NoRule
    dtype = recorder.autocast(query.dtype)
    name = dtype_name(dtype)

    def project(tensor: Tensor, rows: int, weight: TensorSpec, biased: bool) -> None:
        bias = (TensorSpec((rows,), weight.dtype),) if biased else ()
        recorder.add(
            "linear",
            "linear",
            (recorder.spec(tensor),),
            (weight, *bias),
            (TensorSpec((*tensor.shape[:-1], rows), name),),
            (),
            name,
        )

    biased = in_proj_bias is not None
    if biased:
        recorder.weight_specs(in_proj_bias)
    if use_separate_proj_weight:
        tensors = (query, key, value)
        weights = (q_proj_weight, k_proj_weight, v_proj_weight)
        for tensor, weight in zip(tensors, weights, strict=True):
            if weight is None or weight.shape[-1] != tensor.shape[-1]:
                raise NoRule
        for tensor, weight in zip(tensors, weights, strict=True):
            (spec,) = recorder.weight_specs(weight)
            project(tensor, spec.shape[0], spec, biased)
    else:
        if in_proj_weight is None or in_proj_weight.shape[0] != 3 * width:
            raise NoRule
        if key.shape[-1] != width or value.shape[-1] != width:
            raise NoRule
        (packed,) = recorder.weight_specs(in_proj_weight)
        if key is value and query is key:
            parts = ((query, 3),)
        elif key is value:
            parts = ((query, 1), (key, 2))
        else:
            parts = ((query, 1), (key, 1), (value, 1))
        for tensor, times in parts:
            rows = times * width
            project(tensor, rows, TensorSpec((rows, width), packed.dtype), biased)
    if bias_k is not None and bias_v is not None:
        recorder.weight_specs(bias_k, bias_v)
        source += 1
    if add_zero_attn:
        source += 1
    head = width // num_heads
    mask = attn_mask if attn_mask is not None else key_padding_mask
    _list_attention(
        recorder,
        (batch, num_heads, length, head),
        (batch, num_heads, source, head),
        (batch, num_heads, source, head),
        dtype,
        mask,
        is_causal and mask is None,
        dropout_p if training else 0.0,
    )
    out = recorder.new((length * batch, width), dtype)
    weight_spec, *bias_spec = recorder.weight_specs(out_proj_weight, out_proj_bias)
    recorder.add(
        "linear",
        "linear",
        (recorder.spec(out),),
        (weight_spec, *bias_spec),
        (TensorSpec((length * batch, weight_spec.shape[0]), name),),
        (),
        name,
    )
    shape: Ints = (length, batch, weight_spec.shape[0]) if batched else (length, width)
    output = recorder.new(shape, dtype)
    if not need_weights:
        return output, None
    scores: Ints = (batch, length, source)
    if not average_attn_weights:
        scores = (batch, num_heads, length, source)
    return output, recorder.new(scores if batched else scores[1:], dtype)
