"""Weight granularity: single weights become zero, for platforms whose energy falls with zeros."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import torch

from pytest_neuralpower.compress.least_squares import (
    MOST_UNKNOWNS,
    RECONSTRUCTED,
    Gram,
    all_kept,
    each_map,
    mask_of,
    matrix_of,
    relative_error,
    solve_kept,
    unknowns_of,
    weighted_module,
    write_matrix,
)
from pytest_neuralpower.compress.pruner import CHOOSERS, RIDGE, Choice, Criterion, Pruner
from pytest_neuralpower.eyeriss.hardware import Zeros

if TYPE_CHECKING:
    from torch import nn

    from pytest_neuralpower.layers import Layer, Trace
    from pytest_neuralpower.model_source import Call
    from pytest_neuralpower.platform.prediction import Prediction
    from pytest_neuralpower.platform.protocol import Platform

# -- Which weights of one layer stay: by magnitude, or by the error of the layer's output.

#: Share of the kept weights that the first exchange tries to replace; it halves when it fails.
_FIRST_EXCHANGE: Final = 0.05
_EXCHANGES: Final = 4


class State(NamedTuple):
    """Weights of one layer under a mask; what removing or restoring each one would cost or gain.

    All of shape (groups, outputs, unknowns), in squared output error; infinite where a weight may
    not be removed or restored.
    """

    weights: torch.Tensor
    removal: torch.Tensor
    gain: torch.Tensor


class DensityPoint(NamedTuple):
    """One density of a layer: its mask, and the relative squared error of its output."""

    density: float
    kept: torch.Tensor
    error: float


@dataclass(frozen=True)
class LayerWeights:
    """The weights of one layer, and how those that stay follow from a mask.

    Attributes
    ----------
    gram
        Its sampled sums.
    prior
        The old weights, shape (groups, outputs, unknowns); the bias is the last unknown, if any.
    count
        How many unknowns of each output are weights; a bias after them always stays.
    ridge
        Pull of the least squares towards the old weights, as a share of the inputs' mean square;
        None leaves kept weights as they were.
    """

    gram: Gram
    prior: torch.Tensor
    count: int
    ridge: float | None

    def under(self, kept: torch.Tensor) -> State:
        """The weights under a mask, and what each is worth."""
        # Sum of squares of each input, shape (groups, 1, unknowns); never zero.
        energies = self.gram.inputs.diagonal(dim1=1, dim2=2).unsqueeze(1).clamp_min(1e-30)
        if self.ridge is not None:
            weights, removal = solve_kept(self.gram, self.prior, kept, ridge=self.ridge)
            slope = self.gram.cross.mT - weights @ self.gram.inputs
            return State(weights, removal, slope.square() / energies)
        weights = torch.where(kept, self.prior, 0.0)
        slope = self.gram.cross.mT - weights @ self.gram.inputs
        own = self.prior.square() * energies
        return State(weights, own + 2 * self.prior * slope, 2 * self.prior * slope - own)

    def point(self, kept: torch.Tensor, state: State) -> DensityPoint:
        """The density and error of a mask whose :meth:`under` is known."""
        error = relative_error(self.gram, state.weights)
        return DensityPoint(_density(kept[..., : self.count]), kept, error)


def _density(kept: torch.Tensor) -> float:
    return float(kept.sum()) / kept.numel()


def _largest(score: torch.Tensor, kept: torch.Tensor, density: float) -> torch.Tensor:
    """``kept`` with only those weights that have the highest scores; what follows them stays."""
    chosen = torch.zeros(score.numel(), dtype=torch.bool)
    chosen[score.flatten().topk(max(1, round(density * score.numel()))).indices] = True
    kept = kept.clone()
    kept[..., : score.shape[-1]] = chosen.view(score.shape)
    return kept


def points(
    layer: LayerWeights, kept: torch.Tensor, densities: Sequence[float], criterion: Criterion
) -> Iterator[DensityPoint]:
    """Points at falling densities: the largest weights of the layer stay, or at each those that
    the output misses most.

    Parameters
    ----------
    kept
        Mask to start from; what it removes stays removed.
    densities
        Shares of the layer's weights, falling.
    criterion
        With ``output_error`` the costs of removal are found again after every density, as each
        weight removed changes what the others are worth.
    """
    by_error = criterion == "output_error"
    score = (
        torch.where(kept, layer.under(kept).removal, -torch.inf)
        if by_error
        else torch.where(kept, layer.prior.abs(), -1.0)
    )
    for density in densities:
        kept = _largest(score[..., : layer.count], kept, density)
        state = layer.under(kept)
        yield layer.point(kept, state)
        if by_error:
            score = torch.where(kept, state.removal, -torch.inf)


def _points_by_size(
    prior: torch.Tensor, kept: torch.Tensor, densities: Sequence[float], count: int
) -> Iterator[DensityPoint]:
    """:func:`points` by magnitude where no feature map is sampled; the error is the weights'
    own."""
    size = torch.where(kept, prior, 0.0)[..., :count].square()
    total = float(size.sum()) or 1.0
    for density in densities:
        kept = _largest(size, kept, density)
        stays = kept[..., :count]
        yield DensityPoint(_density(stays), kept, 1 - float(size[stays].sum()) / total)


def exchanged(layer: LayerWeights, kept: torch.Tensor) -> DensityPoint:
    """The same number of weights after restoring removed ones that the output misses most.

    Restored weights take the places of the kept ones that matter least, a few at a time, and only
    while the output's error falls: gains are those of one weight alone, so that restoring all of
    the best at once would make it rise.
    """
    count = layer.count
    state = layer.under(kept)
    best = layer.point(kept, state)
    share = _FIRST_EXCHANGE
    for _ in range(_EXCHANGES):
        weights = kept[..., :count]
        removal = torch.where(kept, state.removal, torch.inf)[..., :count].flatten()
        gain = torch.where(kept, -torch.inf, state.gain)[..., :count].flatten()
        most = min(int(share * int(weights.sum())), int((~weights).sum()))
        if not most:
            break
        lowest, out = removal.topk(most, largest=False)
        highest, back = gain.topk(most)
        worth = highest > lowest
        if not bool(worth.any()):
            break
        trial = weights.flatten().clone()
        trial[out[worth]], trial[back[worth]] = False, True
        tried = kept.clone()
        tried[..., :count] = trial.view(weights.shape)
        tried_state = layer.under(tried)
        point = layer.point(tried, tried_state)
        if point.error < best.error:
            best, kept, state = point, tried, tried_state
        else:
            share /= 2
    return best


# -- Zeros of a model's weights and feature maps.

#: Operations that pass positive values on and make the others zero.
_RELU: Final = ("relu", "relu_", "relu6")

#: Shares (0..1) of zeros in a layer's input and output map, by path.
MapZeros = Mapping[str, tuple[float, float]]


def _map_zeros(model: nn.Module, layers: Sequence[Layer], calls: Sequence[Call]) -> MapZeros:
    """Shares of zeros in the maps of layers with weights, over the calls.

    Where a ReLU is the next operation, the output map is what it passes on: the chip applies it
    on the way to DRAM. Other outputs are counted as they are.
    """
    counts = {
        layer.path: [0, 0, 0, 0] for layer in layers if weighted_module(model, layer) is not None
    }
    rectified = {
        layer.path
        for layer, following in pairwise(layers)
        if following.op in _RELU and following.inputs[0].shape == layer.outputs[0].shape
    }

    def visit(path: str, given: torch.Tensor, made: torch.Tensor) -> None:
        zeros = (given == 0, made <= 0 if path in rectified else made == 0)
        for at, zero in enumerate(zeros):
            counts[path][at] += int(zero.sum())
            counts[path][at + 2] += zero.numel()

    each_map(model, counts, calls, visit)
    return {
        path: (zero_in / all_in, zero_out / all_out)
        for path, (zero_in, zero_out, all_in, all_out) in counts.items()
        if all_in and all_out
    }


def _count_zeros(
    model: nn.Module,
    layers: Sequence[Layer],
    shares: MapZeros,
    densities: Mapping[str, float] | None = None,
) -> dict[str, Zeros]:
    """Zeros of each layer at the sizes of ``layers``.

    Parameters
    ----------
    shares
        From :func:`_map_zeros`. Those of a module that runs more than once are left out: its maps
        may differ from call to call.
    densities
        Shares of weights that would be kept, by path; the others' weights are counted.
    """
    asked = densities or {}
    runs = Counter(layer.path for layer in layers)
    zeros = {}
    for layer in layers:
        module = weighted_module(model, layer)
        if module is None:
            continue
        weight = cast("torch.Tensor", module.weight)
        count = weight.numel()
        kept = asked.get(layer.path)
        removed = int((weight == 0).sum()) if kept is None else count - round(kept * count)
        zero_in, zero_out = shares.get(layer.path, (0.0, 0.0))
        if runs[layer.path] > 1:
            zero_in = zero_out = 0.0
        zeros[layer.path] = Zeros(
            int(zero_in * layer.inputs[0].numel), removed, int(zero_out * layer.outputs[0].numel)
        )
    return zeros


# -- The pruner.

#: Densities that each layer is tried at, falling; below about 1% a layer is as good as removed.
GRID: Final = tuple(0.5 * 0.75**step for step in range(14))


@dataclass(kw_only=True)
class WeightPruner(Pruner):
    """Makes single weights of one model zero, in place.

    Attributes
    ----------
    trace
        The call that is priced.
    platform
        Its energy falls with zeros.
    kept
        Mask of each layer's weights as a matrix, by path.
    """

    trace: Trace
    platform: Platform
    kept: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        prunable = (
            layer.path
            for layer in self.trace
            if isinstance(weighted_module(self.model, layer), RECONSTRUCTED)
        )
        self.kept = {path: all_kept(self._layer(path)) for path in prunable}

    @property
    def left_out(self) -> dict[str, str]:
        unknowns = {path: unknowns_of(self._layer(path)) for path in self.kept}
        unsolved = {
            path: f"{count} weights an output are too many to solve for: pruned by magnitude"
            for path, count in unknowns.items()
            if count > MOST_UNKNOWNS
        }
        return unsolved | {
            layer.path: f"weights of {layer.op} in "
            f"{type(self.model.get_submodule(layer.path)).__name__} are not pruned"
            for layer in self.trace
            if layer.weights
            and layer.kind not in ("norm", "embedding")
            and layer.path not in self.kept
        }

    def prediction(self) -> Prediction:
        """The call with the zeros that the model has now."""
        shares = _map_zeros(self.model, self.trace.layers, self.calls)
        zeros = _count_zeros(self.model, self.trace.layers, shares)
        return self.platform.predict(self.trace, zeros=zeros)

    def masks(self) -> dict[str, torch.Tensor]:
        layers = {path: self._layer(path) for path in self.kept}
        return {
            f"{path}.weight": mask_of(layer, self.kept[path]).to(layer.weight.device)
            for path, layer in layers.items()
        }

    def reduce_to(self, limit: float) -> Mapping[str, float]:
        grams = self.grams(list(self.kept))
        curves = {path: self._curve(path, grams.get(path)) for path in self.kept}
        price = self._prices()
        costs = {
            path: [price(path, point.density) for point in curve] for path, curve in curves.items()
        }
        present = self.cost()

        def cost(choice: Choice) -> float:
            return present - sum(costs[path][0] - costs[path][at] for path, at in choice.items())

        errors = {path: [point.error for point in curve] for path, curve in curves.items()}
        most_expensive_first = sorted(costs, key=lambda path: -costs[path][0])
        chosen = CHOOSERS[self.order](errors, cost, limit, most_expensive_first)
        for path in curves:  # in running order: a later layer makes good the errors of earlier ones
            self.apply(path, curves[path][chosen[path]].kept)
        return {path: self._density(path) for path in self.kept}

    def least(self) -> float:
        price = self._prices()
        saved = sum(price(path, self._density(path)) - price(path, GRID[-1]) for path in self.kept)
        return self.cost() - saved

    def cost(self) -> float:
        return cast("float", self.prediction().energy_mj)  # the array knows energy

    def _prices(self) -> Callable[[str, float], float]:
        """Energy (mJ) of one layer's calls at a density."""
        shares = _map_zeros(self.model, self.trace.layers, self.calls)

        def price(path: str, density: float) -> float:
            layers = [layer for layer in self.trace if layer.path == path]
            zeros = _count_zeros(self.model, layers, shares, {path: density})
            return cast("float", self.platform.predict(layers, zeros=zeros).energy_mj)

        return price

    def trained(self) -> None:
        """Also makes removed weights zero again."""
        for path, kept in self.kept.items():
            layer = self._layer(path)
            write_matrix(layer, torch.where(kept, matrix_of(layer), 0.0))
        self.reference = copy.deepcopy(self.model)

    def _density(self, path: str) -> float:
        return float(mask_of(self._layer(path), self.kept[path]).double().mean())

    def weights(self, path: str, gram: Gram) -> LayerWeights:
        """The weights of one layer as the model has them now."""
        layer = self._layer(path)
        ridge = RIDGE if self.refit else None
        return LayerWeights(gram, matrix_of(layer), unknowns_of(layer), ridge)

    def _curve(self, path: str, gram: Gram | None) -> Sequence[DensityPoint]:
        present, kept = self._density(path), self.kept[path]
        densities = [density for density in GRID if density < present]
        layer = self._layer(path)
        narrower = (
            _points_by_size(matrix_of(layer), kept, densities, unknowns_of(layer))
            if gram is None
            else points(self.weights(path, gram), kept, densities, self.criterion)
        )
        return [DensityPoint(present, kept, 0.0), *narrower]

    def apply(self, path: str, kept: torch.Tensor) -> None:
        """Mask one layer, and refit it to what the reference returns for the inputs it sees now."""
        layer = self._layer(path)
        gram = self.grams([path]).get(path)
        if gram is None:
            write_matrix(layer, torch.where(kept, matrix_of(layer), 0.0))
        else:
            weights = self.weights(path, gram)
            if self.criterion == "output_error":
                kept = exchanged(weights, kept).kept
            write_matrix(layer, weights.under(kept).weights)
            rows = gram.rows / int(kept.sum(-1).max())
            self.rows_per_unknown = {**self.rows_per_unknown, path: rows}
        # New dicts: a round that is undone goes back to the old ones.
        self.kept = {**self.kept, path: kept}
