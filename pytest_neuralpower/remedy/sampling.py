"""Gram matrices of a model's layers from sampled feature maps; no label is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from pytest_neuralpower.remedy.feature_maps import (
    Reconstructed,
    each_map,
    unfolded_input,
    unfolded_output,
)
from pytest_neuralpower.remedy.least_squares import Gram
from pytest_neuralpower.remedy.matrices import groups_of, unknowns_of

if TYPE_CHECKING:
    from pytest_neuralpower.remedy.calls import Call

__all__ = ["MOST_UNKNOWNS", "ROWS_PER_UNKNOWN", "sampled_grams"]

#: Rows of a layer's feature maps that are sampled at most, per weight of one output.
ROWS_PER_UNKNOWN = 8
#: Weights of one output above which no Gram matrix is made: it would take more than 512 MiB.
MOST_UNKNOWNS = 8192


def sampled_grams(
    model: nn.Module,
    reference: nn.Module,
    paths: Sequence[str],
    calls: Sequence[Call],
    *,
    outputs: Mapping[str, torch.Tensor] | None = None,
    seed: int = 0,
) -> Mapping[str, Gram]:
    """Sums that tell how to make layers of ``model`` give what those of ``reference`` give.

    Inputs are those that the layer sees in ``model`` as it is now, with the errors of the layers
    before it; outputs are those of the same layer in ``reference``. Of each call the same rows
    (positions of samples) are taken from both.

    Parameters
    ----------
    paths
        Layers; one that does not run, or has more than `MOST_UNKNOWNS`, is left out.
    outputs
        Channels of the reference's outputs that the model's layer still has, by path.
    """
    paths = [path for path in paths if unknowns_of(_layer(model, path)) <= MOST_UNKNOWNS]
    sampler = _Sampler(model, len(calls), outputs or {}, seed)
    for call in calls:
        sampler.wanted.clear()
        each_map(reference, paths, (call,), sampler.keep)
        each_map(model, paths, (call,), sampler.add)
    return sampler.grams


class _Sampler:
    """Takes the same rows of two models' feature maps: wanted outputs first, then inputs."""

    def __init__(
        self, model: nn.Module, calls: int, outputs: Mapping[str, torch.Tensor], seed: int
    ) -> None:
        self.grams: dict[str, Gram] = {}
        self.wanted: dict[str, list[tuple[torch.Tensor | None, torch.Tensor]]] = {}
        self._model, self._calls, self._outputs = model, calls, outputs
        self._generator = torch.Generator().manual_seed(seed)

    def keep(self, path: str, _given: torch.Tensor, made: torch.Tensor) -> None:
        """Choose rows of what the reference's layer gives."""
        layer = _layer(self._model, path)
        if path in self._outputs:
            axis = -1 if isinstance(layer, nn.Linear) else 1
            made = made.index_select(axis, self._outputs[path].to(made.device))
        rows = unfolded_output(layer, made)
        most = -(-ROWS_PER_UNKNOWN * unknowns_of(layer) // self._calls)
        picked = None
        if rows.shape[1] > most:
            order = torch.randperm(rows.shape[1], generator=self._generator)
            picked = order[:most].to(rows.device)
            rows = rows[:, picked]
        self.wanted.setdefault(path, []).append((picked, rows))

    def add(self, path: str, given: torch.Tensor, _made: torch.Tensor) -> None:
        """Add what the model's layer reads in the same rows, beside what is wanted of it."""
        layer = _layer(self._model, path)
        picked, made = self.wanted[path].pop(0)
        rows = unfolded_input(layer, given)
        if picked is not None:
            rows = rows[:, picked]
        if layer.bias is not None:
            rows = torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], 2)
        if path not in self.grams:
            self.grams[path] = Gram.empty(groups_of(layer), rows.shape[2], made.shape[2])
        self.grams[path].add(rows, made)


def _layer(model: nn.Module, path: str) -> Reconstructed:
    return cast("Reconstructed", model.get_submodule(path))
