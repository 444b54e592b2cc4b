"""What a compiler fuses: layers that stream their tensors run as one kernel with their neighbours.

Along the edges of a trace, a tensor that a fused layer makes and fused layers alone read never
leaves the registers: nobody writes it and nobody reads it. Matrix products, convolutions,
attentions and pools stay kernels of their own, whose results are written once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Layer

#: Kinds of layers that a compiler writes kernels for, and joins.
FUSED: Final = frozenset({"activation", "elementwise", "memory", "norm", "reduction", "softmax"})


def fused(layers: Sequence[Layer], reads: Sequence[Sequence[int]]) -> tuple[Layer, ...]:
    """The layers, with the bytes that fusion saves each of them in ``unread`` and ``unwritten``.

    Parameters
    ----------
    layers, reads
        Of a trace (:class:`~pytest_neuralpower.layers.Trace`); without ``reads`` nothing is known
        to be fused.
    """
    if not reads:
        return tuple(layers)
    unread = [0] * len(layers)
    kept = [layer.kind in FUSED for layer in layers]  # whose results stay in registers
    used = [False] * len(layers)
    for place, (layer, sources) in enumerate(zip(layers, reads, strict=True)):
        left = [tensor.nbytes for tensor in layer.inputs]
        for source in sources:
            used[source] = True
            size = sum(tensor.nbytes for tensor in layers[source].outputs)
            if layer.kind in FUSED and layers[source].kind in FUSED and size in left:
                left.remove(size)
                unread[place] += size
            else:
                kept[source] = False
    found = []
    for place, layer in enumerate(layers):
        params = dict(layer.params)
        if unread[place]:
            params["unread"] = unread[place]
        if kept[place] and used[place]:
            params["unwritten"] = sum(tensor.nbytes for tensor in layer.outputs)
        same = len(params) == len(layer.params)
        found.append(layer if same else replace(layer, params=tuple(sorted(params.items()))))
    return tuple(found)
