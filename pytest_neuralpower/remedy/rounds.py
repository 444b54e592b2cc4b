"""The rounds of pruning: reduce, let the user train, look at the score, go on or step back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["PROGRESS", "Finetune", "Guard", "Pruner", "Round", "run_rounds"]

#: Called after each round with the model to train in place, the masks of its weights by parameter
#: name (empty with channels, which are gone) and the round's number from 0.
Finetune = Callable[["nn.Module", Mapping[str, "torch.Tensor"], int], Any]

#: Smaller steps that are tried after a round has lost too much.
_RETRIES: Final = 3
#: Less than this share of the cost saved in a round is none.
PROGRESS: Final = 1e-3


class Pruner(Protocol):
    """One granularity: prunes ``model`` in place; costs are of one call, in mJ or ms."""

    model: nn.Module
    rows_per_unknown: dict[str, float]

    def cost(self) -> float: ...
    def least(self) -> float: ...
    def masks(self) -> dict[str, torch.Tensor]: ...
    def reduce_to(self, limit: float) -> Mapping[str, float]: ...
    def trained(self) -> None: ...
    @property
    def left_out(self) -> dict[str, str]: ...


@dataclass(frozen=True)
class Guard:
    """``score_fn`` of a model, higher is better, may fall by ``max_drop`` from what it is first."""

    score_fn: Callable[[Any], float] | None = None
    max_drop: float | None = None

    def score(self, model: nn.Module) -> float | None:
        return None if self.score_fn is None else float(self.score_fn(model))

    def allows(self, first: float | None, now: float | None) -> bool:
        return first is None or now is None or self.max_drop is None or first - now <= self.max_drop


@dataclass(frozen=True)
class Round:
    """One round: what it aimed at (mJ or ms), what came out, and whether it was kept.

    ``layers`` is the share of each layer's weights, or of each group's channels, that is left.
    """

    number: int
    target: float
    reached: float
    score: float | None
    kept: bool
    layers: Mapping[str, float]


def run_rounds(
    pruner: Pruner,
    limit: float,
    *,
    rounds: int,
    guard: Guard,
    finetune: Finetune | None,
) -> tuple[tuple[Round, ...], float | None]:
    """Prune until one call costs at most ``limit``; the targets fall by one factor a round.

    A round that loses more score than the guard allows is undone, and half of its step (as a
    factor) is tried instead.

    Returns
    -------
    rounds, first score
    """
    first = guard.score(pruner.model)
    now = pruner.cost()
    ratio = (limit / now) ** (1 / rounds)
    history: list[Round] = []
    retries = 0
    while now > limit * (1 + 1e-9) and len(history) < rounds + _RETRIES:
        target = max(limit, now * ratio)
        before = copy.copy(pruner), copy.deepcopy(pruner.model)
        layers = pruner.reduce_to(target)
        if finetune is not None:
            finetune(pruner.model, pruner.masks(), len(history))
            pruner.model.eval()
            pruner.trained()
        reached = pruner.cost()
        score = guard.score(pruner.model)
        stays = guard.allows(first, score)
        history.append(Round(len(history), target, reached, score, stays, layers))
        if stays:
            left = reached < now * (1 - PROGRESS)
            now = reached
            if not left:  # nothing more to remove
                break
        else:
            vars(pruner).update(vars(before[0]))
            pruner.model = before[1]
            retries += 1
            ratio = ratio**0.5
            if retries > _RETRIES:
                break
    return tuple(history), first
