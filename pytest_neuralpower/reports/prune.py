"""The result of pruning, for people and for machines."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from pytest_neuralpower.remedy.rounds import PROGRESS
from pytest_neuralpower.units import show, show_in, show_percent

if TYPE_CHECKING:
    from pytest_neuralpower.remedy.result import Pruned

__all__ = ["pruned_record", "pruned_text"]


def pruned_record(result: Pruned) -> dict[str, Any]:
    """The result in JSON types, without masks and weights."""
    plan = result.plan
    return {
        "met": result.met,
        "quantity": plan.quantity,
        "limit": plan.limit,
        "before": plan.before,
        "after": plan.after,
        "floor": result.floor,
        "first_score": result.first_score,
        "last_score": result.last_score,
        "platform": plan.platform,
        "platform_sha256": plan.platform_sha256,
        "granularity": plan.granularity,
        "batch": plan.batch,
        "layers": dict(plan.layers),
        "history": [asdict(each) for each in result.history],
        "statements": list(result.statements),
        "warnings": list(result.warnings),
    }


def pruned_text(result: Pruned) -> str:
    """What came out, round by round and layer by layer, and what to know about it."""
    plan, budget = result.plan, result.budget
    limit = show_in(budget.quantity, budget.limit, budget.unit)
    ratio = plan.before / plan.after
    lines = [
        f"{plan.model} on {plan.platform}: {show(budget.quantity, plan.before)} -> "
        f"{show(budget.quantity, plan.after)} ({ratio:.2f} times less), budget {limit}: "
        + ("met" if result.met else "NOT met")
    ]
    if not result.met and result.floor is not None:
        lines.append(_why(result))
    if result.first_score is not None and result.last_score is not None:
        lines.append(f"score {result.first_score:.4g} -> {result.last_score:.4g}")
    lines += ["", _history(result), ""]
    rows = [(path, show_percent(share)) for path, share in plan.layers.items()]
    if rows:
        lines += [tabulate(rows, ("", f"{_unit(result)} left"), tablefmt="plain"), ""]
    lines += [*(f"- {each}" for each in result.statements)]
    lines += [*(f"! {each}" for each in result.warnings)]
    return "\n".join(lines)


def _why(result: Pruned) -> str:
    """What stopped it short of the budget."""
    assert result.floor is not None
    floor = show(result.budget.quantity, result.floor)
    if result.floor > result.budget.limit:
        return (
            f"unreachable: the floor is {floor}, whatever {_unit(result)} are removed (those that "
            "cost nothing stay); raise the budget or change the network"
        )
    return (
        f"stopped by max_drop at {show(result.budget.quantity, result.plan.after)} (the floor "
        f"without it is {floor}): fine-tune, take more rounds, or raise the budget"
    )


def _unit(result: Pruned) -> str:
    return "channels" if result.plan.granularity == "channel" else "weights"


def _history(result: Pruned) -> str:
    rows, now = [], result.plan.before
    for each in result.history:
        saves = each.reached < now * (1 - PROGRESS)
        rows.append(
            (
                each.number,
                show(result.budget.quantity, each.target),
                show(result.budget.quantity, each.reached),
                "" if each.score is None else f"{each.score:.4g}",
                "undone" if not each.kept else "kept" if saves else "saves nothing more",
            )
        )
        now = each.reached if each.kept else now
    return tabulate(rows, ("round", "target", "reached", "score", ""), tablefmt="plain")
