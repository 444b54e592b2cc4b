"""Budget: an upper limit on the energy, runtime or power of one call; checked, never adjusted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from pytest_neuralpower.errors import BudgetError
from pytest_neuralpower.units import UNITS, Quantity, show_in

if TYPE_CHECKING:
    from pytest_neuralpower.prediction import Interval, Prediction

MARKERS: Mapping[str, Quantity] = {
    "energy_budget": "energy",
    "runtime_budget": "runtime",
    "power_budget": "power",
}

_PER = ("call", "sample")

#: Which end of its interval a prediction is judged by.
Judge = Literal["point", "certain", "safe"]


@dataclass(frozen=True, slots=True)
class Budget:
    """``limit`` is in mJ, ms or W; ``unit`` is the one it was written in, for messages.

    ``platform`` None means the platforms chosen for the session.
    """

    quantity: Quantity
    limit: float
    unit: str
    per: Literal["call", "sample"] = "call"
    platform: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One budget held against one prediction; ``value`` and ``interval`` are in mJ, ms or W.

    ``judge`` says what is held against the limit: the ``point``; the interval's lower end, so that
    only what is ``certain`` to be over fails; or its upper end, so that only what is ``safe``
    passes. The last two need an interval.
    """

    budget: Budget
    value: float
    interval: Interval | None = None
    judge: Judge = "point"

    @property
    def judged(self) -> float:
        """The value that is held against the limit."""
        if self.interval is None or self.judge == "point":
            return self.value
        return self.interval.low if self.judge == "certain" else self.interval.high

    @property
    def passed(self) -> bool:
        return self.judged <= self.budget.limit

    @property
    def sure(self) -> bool | None:
        """Whether the limit lies outside the interval; None without an interval."""
        if self.interval is None:
            return None
        return not self.interval.low <= self.budget.limit <= self.interval.high

    def show(self, value: float) -> str:
        """``value`` (mJ, ms or W) as the budget was written."""
        return show_in(self.budget.quantity, value, self.budget.unit)


def parse_marker(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Budget:
    """Budget written as the arguments of one marker.

    Raises
    ------
    BudgetError
        With one line that names the marker, the offending argument and what is allowed.
    """
    quantity = MARKERS[name]
    units = UNITS[quantity]
    allowed = [*units, "platform"] + (["per"] if quantity != "power" else [])
    usage = f"write {name}({next(iter(units))}=120)"
    if args:
        raise BudgetError(f"{name}: positional argument {args[0]!r} has no unit; {usage}")
    for key in kwargs:
        if key not in allowed:
            reason = "power does not add up over samples" if key == "per" else "unknown argument"
            raise BudgetError(
                f"{name}: {reason}: {key}={kwargs[key]!r}; allowed: {', '.join(allowed)}"
            )
    given = [key for key in kwargs if key in units]
    if len(given) != 1:
        what = "no limit given" if not given else f"{len(given)} limits given ({', '.join(given)})"
        raise BudgetError(f"{name}: {what}; give exactly one of {', '.join(units)}; {usage}")
    limit = kwargs[given[0]]
    if isinstance(limit, bool) or not isinstance(limit, int | float):
        raise BudgetError(f"{name}: {given[0]}={limit!r} is not a number; {usage}")
    if not (math.isfinite(limit) and limit > 0):
        raise BudgetError(f"{name}: {given[0]}={limit!r} must be finite and above 0; {usage}")
    per = kwargs.get("per", "call")
    if per not in _PER:
        raise BudgetError(f"{name}: per={per!r}; allowed: 'call', 'sample'")
    platform = kwargs.get("platform")
    if platform is not None and (not isinstance(platform, str) or not platform):
        raise BudgetError(
            f"{name}: platform={platform!r} must be one platform's name or path; "
            "repeat the marker for a second platform"
        )
    unit = given[0]
    return Budget(quantity, float(limit) * units[unit], unit, cast("Any", per), platform)


def closest_budgets(budgets: Iterable[Budget]) -> tuple[Budget, ...]:
    """Drop a budget that a closer one overrides; ``budgets`` come closest first.

    A function's marker overrides its class's or module's of the same quantity, platform and
    ``per``, so that a global default can be loosened or tightened locally.
    """
    kept: dict[tuple[str, str, str | None], Budget] = {}
    for budget in budgets:
        kept.setdefault((budget.quantity, budget.per, budget.platform), budget)
    return tuple(kept.values())


def check(budget: Budget, prediction: Prediction, judge: Judge = "point") -> Verdict:
    """Hold ``prediction`` against ``budget``.

    Raises
    ------
    BudgetError
        If the platform predicts no power and the budget is on energy or power, or ``judge`` needs
        an interval and the platform has none.
    """
    value: float | None
    if budget.quantity == "runtime":
        value, interval = prediction.runtime_ms, prediction.runtime_interval_ms
    elif budget.quantity == "energy":
        value, interval = prediction.energy_mj, prediction.energy_interval_mj
    else:
        value, interval = prediction.power_w, prediction.power_interval_w
    if value is None:
        raise BudgetError(
            f"{budget.quantity} budget: platform {prediction.platform!r} is calibrated for runtime "
            "alone; use runtime_budget(ms=...) or a platform with power (`neuralpower platforms`)"
        )
    if interval is None and judge != "point":
        raise BudgetError(
            f"{budget.quantity} budget: np_judge={judge} needs intervals and platform "
            f"{prediction.platform!r} has none; refit it (`neuralpower fit`) or use "
            "--np-judge=point"
        )
    if budget.per == "sample":
        value /= prediction.batch
        if interval is not None:
            interval = interval._replace(
                low=interval.low / prediction.batch, high=interval.high / prediction.batch
            )
    return Verdict(budget, value, interval, judge)
