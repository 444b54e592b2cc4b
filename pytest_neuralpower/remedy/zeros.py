"""Zeros of a model's weights and feature maps, for platforms that exploit them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from pytest_neuralpower.eyeriss.shapes import Zeros
from pytest_neuralpower.remedy.feature_maps import each_map

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Layer
    from pytest_neuralpower.remedy.calls import Call

__all__ = ["MapZeros", "count_zeros", "map_zeros"]

#: Operations that pass positive values on and make the others zero.
_RELU: Final = ("relu", "relu_", "relu6")

#: Shares (0..1) of zeros in a layer's input and output map, by path.
MapZeros = Mapping[str, tuple[float, float]]


def map_zeros(model: nn.Module, layers: Sequence[Layer], calls: Sequence[Call]) -> MapZeros:
    """Shares of zeros in the maps of layers with weights, over the calls.

    Where a ReLU is the next operation, the output map is what it passes on: the chip applies it
    on the way to DRAM. Other outputs are counted as they are.
    """
    paths = _weighted(model, layers)
    rectified = {
        layer.path
        for layer, following in pairwise(layers)
        if following.op in _RELU and following.inputs[0].shape == layer.outputs[0].shape
    }
    counts = {path: [0, 0, 0, 0] for path in paths}

    def visit(path: str, given: torch.Tensor, made: torch.Tensor) -> None:
        found = counts[path]
        found[0] += int((given == 0).sum())
        found[1] += given.numel()
        found[2] += int((made <= 0 if path in rectified else made == 0).sum())
        found[3] += made.numel()

    each_map(model, paths, calls, visit)
    return {
        path: (zero_in / all_in, zero_out / all_out)
        for path, (zero_in, all_in, zero_out, all_out) in counts.items()
        if all_in and all_out
    }


def count_zeros(
    model: nn.Module,
    layers: Sequence[Layer],
    shares: MapZeros,
    densities: Mapping[str, float] | None = None,
) -> dict[str, Zeros]:
    """Zeros of each layer at the sizes of ``layers``.

    Parameters
    ----------
    shares
        From :func:`map_zeros`. Those of a module that runs more than once are left out: its maps
        may differ from call to call.
    densities
        Shares of weights that would be kept, by path; the others' weights are counted.
    """
    asked = densities or {}
    zeros = {}
    for layer in layers:
        if layer.path not in _weighted(model, [layer]):
            continue
        weight = model.get_submodule(layer.path).weight
        assert isinstance(weight, torch.Tensor)
        if layer.path in asked:
            zero_weights = weight.numel() - round(asked[layer.path] * weight.numel())
        else:
            zero_weights = int((weight == 0).sum())
        zero_in, zero_out = shares.get(layer.path, (0.0, 0.0))
        zeros[layer.path] = Zeros(
            int(zero_in * layer.inputs[0].numel),
            zero_weights,
            int(zero_out * layer.outputs[0].numel),
        )
    runs = Counter(layer.path for layer in layers)
    return {
        path: each if runs[path] == 1 else Zeros(weight=each.weight) for path, each in zeros.items()
    }


def _weighted(model: nn.Module, layers: Sequence[Layer]) -> list[str]:
    """Paths of the layers that the zero counts of a platform apply to, once each."""
    found: dict[str, None] = {}
    for layer in layers:
        if layer.kind in ("conv", "linear") and layer.weights:
            weight = getattr(model.get_submodule(layer.path), "weight", None)
            if isinstance(weight, torch.Tensor) and weight.shape == layer.weights[0].shape:
                found[layer.path] = None
    return list(found)
