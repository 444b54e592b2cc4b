"""Kernels of serving engines: one call of what a model's own code writes as several operations.

No engine is called: these functions exist to be traced, where
:mod:`pytest_neuralpower.tracing.transformers_models` lets a model call them in place of its own
code. They are vLLM's: paged attention, ``rotary_embedding``, ``reshape_and_cache``,
``silu_and_mul``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from torch.overrides import handle_torch_function, has_torch_function

from pytest_neuralpower.tracing.recorder import REMEMBERED
from pytest_neuralpower.tracing.rules.attention import plan_attention

if TYPE_CHECKING:
    from torch import Tensor

    from pytest_neuralpower.layers import Params
    from pytest_neuralpower.tracing.recorder import Recorder
    from pytest_neuralpower.tracing.rules.table import Rule


# -- What the model calls. Without a trace there is nothing to compute: they answer zeros.


def attend(query: Tensor, key: Tensor, value: Tensor, window: int | None = None) -> Tensor:
    """Causal attention of the last queries over all keys, by flash kernels.

    Parameters
    ----------
    query
        ``(B, H, L, E)``: of the last ``L`` positions.
    key, value
        ``(B, Hkv, S, E)`` and ``(B, Hkv, S, Ev)``, never repeated for the heads that share them.
    window
        Keys that one query sees at most; all by default.

    Returns
    -------
    Tensor
        ``(B, L, H, Ev)``, as these kernels write it.
    """
    operands = (query, key, value)
    if has_torch_function(operands):
        result: Tensor = handle_torch_function(attend, operands, *operands, window)
        return result
    batch, heads, length, _ = query.shape
    return query.new_zeros((batch, length, heads, value.shape[-1]))


def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary embedding of queries and keys, in place."""
    operands = (query, key, cos, sin)
    if has_torch_function(operands):
        result: tuple[Tensor, Tensor] = handle_torch_function(rotate, operands, *operands)
        return result
    return query, key


def store(key: Tensor, value: Tensor, visible: int) -> tuple[Tensor, Tensor]:
    """Write new keys and values into a preallocated cache; return all that attention reads.

    Parameters
    ----------
    key, value
        ``(B, Hkv, L, E)`` and ``(B, Hkv, L, Ev)``.
    visible
        Positions of the result, the new ones among them.
    """
    operands = (key, value)
    if has_torch_function(operands):
        result: tuple[Tensor, Tensor] = handle_torch_function(store, operands, *operands, visible)
        return result
    batch, heads = key.shape[:2]
    return (
        key.new_zeros((batch, heads, visible, key.shape[-1])),
        value.new_zeros((batch, heads, visible, value.shape[-1])),
    )


def gate(gates: Tensor, values: Tensor, activation: str) -> Tensor:
    """``activation(gates) * values`` in one pass."""
    operands = (gates, values)
    if has_torch_function(operands):
        result: Tensor = handle_torch_function(gate, operands, *operands, activation)
        return result
    return values


# -- How these are listed.


def _attend(
    recorder: Recorder, op: str, query: Tensor, key: Tensor, value: Tensor, window: int | None
) -> Tensor:
    batch, heads, length, _ = query.shape
    keys = key.shape[-2]
    kept = _kept(length, keys, window)
    causal = kept is None and 1 < length == keys
    plan = plan_attention(
        query.shape, key.shape, value.shape, query.dtype, None, causal, 0.0, heads != key.shape[1]
    )
    if kept is not None:
        params: Params = tuple(sorted((*plan.params, ("kept", batch * heads * kept))))
        plan = plan._replace(params=params)
    recorder.follow(plan, (query, key, value))
    output = recorder.new((batch, length, heads, value.shape[-1]), query.dtype)
    recorder.made(output)
    return output


@lru_cache(REMEMBERED)
def _kept(length: int, keys: int, window: int | None) -> int | None:
    """Scores of one head that a window keeps; None where it keeps all that causality does."""
    if window is None or keys <= window or length == 1:
        return None
    first = keys - length + 1  # keys that the first query sees without a window
    growing = max(min(window - first, length), 0)
    return growing * first + growing * (growing - 1) // 2 + (length - growing) * window


def _rotate(
    recorder: Recorder, op: str, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    outputs = recorder.spec(query), recorder.spec(key)
    inputs = (*outputs, recorder.spec(cos), recorder.spec(sin))
    recorder.add(
        "elementwise", "rotary_embedding", inputs, (), outputs,
        reads=(query, key, cos, sin), makes=(query, key),
    )  # fmt: skip
    return query, key


def _store(
    recorder: Recorder, op: str, key: Tensor, value: Tensor, visible: int
) -> tuple[Tensor, Tensor]:
    new = recorder.spec(key), recorder.spec(value)
    keys, values = (
        recorder.new((*tensor.shape[:2], visible, tensor.shape[-1]), tensor.dtype)
        for tensor in (key, value)
    )
    recorder.add("memory", "cache_write", new, (), new, reads=(key, value), makes=(keys, values))
    return keys, values


def _gate(recorder: Recorder, op: str, gates: Tensor, values: Tensor, activation: str) -> Tensor:
    inputs = recorder.spec(gates), recorder.spec(values)
    output = recorder.new(values.shape, values.dtype)
    recorder.add(
        "activation", f"{activation}_and_mul", inputs, (), (inputs[1],),
        reads=(gates, values), makes=(output,),
    )  # fmt: skip
    return output


RULES: Final[dict[Any, Rule]] = {attend: _attend, rotate: _rotate, store: _store, gate: _gate}
