"""What serving engines run otherwise than a model's code says: as one kernel, or in 8-bit floats.

vLLM joins the projections that read one tensor (``QKVParallelLinear``,
``MergedColumnParallelLinear``) and adds the residual where it normalises it
(``fused_add_rms_norm``). Which layers these are is read off the edges of a trace.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from pytest_neuralpower.layers import Layer, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_neuralpower.layers import Trace

#: Projection -> the one that it is joined in.
_JOINED: Final = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj"),
    **dict.fromkeys(("gate_proj", "up_proj"), "gate_up_proj"),
}


def as_served(traced: Trace) -> Trace:
    """The trace with such layers as one; as it is where its edges are not known."""
    layers, reads = list(traced.layers), traced.reads
    if len(reads) != len(layers):
        return traced
    instead: dict[int, int] = {}  # of a layer that is dropped: the one that stands for it
    joined: dict[Any, list[int]] = defaultdict(list)
    for place, layer in enumerate(layers):
        if layer.op == "rms_norm" and len(reads[place]) == 1:
            added = reads[place][0]
            if layers[added].op == "add" and layers[added].inputs == layer.inputs * 2:
                layers[added] = _added(layers[added], layer)
                instead[place] = added
        elif layer.op == "linear":
            parent, _, name = layer.path.rpartition(".")
            if name in _JOINED:
                key = parent, _JOINED[name], reads[place], layer.inputs, len(layer.weights)
                joined[key].append(place)
    for (parent, name, *_), places in joined.items():
        if len(places) > 1:
            path = f"{parent}.{name}" if parent else name
            layers[places[0]] = _joined([layers[place] for place in places], path)
            instead.update(dict.fromkeys(places[1:], places[0]))
    kept = [place for place in range(len(layers)) if place not in instead]
    now = {place: number for number, place in enumerate(kept)}
    now.update({place: now[other] for place, other in instead.items()})
    return dataclasses.replace(
        traced,
        layers=tuple(layers[place] for place in kept),
        reads=tuple(tuple(dict.fromkeys(now[each] for each in reads[place])) for place in kept),
    )


def _added(add: Layer, norm: Layer) -> Layer:
    return replace(
        norm, op="fused_add_rms_norm", inputs=add.inputs, outputs=norm.outputs + add.outputs
    )


def _joined(layers: Sequence[Layer], path: str) -> Layer:
    """One product with the rows of all their weights."""
    first = layers[0]
    weights = tuple(
        TensorSpec((sum(each.shape[0] for each in those), *those[0].shape[1:]), those[0].dtype)
        for those in zip(*(layer.weights for layer in layers), strict=True)
    )
    (output,) = first.outputs
    width = sum(layer.outputs[0].shape[-1] for layer in layers)
    return replace(
        first, path=path, weights=weights,
        outputs=(TensorSpec((*output.shape[:-1], width), output.dtype),),
    )  # fmt: skip


# -- In 8-bit floats.

_FLOAT8: Final = "float8_e4m3fn"

#: What is quantised: a model in another dtype has its own scheme.
_HALVES: Final = ("bfloat16", "float16")

#: Last names of the linear layers that choose experts: engines keep them in the model's dtype.
_ROUTERS: Final = ("gate", "router")


def quantized(traced: Trace, *, products: bool, cache: bool) -> Trace:
    """The trace of a language model as an engine runs it in 8-bit floats.

    Parameters
    ----------
    products
        Whether linear layers and experts are: weights, and activations on their way in. The head,
        the last linear layer, and routers are not.
    cache
        Whether keys and values are, once they are written.
    """
    head = max((at for at, each in enumerate(traced.layers) if each.op == "linear"), default=-1)
    layers = list(traced.layers)
    for place, layer in enumerate(layers):
        if layer.dtype not in _HALVES:
            continue
        if products and layer.op in ("linear", "grouped_mm") and place != head:
            if layer.path.rpartition(".")[2] not in _ROUTERS:
                layers[place] = _product(layer)
        elif cache and layer.op == "cache_write":
            layers[place] = replace(layer, outputs=_in_float8(layer.outputs))
        elif cache and layer.kind == "attention":
            query, *cached = layer.inputs
            if cached[0].shape[-2] > query.shape[-2]:  # a prompt attends to what it has just made
                inputs = (query, *_in_float8(cached))
                layers[place] = replace(layer, inputs=inputs, dtype=_FLOAT8)
    return dataclasses.replace(traced, layers=tuple(layers))


def _product(layer: Layer) -> Layer:
    """A product in 8-bit floats, whose result and bias are not."""
    weights = _in_float8(layer.weights[:1]) + layer.weights[1:]
    return replace(layer, inputs=_in_float8(layer.inputs), weights=weights, dtype=_FLOAT8)


def _in_float8(tensors: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(shape, _FLOAT8) for shape, _ in tensors)
