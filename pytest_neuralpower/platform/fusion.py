"""What a compiler fuses: layers that stream their tensors run as one kernel with their neighbours.

Along the edges of a trace, a tensor that a fused layer makes and layers of the same kernel alone
read never leaves the registers: nobody writes it and nobody reads it. Matrix products,
convolutions and attentions stay kernels of their own, whose results are written once; so is what a
later kernel needs again, such as the input of a residual block. A reduction ends a kernel; one over
a map, as a pool, reads what an earlier one wrote. Equal casts of a tensor are made once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from msgspec.structs import replace

from pytest_neuralpower.layers import total_bytes

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Layer, TensorSpec

#: What a mode joins to one kernel: nothing, layers that stream their tensors, or these and what a
#: convolution or linear layer is followed by.
Fused: TypeAlias = Literal["", "pointwise", "folded"]

#: Kinds of layers that a compiler writes kernels for, and joins.
FUSED: Final = frozenset(
    {"activation", "elementwise", "memory", "norm", "pool", "reduction", "softmax"}
)

#: Those whose results the same kernel can go on with; a reduction's are known when it has ended.
_GOES_ON: Final = FUSED - {"reduction"}

#: Statistics of more than a row: a first kernel ends with them, a second one reads all again.
_READ_TWICE: Final = frozenset({"group_norm", "instance_norm"})

#: Layers that fold others into their kernel, and kinds that they fold.
_FOLDS: Final = frozenset({"conv", "linear"})
_FOLDED: Final = frozenset({"activation", "elementwise", "norm"})


def fused(
    layers: Sequence[Layer], reads: Sequence[Sequence[int]], *, folds: bool = False
) -> tuple[Layer, ...]:
    """The layers, with the bytes that fusion saves each of them in ``unread`` and ``unwritten``.

    Parameters
    ----------
    layers, reads
        Of a trace (:class:`~pytest_neuralpower.layers.Trace`); without ``reads`` nothing is known
        to be fused.
    folds
        Whether a convolution or linear layer takes the layers after it into its own kernel, as
        engines of inference do: its result stands for theirs. Default: False.
    """
    if not reads:
        return tuple(layers)
    # Kernels that wait for one another: layers of one stage can share one.
    stages: list[int] = []
    unread = [0] * len(layers)
    written = [layer.kind not in FUSED for layer in layers]
    read = [False] * len(layers)
    folded = [folds and layer.kind in _FOLDS for layer in layers]
    first = _first_casts(layers, reads)
    for place, (layer, given) in enumerate(zip(layers, reads, strict=True)):
        sources = [first[source] for source in given]
        joins = layer.kind in FUSED
        starts = layer.op in _READ_TWICE or layer.kind == "pool"
        after = [
            stages[source]
            + (not joins or starts or not (folded[source] or layers[source].kind in _GOES_ON))
            for source in sources
        ]
        stages.append(max(after, default=0))
        left = list(layer.inputs)
        for source, stage in zip(sources, after, strict=True):
            read[source] = True
            size = sum(tensor.numel for tensor in layers[source].outputs)
            same = next((tensor for tensor in left if tensor.numel == size), None)
            if joins and stage == stages[source] == stages[place] and same is not None:
                left.remove(same)
                unread[place] += same.nbytes
                folded[place] |= folded[source] and layer.kind in _FOLDED
            else:
                written[source] = True
    found = []
    for place, layer in enumerate(layers):
        params = dict(layer.params)
        again = first[place] != place
        if _over_map(layer) and any(written[first[source]] for source in reads[place]):
            unread[place] = 0
        if again or unread[place]:
            params["unread"] = total_bytes(layer.inputs) if again else unread[place]
        kept = folded[place] or (read[place] and not written[place])
        if again or (layer.kind in FUSED and kept):
            params["unwritten"] = total_bytes(layer.outputs)
        same_params = len(params) == len(layer.params)
        found.append(layer if same_params else replace(layer, params=tuple(sorted(params.items()))))
    return tuple(found)


def _over_map(layer: Layer) -> bool:
    """Whether a reduction goes over images: its threads lie otherwise than what wrote them."""
    return layer.kind == "reduction" and any(len(one.shape) > 3 for one in layer.inputs)


def _first_casts(layers: Sequence[Layer], reads: Sequence[Sequence[int]]) -> list[int]:
    """Of each layer its place, or that of the layer that has cast the same tensors already."""
    casts: dict[tuple[tuple[int, ...], tuple[TensorSpec, ...]], int] = {}
    first: list[int] = []
    for place, (layer, sources) in enumerate(zip(layers, reads, strict=True)):
        # Of the whole tensor: parts of one, such as queries and keys, are not the same.
        whole = sum(tensor.numel for source in sources for tensor in layers[source].outputs)
        if layer.op == "to" and sources and sum(one.numel for one in layer.inputs) == whole:
            made = tuple(first[source] for source in sources), layer.outputs
            first.append(casts.setdefault(made, place))
        else:
            first.append(place)
    return first
