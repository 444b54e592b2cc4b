"""Attention: the fused call, and multi-head attention as its projections and one attention."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import torch

from pytest_neuralpower.layers import TensorSpec
from pytest_neuralpower.tracing.fallbacks import NoRule
from pytest_neuralpower.tracing.recorder import REMEMBERED, OperationPlan, planned, spec_of
from pytest_neuralpower.tracing.strides import Ints, broadcast_shapes

if TYPE_CHECKING:
    from torch import Tensor

    from pytest_neuralpower.tracing.recorder import Recorder
    from pytest_neuralpower.tracing.rules.table import Rule


def _four(shape: Any) -> Ints:
    """``(B, H, L, E)`` of any batch dimensions: missing ones are 1, further ones are merged."""
    lead, rest = tuple(shape[:-2]), tuple(shape[-2:])
    while len(lead) > 2:
        lead = (lead[0] * lead[1], *lead[2:])
    if len(lead) == 1:
        return (lead[0], 1, *rest)
    return (1,) * (2 - len(lead)) + lead + rest


def _scaled_dot_product_attention(
    recorder: Recorder,
    op: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    dtype = query.dtype
    if not recorder.same_dtype(dtype, key.dtype) or not recorder.same_dtype(dtype, value.dtype):
        raise NoRule
    recorder.note_seen(query, key, value)
    dtype = recorder.autocast(dtype)
    query, key, value = (recorder.cast(tensor, dtype) for tensor in (query, key, value))
    plan = plan_attention(
        query.shape, key.shape, value.shape, dtype,
        None if attn_mask is None else recorder.spec(attn_mask), bool(is_causal),
        float(dropout_p), enable_gqa,
    )  # fmt: skip
    if {query.ndim, key.ndim, value.ndim} != {4}:
        return _in_parts(recorder, (query, key, value), attn_mask, plan)
    return recorder.follow(plan, (query, key, value, attn_mask))


def _in_parts(
    recorder: Recorder,
    operands: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None,
    plan: OperationPlan,
) -> Tensor:
    """Fused kernels take four dimensions; of others torch makes two products and a softmax, in
    float32 where the operands have 16 bits (``_scaled_dot_product_attention_math``)."""
    dtype = operands[0].dtype
    exact = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    query, key, value = (recorder.cast(tensor, exact) for tensor in operands)
    query = recorder.result("elementwise", "mul", (query,), query.shape, exact)
    key = recorder.result("elementwise", "mul", (key,), key.shape, exact)
    scores = (*plan.shape[:-1], key.shape[-2])
    weights = recorder.result("matmul", "matmul", (query, key.mT), scores, exact)
    if mask is not None:
        weights = recorder.result("elementwise", "add", (weights, mask), scores, exact)
    weights = recorder.follow(
        planned("softmax", "softmax", (recorder.spec(weights),), scores, exact,
                params=(("dim", len(scores) - 1),)),
        (weights,),
    )  # fmt: skip
    out = recorder.result("matmul", "matmul", (weights, value), plan.shape, exact)
    return recorder.cast(out, dtype)


@lru_cache(REMEMBERED)
def plan_attention(
    query: Ints,
    key: Ints,
    value: Ints,
    dtype: torch.dtype,
    mask: TensorSpec | None,
    causal: bool,
    dropout: float,
    grouped: bool,
) -> OperationPlan:
    if min(map(len, (query, key, value))) < 2 or query[-1] != key[-1] or key[-2] != value[-2]:
        raise NoRule
    if grouped and len(query) >= 3 and query[-3] != key[-3]:
        if query[-3] % key[-3] or key[-3] != value[-3]:
            raise NoRule
        batch = (*broadcast_shapes(query[:-3], key[:-3], value[:-3]), query[-3])
    else:
        batch = broadcast_shapes(query[:-2], key[:-2], value[:-2])
    scores = (*batch, query[-2], key[-2])
    if mask is not None and broadcast_shapes(mask.shape, scores) != scores:
        raise NoRule
    out = (*batch, query[-2], value[-1])
    inputs = [spec_of(_four(shape), dtype) for shape in ((*batch, *query[-2:]), key, value)]
    if mask is not None:
        inputs.append(mask)
    # The fused kernels answer (B, L, H, E) in memory, the plain one (B, H, L, E); torch's meta
    # kernel of the composite answers the plain one, and so do we.
    return planned(
        "attention", "scaled_dot_product_attention", tuple(inputs), out, dtype,
        outputs=(spec_of(_four(out), dtype),),
        params=(("causal", causal), ("dropout", dropout), ("masked", mask is not None)),
    )  # fmt: skip


def _multi_head_attention(
    recorder: Recorder,
    op: str,
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
    """Inputs ``(L, N, E)`` or ``(L, E)``; its layers are the projections it makes, one attention,
    and the output's projection."""
    batched = query.ndim == 3
    length, width = query.shape[0], query.shape[-1]
    batch = query.shape[1] if batched else 1
    if (
        static_k is not None
        or static_v is not None
        or query.ndim not in (2, 3)
        or width != embed_dim_to_check
        or width % num_heads
        or key.ndim != query.ndim
        or key.shape[:-1] != value.shape[:-1]
        or (batched and key.shape[1] != batch)
        or not recorder.same_dtype(query.dtype, out_proj_weight.dtype)
    ):
        raise NoRule
    dtype = recorder.autocast(query.dtype)
    query, key, value = _cast_once(recorder, (query, key, value), dtype)
    apart = (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else None
    projections = _projections(recorder, (query, key, value), in_proj_weight, apart)
    recorder.weight_specs(in_proj_bias, bias_k, bias_v)
    projected = [
        _list_projection(recorder, given, weight, own, in_proj_bias, dtype)
        for given, weight, own in projections
    ]
    # A learned key and an all-zero one lengthen the source.
    source = key.shape[0] + (bias_k is not None) + bool(add_zero_attn)
    head = width // num_heads
    keys = (batch, num_heads, source, head)
    mask = attn_mask if attn_mask is not None else key_padding_mask
    attention = plan_attention(
        (batch, num_heads, length, head), keys, keys, dtype, None, is_causal and mask is None,
        float(dropout_p) if training else 0.0, False,
    )  # fmt: skip
    if mask is not None:
        # Listed as it was given: torch widens a padding mask to every head and query.
        masked = (*attention.params[:2], ("masked", True))
        inputs = (*attention.inputs, recorder.spec(mask))
        attention = attention._replace(inputs=inputs, params=masked)
    operands = (*projected, bias_k, bias_v, key_padding_mask, attn_mask)
    context = recorder.follow(attention, operands)
    scores: Ints = (length, source) if average_attn_weights else (num_heads, length, source)
    attended = recorder.new((batch, *scores) if batched else scores, dtype)
    recorder.made(attended)
    (out_weight,) = recorder.weight_specs(out_proj_weight)
    recorder.weight_specs(out_proj_bias)
    joined = context.view(length * batch, width)
    output = _list_projection(recorder, joined, out_weight, out_proj_weight, out_proj_bias, dtype)
    if batched:
        output = output.view(length, batch, -1)
    return output, attended if need_weights else None


def _cast_once(
    recorder: Recorder, tensors: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """The tensors as autocast casts them for their projections, equal ones by one kernel."""
    cast = {id(tensor): recorder.cast(tensor, dtype) for tensor in dict.fromkeys(tensors)}
    return [cast[id(tensor)] for tensor in tensors]


def _projections(
    recorder: Recorder,
    inputs: tuple[Tensor, Tensor, Tensor],
    packed: Tensor | None,
    apart: tuple[Tensor | None, ...] | None,
) -> list[tuple[Tensor, TensorSpec, Tensor | None]]:
    """Input, weight and the tensor that holds it, of each: one product of the whole for
    self-attention, query alone and key with value together where those two are the same tensor,
    three otherwise: as torch's ``_in_projection_packed``."""
    query, key, value = inputs
    if apart is not None:
        if any(
            weight is None or weight.shape[-1] != given.shape[-1]
            for weight, given in zip(apart, inputs, strict=True)
        ):
            raise NoRule
        return list(zip(inputs, recorder.weight_specs(*apart), apart, strict=True))
    width = query.shape[-1]
    if packed is None or packed.shape != (3 * width, width):
        raise NoRule
    if key.shape[-1] != width or value.shape[-1] != width:
        raise NoRule
    if key is value:
        parts = [(query, 3)] if query is key else [(query, 1), (key, 2)]
    else:
        parts = [(given, 1) for given in inputs]
    (spec,) = recorder.weight_specs(packed)
    return [
        (given, TensorSpec((times * width, width), spec.dtype), packed) for given, times in parts
    ]


def _list_projection(
    recorder: Recorder,
    given: Tensor,
    weight: TensorSpec,
    own: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """By a weight that lies in its ``own`` tensor, perhaps with others."""
    rows = weight.shape[0]
    output = recorder.new((*given.shape[:-1], rows), dtype)
    recorder.add(
        "linear",
        "linear",
        (recorder.spec(given),),
        (weight,) if bias is None else (weight, TensorSpec((rows,), weight.dtype)),
        (recorder.spec(output),),
        reads=(given, own, bias),
        makes=(output,),
    )
    return output


RULES: Final[dict[Any, Rule]] = {
    "scaled_dot_product_attention": _scaled_dot_product_attention,
    "multi_head_attention_forward": _multi_head_attention,
}
