"""What pruning by weights and by channels have in common: which parts to prune how far.

A part is a layer with its density, or a channel group with its width; each has a curve of points
from what it is now to what is least, with the error of the outputs at each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, cast

from pytest_neuralpower.compress.least_squares import sampled_grams

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pytest_neuralpower.compress.least_squares import Gram, Reconstructed
    from pytest_neuralpower.model_source import Call

Criterion = Literal["output_error", "magnitude"]
Order = Literal["energy", "greedy"]

#: Pull of the least squares towards the old weights, as a share of the inputs' mean square.
RIDGE: Final = 1e-3


@dataclass(kw_only=True)
class Pruner(ABC):
    """Prunes ``model`` in place; costs are of one call, in mJ or ms.

    Attributes
    ----------
    model, reference
        What is pruned, and the model whose feature maps it is to keep.
    calls
        Whose feature maps are sampled.
    criterion
        What stays: what the layer's output misses most, or what is largest.
    order
        How parts are chosen.
    refit
        Whether weights that stay are solved for by least squares.
    seed
        Of the sampling.
    outputs
        Channels of the reference's layers that the model's layers still write, by path; of a layer
        that is left out, all.
    rows_per_unknown
        Rows of sampled feature maps per weight that stays of an output, by layer.
    """

    model: nn.Module
    reference: nn.Module
    calls: Sequence[Call]
    criterion: Criterion = "output_error"
    order: Order = "energy"
    refit: bool = True
    seed: int = 0
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    rows_per_unknown: dict[str, float] = field(default_factory=dict)

    @abstractmethod
    def cost(self) -> float:
        """Of the call as the model is now."""

    @abstractmethod
    def least(self) -> float:
        """Of the call with every part at its least."""

    @abstractmethod
    def masks(self) -> dict[str, torch.Tensor]:
        """Mask of each pruned parameter by its name, in its shape; True stays."""

    @abstractmethod
    def reduce_to(self, limit: float) -> Mapping[str, float]:
        """Prune until one call costs at most ``limit``; share of each part that is left."""

    @abstractmethod
    def trained(self) -> None:
        """After the user has trained the model: its outputs now are the ones to keep."""

    @property
    @abstractmethod
    def left_out(self) -> dict[str, str]:
        """Parts that are not pruned as asked, with the reason."""

    def _layer(self, path: str) -> Reconstructed:
        return cast("Reconstructed", self.model.get_submodule(path))

    def grams(self, paths: Sequence[str]) -> Mapping[str, Gram]:
        """Sampled sums of some layers: see :func:`sampled_grams`."""
        return sampled_grams(
            self.model, self.reference, paths, self.calls, outputs=self.outputs, seed=self.seed
        )


# -- Orders of pruning.

#: Errors along each part's curve, by name: 0 for what it is now, then of less and less.
Errors = Mapping[str, Sequence[float]]
#: Index of each part's chosen point.
Choice = Mapping[str, int]
#: Cost of the call (mJ or ms) with a choice.
Cost = Callable[[Choice], float]


def choose_most_expensive_first(
    errors: Errors, cost: Cost, limit: float, parts: Sequence[str]
) -> dict[str, int]:
    """The paper's order: parts by their cost, each as far as one common tolerance allows.

    The tolerance bounds the relative squared error of a part's outputs; it is the least one at
    which the call costs at most ``limit``. Parts are visited in the order given, and those after
    the limit is met stay at the tolerance before. All are at their least where even that costs
    more.
    """
    tolerances = sorted({error for curve in errors.values() for error in curve})

    def allowed(tolerance: float) -> dict[str, int]:
        return {
            name: max(at for at, error in enumerate(curve) if not at or error <= tolerance)
            for name, curve in errors.items()
        }

    least = bisect_left(tolerances, True, key=lambda each: cost(allowed(each)) <= limit)
    if least == len(tolerances):
        return {name: len(curve) - 1 for name, curve in errors.items()}
    choice = allowed(tolerances[least - 1]) if least else dict.fromkeys(errors, 0)
    wanted = allowed(tolerances[least])
    for name in parts:
        while choice[name] < wanted[name] and cost(choice) > limit:
            choice[name] += 1
    return choice


def choose_greedy(errors: Errors, cost: Cost, limit: float, parts: Sequence[str]) -> dict[str, int]:
    """One step at a time of the part whose outputs suffer least for what the step saves.

    A step goes to the next point that saves anything, so that a flat stretch is stepped over. Of
    equal steps that of the first part is taken.
    """
    choice = dict.fromkeys(parts, 0)
    now = cost(choice)
    while now > limit:
        steps = []
        for rank, name in enumerate(parts):
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


#: Errors, cost, limit and the parts, the most expensive one first -> index of each part's point.
CHOOSERS: Final[Mapping[Order, Callable[[Errors, Cost, float, Sequence[str]], dict[str, int]]]] = {
    "energy": choose_most_expensive_first,
    "greedy": choose_greedy,
}
