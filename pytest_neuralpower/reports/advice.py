"""Advice as plain text and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pytest_neuralpower.reports.terminal import call_text, totals_text
from pytest_neuralpower.units import show_in, show_percent

if TYPE_CHECKING:
    from pytest_neuralpower.prediction import Prediction
    from pytest_neuralpower.remedy.advice import Advice, Advised

__all__ = ["advice_line", "advice_lines", "advice_record", "advice_text"]


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
