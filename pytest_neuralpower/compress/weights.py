"""How far each part of a model is pruned: dearest parts first, or greedy.

A part is a layer with its density, or a channel group with its width; each has a curve of points
from what it is now to what is least, with the error of the outputs at each.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, cast

import torch
from torch import nn

from pytest_neuralpower.compress.least_squares import (
    MOST_UNKNOWNS,
    RECONSTRUCTED,
    Gram,
    Reconstructed,
    all_kept,
    each_map,
    mask_of,
    matrix_of,
    relative_error,
    sampled_grams,
    solve_kept,
    unknowns_of,
    write_matrix,
)

if TYPE_CHECKING:
    from pytest_neuralpower.compress.inputs import Call
    from pytest_neuralpower.eyeriss.hardware import Zeros
    from pytest_neuralpower.layers import Layer, Trace
    from pytest_neuralpower.platform.prediction import Prediction
    from pytest_neuralpower.platform.protocol import Platform

__all__ = [
    "Choice",
    "Criterion",
    "Fixed",
    "MapZeros",
    "Order",
    "Point",
    "Refitted",
    "WeightPruner",
    "Weights",
    "by_magnitude",
    "by_output_error",
    "by_size",
    "choose_dearest_first",
    "choose_greedy",
    "choosers",
    "count_zeros",
    "exchanged",
    "map_zeros",
    "prunable_paths",
]


Order = Literal["energy", "greedy"]

#: Errors along each part's curve, by name: 0 for what it is now, then of less and less.
Errors = Mapping[str, Sequence[float]]
#: Index of each part's chosen point.
Choice = Mapping[str, int]
#: Cost of the call (mJ or ms) with a choice.
Cost = Callable[[Choice], float]


def choose_dearest_first(
    errors: Errors, cost: Cost, limit: float, dearest: Sequence[str]
) -> dict[str, int]:
    """The paper's order: parts by their cost, each as far as one common tolerance allows.

    The tolerance bounds the relative squared error of a part's outputs; it is the least one at
    which the call costs at most ``limit``. Parts are visited in the order of ``dearest``, and those
    after the limit is met stay at the tolerance before. All are at their least where even that
    costs more.
    """
    tolerances = sorted({error for curve in errors.values() for error in curve})

    def allowed(tolerance: float) -> dict[str, int]:
        return {
            name: max(at for at, error in enumerate(curve) if not at or error <= tolerance)
            for name, curve in errors.items()
        }

    found = bisect_left(tolerances, True, key=lambda each: cost(allowed(each)) <= limit)
    if found == len(tolerances):
        return {name: len(curve) - 1 for name, curve in errors.items()}
    choice = allowed(tolerances[found - 1]) if found else dict.fromkeys(errors, 0)
    wanted = allowed(tolerances[found])
    for name in dearest:
        while choice[name] < wanted[name] and cost(choice) > limit:
            choice[name] += 1
    return choice


def choose_greedy(
    errors: Errors, cost: Cost, limit: float, dearest: Sequence[str]
) -> dict[str, int]:
    """One step at a time of the part whose outputs suffer least for what the step saves.

    A step goes to the next point that saves anything, so that a flat stretch is stepped over.
    ``dearest`` breaks ties.
    """
    choice = dict.fromkeys(dearest, 0)
    now = cost(choice)
    while now > limit:
        steps = []
        for rank, name in enumerate(dearest):
            for at in range(choice[name] + 1, len(errors[name])):
                saved = now - cost({**choice, name: at})
                if saved > 0:
                    harm = errors[name][at] - errors[name][choice[name]]
                    steps.append((harm / saved, rank, name, at))
                    break
        if not steps:
            break
        _, _, name, at = min(steps)
        choice[name] = at
        now = cost(choice)
    return choice


choosers: Final[Mapping[Order, Callable[[Errors, Cost, float, Sequence[str]], dict[str, int]]]] = {
    "energy": choose_dearest_first,
    "greedy": choose_greedy,
}


# -- Which weights of one layer stay: by magnitude, or by the error of the layer's output.

#: Share of the kept weights that the first exchange tries to replace; it halves when it fails.
_FIRST_EXCHANGE = 0.05
_EXCHANGES = 4


class State(NamedTuple):
    """Weights of one layer under a mask; what removing or restoring each one would cost or gain.

    All of shape (groups, outputs, unknowns), in squared output error; infinite where a weight may
    not be removed or restored.
    """

    weights: torch.Tensor
    removal: torch.Tensor
    gain: torch.Tensor


class Weights(Protocol):
    """How the kept weights follow from a mask."""

    gram: Gram
    prior: torch.Tensor

    def under(self, kept: torch.Tensor) -> State: ...


class Refitted:
    """Kept weights are solved for by least squares.

    Parameters
    ----------
    prior
        The old weights, shape (groups, outputs, unknowns); the bias is the last unknown, if any.
    ridge
        Pull towards the old weights, as a share of the inputs' mean square.
    """

    def __init__(self, gram: Gram, prior: torch.Tensor, *, ridge: float) -> None:
        self.gram, self.prior, self.ridge = gram, prior, ridge

    def under(self, kept: torch.Tensor) -> State:
        weights, removal = solve_kept(self.gram, self.prior, kept, ridge=self.ridge)
        slope = self.gram.cross.mT - weights @ self.gram.inputs
        gain = slope.square() / _energies(self.gram)
        return State(weights, removal, gain)


class Fixed:
    """Kept weights are as they were."""

    def __init__(self, gram: Gram, prior: torch.Tensor) -> None:
        self.gram, self.prior = gram, prior

    def under(self, kept: torch.Tensor) -> State:
        weights = torch.where(kept, self.prior, 0.0)
        slope = self.gram.cross.mT - weights @ self.gram.inputs
        own = self.prior.square() * _energies(self.gram)
        removal = own + 2 * self.prior * slope
        gain = 2 * self.prior * slope - own
        return State(weights, removal, gain)


def _energies(gram: Gram) -> torch.Tensor:
    """Sum of squares of each input, shape (groups, 1, unknowns); never zero."""
    return gram.inputs.diagonal(dim1=1, dim2=2).unsqueeze(1).clamp_min(1e-30)


class Point(NamedTuple):
    """One density of a layer: its mask, and the relative squared error of its output."""

    density: float
    kept: torch.Tensor
    error: float


def _point(source: Weights, kept: torch.Tensor, state: State, weights: int) -> Point:
    density = float(kept[..., :weights].sum()) / kept[..., :weights].numel()
    return Point(density, kept, relative_error(source.gram, state.weights))


def _best(score: torch.Tensor, count: int) -> torch.Tensor:
    """Mask of the ``count`` highest scores."""
    chosen = torch.zeros(score.numel(), dtype=torch.bool)
    chosen[score.flatten().topk(count).indices] = True
    return chosen.view(score.shape)


def by_magnitude(
    source: Weights, kept: torch.Tensor, densities: Sequence[float], *, weights: int
) -> Iterator[Point]:
    """Points at falling densities: the largest weights of the layer stay.

    Parameters
    ----------
    kept
        Mask to start from; what it removes stays removed.
    densities
        Shares of the layer's weights, falling.
    weights
        How many unknowns of each output are weights; a bias after them always stays.
    """
    size = torch.where(kept, source.prior.abs(), -1.0)[..., :weights]
    for density in densities:
        kept = kept.clone()
        kept[..., :weights] = _best(size, max(1, round(density * size.numel())))
        yield _point(source, kept, source.under(kept), weights)


def by_output_error(
    source: Weights, kept: torch.Tensor, densities: Sequence[float], *, weights: int
) -> Iterator[Point]:
    """Points at falling densities: at each the weights that the output misses least are removed.

    Parameters are those of :func:`by_magnitude`. The costs of removal are found again after every
    density, as each one removed changes what the others are worth.
    """
    state = source.under(kept)
    for density in densities:
        cost = torch.where(kept, state.removal, -torch.inf)[..., :weights]
        kept = kept.clone()
        kept[..., :weights] = _best(cost, max(1, round(density * cost.numel())))
        state = source.under(kept)
        yield _point(source, kept, state, weights)


def by_size(
    prior: torch.Tensor, kept: torch.Tensor, densities: Sequence[float], *, weights: int
) -> Iterator[Point]:
    """:func:`by_magnitude` where no feature map is sampled; the error is the weights' own."""
    size = torch.where(kept, prior, 0.0)[..., :weights].square()
    total = float(size.sum()) or 1.0
    for density in densities:
        kept = kept.clone()
        kept[..., :weights] = _best(size, max(1, round(density * size.numel())))
        error = 1 - float(size[kept[..., :weights]].sum()) / total
        yield Point(density, kept, error)


