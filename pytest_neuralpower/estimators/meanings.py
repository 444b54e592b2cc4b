"""How to read physical terms: in base units (operations, bytes), in words."""

from __future__ import annotations

from typing import Final, NamedTuple

_GIGA: Final = 1e-9
_MEGA: Final = 1e-6


class Meaning(NamedTuple):
    """How to read a term: its value over ``factor`` is a number of ``unit``."""

    factor: float
    unit: str
    text: str


_MEANINGS: Final[dict[str, Meaning]] = {
    "launch": Meaning(1.0, "", "once a layer"),
    "flops": Meaning(_GIGA, "FLOPs", "operations, 2 per multiply-accumulate"),
    "pointwise_flops": Meaning(_GIGA, "FLOPs", "operations of a convolution of kernel 1 x 1"),
    "bytes_in": Meaning(_MEGA, "bytes", "inputs"),
    "bytes_out": Meaning(_MEGA, "bytes", "outputs"),
    "bytes_weight": Meaning(_MEGA, "bytes", "parameters"),
    "bytes_moved": Meaning(_MEGA, "bytes", "inputs, outputs and parameters"),
    "bytes_new": Meaning(_MEGA, "bytes", "outputs that are not written over an input"),
    "bytes_io": Meaning(_MEGA, "bytes", "inputs and outputs"),
    "bytes_workspace": Meaning(_MEGA, "bytes", "unfolded input, or score matrix"),
    "bytes_over": Meaning(_MEGA, "bytes", "all tensors beyond a cache of so many MB"),
    "io_over": Meaning(_MEGA, "bytes", "inputs and outputs beyond a cache of so many MB"),
    "weight_over": Meaning(_MEGA, "bytes", "parameters beyond a cache of so many MB"),
    "fresh_out": Meaning(_MEGA, "bytes", "outputs of so many MB or more, memory got anew"),
    "fresh_workspace": Meaning(_MEGA, "bytes", "workspace of so many MB or more, got anew"),
    "unaligned_in": Meaning(_MEGA, "bytes", "inputs whose channels are no multiple of that"),
    "unaligned_out": Meaning(_MEGA, "bytes", "outputs whose channels are no multiple of that"),
    "unaligned_weight": Meaning(_MEGA, "bytes", "parameters with channels no multiple of that"),
    "samples": Meaning(1.0, "", "once a sample and group"),
    "left": Meaning(_MEGA, "", "elements of the left operands of all products"),
    "right": Meaning(_MEGA, "", "elements of the right operands of all products"),
    "products": Meaning(_MEGA, "", "elements of the results of all products"),
    "unaligned_flops": Meaning(
        _GIGA, "FLOPs", "operations where depth or columns are no multiple of that"
    ),
    "flop_rate": Meaning(_GIGA, "FLOPs per ms", "operations over runtime"),
    "io_rate": Meaning(_MEGA, "bytes per ms", "inputs and outputs over runtime"),
    "weight_rate": Meaning(_MEGA, "bytes per ms", "parameters over runtime"),
    "rows": Meaning(_MEGA, "", "rows that a norm or softmax treats alike"),
    "pow_bytes": Meaning(_MEGA, "bytes", "outputs of raising to a constant power"),
    "wide_bytes": Meaning(_MEGA, "bytes", "inputs whose rows are wider than that"),
    "padded_flops": Meaning(_GIGA, "FLOPs", "operations with channels padded to blocks"),
    "scored_flops": Meaning(_GIGA, "FLOPs", "operations without the scores that a mask skips"),
    "scores": Meaning(_MEGA, "", "scores of an attention"),
    "attention_flops": Meaning(
        _GIGA, "FLOPs", "operations padded to tiles and waves, masked ones skipped"
    ),
    "depth": Meaning(1e-3, "", "length of the reduction, k"),
    "bias_pass": Meaning(_MEGA, "bytes", "outputs read and written once more to add a bias"),
    "layout_pass": Meaning(_MEGA, "bytes", "tensors turned to channels-first and back"),
    "tile_flops": Meaning(_GIGA, "FLOPs", "operations with rows and columns padded to the tile"),
    "wave_flops": Meaning(_GIGA, "FLOPs", "padded operations, the last wave of tiles filled up"),
    "split_wave_flops": Meaning(
        _GIGA, "FLOPs", "operations padded to waves, a long reduction cut into pieces side by side"
    ),
    "chosen_wave_flops": Meaning(
        _GIGA, "FLOPs", "operations padded to waves of the cheapest of several tiles"
    ),
    "winograd_flops": Meaning(_GIGA, "FLOPs", "operations of Winograd's minimal filtering"),
    "filtered_flops": Meaning(
        _GIGA, "FLOPs", "operations of Winograd's minimal filtering, half of those it does not suit"
    ),
    "wave_depth": Meaning(1e-3, "", "waves of tiles x length of the reduction"),
    "tiles": Meaning(1e-3, "", "tiles of so many rows x columns that cover the product"),
    "reread": Meaning(_MEGA, "bytes", "both operands as often as the tiles read them"),
}


def meaning(name: str) -> Meaning:
    """How to read a term that :func:`pytest_neuralpower.estimators.terms.evaluate` knows."""
    return _MEANINGS[name.split("[", maxsplit=1)[0]]
