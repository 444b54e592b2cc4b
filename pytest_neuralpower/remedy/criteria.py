"""Which weights of one layer stay: by magnitude, or by the error of the layer's output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch

from pytest_neuralpower.remedy.least_squares import Gram, relative_error, solve_kept

__all__ = [
    "Fixed",
    "Point",
    "Refitted",
    "Weights",
    "by_magnitude",
    "by_output_error",
    "by_size",
    "exchanged",
]

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
