"""Weight granularity: single weights become zero, for platforms whose energy falls with zeros."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import torch
from torch import nn

from pytest_neuralpower.remedy.criteria import (
    Fixed,
    Point,
    Refitted,
    Weights,
    by_magnitude,
    by_output_error,
    by_size,
    exchanged,
)
from pytest_neuralpower.remedy.feature_maps import RECONSTRUCTED, Reconstructed
from pytest_neuralpower.remedy.matrices import (
    all_kept,
    mask_of,
    matrix_of,
    unknowns_of,
    write_matrix,
)
from pytest_neuralpower.remedy.planner import Choice, Order, choosers
from pytest_neuralpower.remedy.sampling import MOST_UNKNOWNS, sampled_grams
from pytest_neuralpower.remedy.zeros import MapZeros, count_zeros, map_zeros

if TYPE_CHECKING:
    from pytest_neuralpower.eyeriss.platform import EyerissPlatform
    from pytest_neuralpower.layers import Layer, Trace
    from pytest_neuralpower.prediction import Prediction
    from pytest_neuralpower.remedy.calls import Call
    from pytest_neuralpower.remedy.least_squares import Gram

__all__ = ["Criterion", "WeightPruner", "prunable_paths"]

Criterion = Literal["output_error", "magnitude"]

#: Pull of the least squares towards the old weights, as a share of the inputs' mean square.
RIDGE: Final = 1e-3

#: Densities that each layer is tried at, falling; below about 1% a layer is as good as removed.
GRID: Final = tuple(0.5 * 0.75**step for step in range(14))

_PATHS: Final[Mapping[Criterion, Callable[..., Any]]] = {
    "output_error": by_output_error,
    "magnitude": by_magnitude,
}


def prunable_paths(model: nn.Module, layers: Sequence[Layer]) -> list[str]:
    """Paths of the layers whose weights can be removed, in running order."""
    found: dict[str, None] = {}
    for layer in layers:
        if layer.kind in ("conv", "linear") and layer.weights:
            module = model.get_submodule(layer.path)
            if isinstance(module, RECONSTRUCTED) and module.weight.shape == layer.weights[0].shape:
                found[layer.path] = None
    return list(found)


@dataclass
class WeightPruner:
    """Prunes the weights of one model, in place.

    Attributes
    ----------
    model, reference
        What is pruned, and the model whose feature maps it is to keep.
    trace
        The call that is priced.
    refit
        Whether kept weights are solved for by least squares.
    rows_per_unknown
        Rows of sampled feature maps per weight that stays of an output, by layer.
    """

    model: nn.Module
    reference: nn.Module
    trace: Trace
    platform: EyerissPlatform
    calls: Sequence[Call]
    criterion: Criterion = "output_error"
    order: Order = "energy"
    refit: bool = True
    seed: int = 0
    kept: dict[str, torch.Tensor] = field(default_factory=dict)
    rows_per_unknown: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.paths = prunable_paths(self.model, self.trace.layers)
        if not self.kept:
            self.kept = {path: all_kept(self._layer(path)) for path in self.paths}

    def _layer(self, path: str) -> Reconstructed:
        return cast("Reconstructed", self.model.get_submodule(path))

    @property
    def left_out(self) -> dict[str, str]:
        """Layers that are not pruned as asked, with the reason."""
        unsolved = {
            path: f"{unknowns_of(self._layer(path))} weights an output are too many to solve for: "
            "pruned by magnitude"
            for path in self.paths
            if unknowns_of(self._layer(path)) > MOST_UNKNOWNS
        }
        return unsolved | {
            layer.path: f"weights of {layer.op} in {type(module).__name__} are not pruned"
            for layer in self.trace.layers
            if layer.weights
            and layer.kind not in ("norm", "embedding")
            and layer.path not in self.paths
            and (module := self.model.get_submodule(layer.path))
        }

    def prediction(self) -> Prediction:
        """The call with the zeros that the model has now."""
        zeros = count_zeros(self.model, self.trace.layers, self._map_zeros())
        return self.platform.predict(self.trace, zeros=zeros)

    def _map_zeros(self) -> MapZeros:
        return map_zeros(self.model, self.trace.layers, self.calls)

    def masks(self) -> dict[str, torch.Tensor]:
        """Mask of each pruned parameter by its name, in its shape; True stays."""
        layers = {path: self._layer(path) for path in self.kept}
        return {
            f"{path}.weight": mask_of(layer, self.kept[path]).to(layer.weight.device)
            for path, layer in layers.items()
        }

    def reduce_to(self, energy_mj: float) -> Mapping[str, float]:
        """Remove weights until one call costs at most ``energy_mj`` mJ; density by layer."""
        grams = sampled_grams(self.model, self.reference, self.paths, self.calls, seed=self.seed)
        curves = {path: self._curve(path, grams.get(path)) for path in self.paths}
        price = self._prices()
        costs = {
            path: [price(path, point.density) for point in curve] for path, curve in curves.items()
        }
        present = self.cost()

        def cost(choice: Choice) -> float:
            return present - sum(costs[path][0] - costs[path][at] for path, at in choice.items())

        errors = {path: [point.error for point in curve] for path, curve in curves.items()}
        dearest = sorted(costs, key=lambda path: -costs[path][0])
        chosen = choosers[self.order](errors, cost, energy_mj, dearest)
        for path in curves:  # in running order: a later layer makes good the errors of earlier ones
            self._apply(path, curves[path][chosen[path]].kept)
        return {path: self._density(path) for path in self.paths}

    def least(self) -> float:
        """Energy (mJ) of the call with every layer at its least density."""
        price = self._prices()
        saved = sum(price(path, self._density(path)) - price(path, GRID[-1]) for path in self.paths)
        return self.cost() - saved

    def cost(self) -> float:
        """Energy (mJ) of the call."""
        return cast("float", self.prediction().energy_mj)  # the array knows energy

    def _prices(self) -> Callable[[str, float], float]:
        """Energy (mJ) of one layer's calls at a density."""
        shares = self._map_zeros()

        def price(path: str, density: float) -> float:
            layers = [layer for layer in self.trace.layers if layer.path == path]
            zeros = count_zeros(self.model, layers, shares, {path: density})
            return cast("float", self.platform.predict(layers, zeros=zeros).energy_mj)

        return price

    def reduce_each_to(self, density: float) -> Mapping[str, float]:
        """Remove weights until every layer has one density, whatever the call then costs."""
        grams = sampled_grams(self.model, self.reference, self.paths, self.calls, seed=self.seed)
        for path, gram in grams.items():
            steps = [*(each for each in GRID if each > density), density]
            *_, last = self._points(path, self._weights(path, gram), steps)
            self._apply(path, last.kept)
        return {path: self._density(path) for path in self.paths}

    def trained(self) -> None:
        """After the user has trained the model: removed weights are zero again, and what the model
        gives now is what it is to keep giving."""
        for path, kept in self.kept.items():
            layer = self._layer(path)
            write_matrix(layer, torch.where(kept, matrix_of(layer), 0.0))
        self.reference = copy.deepcopy(self.model)

    def _density(self, path: str) -> float:
        return float(mask_of(self._layer(path), self.kept[path]).double().mean())

    def _weights(self, path: str, gram: Gram) -> Weights:
        prior = matrix_of(self._layer(path))
        return Refitted(gram, prior, ridge=RIDGE) if self.refit else Fixed(gram, prior)

    def _points(self, path: str, source: Weights, densities: Sequence[float]) -> Sequence[Point]:
        kept, weights = self.kept[path], unknowns_of(self._layer(path))
        return list(_PATHS[self.criterion](source, kept, densities, weights=weights))

    def _curve(self, path: str, gram: Gram | None) -> Sequence[Point]:
        present = self._density(path)
        densities = [each for each in GRID if each < present]
        nothing = Point(present, self.kept[path], 0.0)
        if gram is None:
            layer, kept = self._layer(path), self.kept[path]
            return [
                nothing, *by_size(matrix_of(layer), kept, densities, weights=unknowns_of(layer))
            ]  # fmt: skip
        return [nothing, *self._points(path, self._weights(path, gram), densities)]

    def _apply(self, path: str, kept: torch.Tensor) -> None:
        """Mask one layer, and refit it to what the reference gives for the inputs it sees now."""
        layer = self._layer(path)
        grams = sampled_grams(self.model, self.reference, [path], self.calls, seed=self.seed)
        if path not in grams:
            self.kept = {**self.kept, path: kept}
            write_matrix(layer, torch.where(kept, matrix_of(layer), 0.0))
            return
        gram = grams[path]
        source = self._weights(path, gram)
        if self.criterion == "output_error":
            kept = exchanged(source, kept, weights=unknowns_of(layer)).kept
        write_matrix(layer, source.under(kept).weights)
        # New dicts: a round that is undone goes back to the old ones.
        self.kept = {**self.kept, path: kept}
        rows = gram.rows / int(kept.sum(-1).max())
        self.rows_per_unknown = {**self.rows_per_unknown, path: rows}
