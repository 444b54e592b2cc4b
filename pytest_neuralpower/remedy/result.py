"""What pruning to a budget gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_neuralpower.remedy.plan import Plan, write_plan
from pytest_neuralpower.remedy.tensor_files import save_state

if TYPE_CHECKING:
    from torch import nn

    from pytest_neuralpower.budget import Budget
    from pytest_neuralpower.prediction import Prediction
    from pytest_neuralpower.remedy.rounds import Round

__all__ = ["Pruned"]


@dataclass(frozen=True)
class Pruned:
    """A pruned model and how it came about.

    Attributes
    ----------
    model
        The pruned model; the one given is unchanged unless pruning in place was asked for.
    plan
        What was removed; :func:`~pytest_neuralpower.apply_plan` does it again.
    before, after
        Predictions of the call.
    met
        Whether the call keeps the budget now.
    floor
        Least cost that removing can reach on this platform (mJ or ms), where the budget is not met.
    history
        Round by round: target, what was reached, score, and whether it was kept.
    first_score, last_score
        Of ``score_fn``; None without one.
    statements
        What a reader of the figures must know, a sentence each.
    warnings
        What may be wrong with this result, a sentence each.
    """

    model: nn.Module
    plan: Plan
    budget: Budget
    before: Prediction
    after: Prediction
    met: bool
    floor: float | None
    history: tuple[Round, ...]
    first_score: float | None
    last_score: float | None
    statements: tuple[str, ...]
    warnings: tuple[str, ...]

    def save(self, plan: Path | str, weights: Path | str | None = None) -> None:
        """Write the plan, and the pruned weights as a state dict of torch."""
        write_plan(self.plan, plan)
        if weights is not None:
            save_state(self.model, weights)
