"""Advice as plain text and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from pytest_neuralpower.compress.prune import PROGRESS
from pytest_neuralpower.report.terminal import call_text, totals_text
from pytest_neuralpower.units import show, show_in, show_percent

if TYPE_CHECKING:
    from pytest_neuralpower.compress.advice import Advice, Advised
    from pytest_neuralpower.compress.prune import Pruned
    from pytest_neuralpower.platform.prediction import Prediction

__all__ = [
    "advice_line",
    "advice_lines",
    "advice_record",
    "advice_text",
    "pruned_record",
    "pruned_text",
]


def advice_line(advice: Advice, before: Prediction) -> str:
    """``shrink features.3 65 -> 64 (2 more modules): energy -3.2%, runtime -4.1%, ...``."""
    count = len(advice.coupled)
    coupled = f" (+{count} coupled)" if count else ""
    changes = [
        f"{quantity} {_signed(change, total)}"
        for quantity, change, total in (
            ("energy", advice.energy_change_mj, before.energy_mj),
            ("runtime", advice.runtime_change_ms, before.runtime_ms),
        )
        if change is not None and total
    ]
    changes.append(f"parameters {advice.parameters_change:+,d}")
    meets = "; alone meets the budget" if advice.meets else ""
    return (
        f"{advice.action} {advice.group} {advice.width} -> {advice.to_width}{coupled}: "
        f"{', '.join(changes)}; {advice.known}{meets}"
    )


def _signed(change: float, total: float) -> str:
    sign = "+" if change > 0 else "-"
    return sign + show_percent(abs(change) / total)


def advice_lines(advised: Advised, most: int) -> list[str]:
    """At most ``most`` lines of advice, and one on what all shrinking comes to."""
    lines = [advice_line(each, advised.before) for each in advised.advice[:most]]
    return [*lines, *_together(advised)]


def _together(advised: Advised) -> list[str]:
    """What all shrinking that pays comes to, and whether that meets the budget."""
    if not advised.widths:
        text = "no width near a plateau edge saves"
        return [f"{text}: the budget needs more than advice" if advised.budget else text]
    parameters = advised.parameters_after - advised.parameters
    count = len(advised.widths)
    which = "then" if count == 1 else f"all {count} shrunk together"
    text = f"{which}: {totals_text(advised.after)}, parameters {parameters:+,d}"
    if advised.budget is None:
        return [text]
    limit = show_in(advised.budget.quantity, advised.budget.limit, advised.budget.unit)
    return [f"{text}; {'meets' if advised.meets else 'does not meet'} {limit}"]


def advice_text(advised: Advised) -> str:
    """Everything for people."""
    before = advised.before
    lines = [
        f"{before.model} on {before.platform}: {totals_text(before)}",
        f"predicted for {call_text(before)}, not measured; accuracy of a changed model is unknown",
        f"{advised.examined} widths examined, {len(advised.frozen)} may not change"
        + (f", {len(advised.left)} not as far as they may move (--effort)" if advised.left else ""),
        "",
        *(advice_line(each, before) for each in advised.advice),
        *_together(advised),
    ]
    reasons: dict[str, int] = {}
    for reason in advised.frozen.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    lines += [f"note: {count} left as they are: {each}" for each, count in reasons.items()]
    return "\n".join(lines)


def advice_record(advised: Advised) -> dict[str, Any]:
    """Everything in JSON types."""
    budget = advised.budget
    return {
        "model": advised.before.model,
        "platform": advised.before.platform,
        "platform_sha256": advised.before.platform_sha256,
        "batch": advised.before.batch,
        "before": _totals(advised.before, advised.parameters),
        "after": _totals(advised.after, advised.parameters_after),
        "budget": None
        if budget is None
        else {"quantity": budget.quantity, "limit": budget.limit, "meets": advised.meets},
        "advice": [{**asdict(each), "coupled": list(each.coupled)} for each in advised.advice],
        "widths": dict(advised.widths),
        "frozen": dict(advised.frozen),
        "left": list(advised.left),
    }


def _totals(prediction: Prediction, parameters: int) -> dict[str, float | int | None]:
    return {
        "energy_mj": prediction.energy_mj,
        "runtime_ms": prediction.runtime_ms,
        "parameters": parameters,
    }


# -- The result of pruning, for people and for machines.


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