def exchanged(source: Weights, kept: torch.Tensor, *, weights: int) -> Point:
    """The same number of weights after restoring removed ones that the output misses most.

    Restored weights take the places of the kept ones that matter least, a few at a time, and only
    while the output's error falls: gains are those of one weight alone, so that restoring all of
    the best at once would make it rise.
    """
    state = source.under(kept)
    best = _point(source, kept, state, weights)
    share = _FIRST_EXCHANGE
    for _ in range(_EXCHANGES):
        removal = torch.where(kept, state.removal, torch.inf)[..., :weights].flatten()
        gain = torch.where(kept, -torch.inf, state.gain)[..., :weights].flatten()
        count = min(int(share * int(kept[..., :weights].sum())), int((~kept[..., :weights]).sum()))
        if not count:
            break
        lowest, out = removal.topk(count, largest=False)
        highest, back = gain.topk(count)
        worth = highest > lowest
        if not bool(worth.any()):
            break
        trial = kept[..., :weights].flatten().clone()
        trial[out[worth]], trial[back[worth]] = False, True
        tried = kept.clone()
        tried[..., :weights] = trial.view(kept[..., :weights].shape)
        tried_state = source.under(tried)
        point = _point(source, tried, tried_state, weights)
        if point.error < best.error:
            best, kept, state = point, tried, tried_state
        else:
            share /= 2
    return best


# -- Zeros of a model's weights and feature maps, for platforms that exploit them.

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
    # A platform whose dense kernels compute zeros too needs nothing of the array's model.
    from pytest_neuralpower.eyeriss.hardware import Zeros  # noqa: PLC0415

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


# -- Weight granularity: single weights become zero, for platforms whose energy falls with zeros.

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
    platform: Platform
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
