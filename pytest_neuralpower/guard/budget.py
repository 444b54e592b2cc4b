"""Budget: an upper limit on the energy, runtime or power of one call, and its check."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, cast, get_args

from msgspec import Struct

from pytest_neuralpower.errors import BudgetError
from pytest_neuralpower.platform.generation import Generation
from pytest_neuralpower.platform.intervals import Interval
from pytest_neuralpower.platform.prediction import UNCOVERED
from pytest_neuralpower.units import SYMBOLS, UNITS, Quantity, is_finite, show_in

if TYPE_CHECKING:
    from pytest_neuralpower.platform.prediction import Prediction

MARKERS: Mapping[str, Quantity] = {
    "energy_budget": "energy",
    "runtime_budget": "runtime",
    "power_budget": "power",
}

#: What a limit is of: of a generation also its first token, and the time between two others.
Per = Literal["call", "sample", "token", "first_token", "next_token"]
_PER: Final = get_args(Per)
#: Latencies: no share of a call, and no energy.
_LATENCIES: Final = _PER[3:]

#: Which end of its interval a prediction is judged by.
Judge = Literal["point", "certain", "safe"]


class Budget(NamedTuple):
    """``limit`` is in mJ, ms or W; ``unit`` is the one it was written in, for messages.

    ``platform`` None means the platforms chosen for the session. ``samples`` is how many samples
    one call has, where the first dimension of its first tensor does not say; ``tokens`` how many
    tokens, where its inputs are no ids.
    """

    quantity: Quantity
    limit: float
    unit: str
    per: Per = "call"
    platform: str | None = None
    samples: int | None = None
    tokens: int | None = None

    def parts(self, batch: int, tokens: int) -> int:
        """What a call's figures are divided by; 0 where that is not known.

        Parameters
        ----------
        batch, tokens
            Of the call, as its inputs tell.
        """
        if self.per == "sample":
            return self.samples or batch
        return (self.tokens or tokens) if self.per == "token" else 1


class Verdict(Struct, frozen=True):
    """One budget held against one prediction; ``limit``, ``value``, ``interval`` in mJ, ms or W.

    Attributes
    ----------
    quantity, unit, samples, per, limit, tokens
        Of the :class:`Budget`.
    value
        What was predicted: of a call, a sample or a token, as ``per`` says.
    judge
        What is held against the limit: the ``point``; the interval's lower end, so that only what
        is ``certain`` to be over fails; or its upper end, so that only what is ``safe`` passes.
    sure
        Whether the limit lies outside the interval, and all of the cost is of layers whose errors
        are known; None without an interval.
    """

    quantity: Quantity
    unit: str
    samples: int | None
    per: Per
    limit: float
    value: float
    passed: bool
    judge: Judge
    interval: Interval | None
    sure: bool | None
    tokens: int | None = None

    @property
    def per_suffix(self) -> str:
        """`` per token``; empty of a call."""
        return "" if self.per == "call" else f" per {self.per.replace('_', ' ')}"

    @property
    def headline(self) -> str:
        """``33.7 mJ > 25 mJ``; of the interval's upper end where that is what is judged."""
        value = self.value
        if value <= self.limit and self.interval is not None:
            value = self.interval.high
        limit = f"{self.limit / UNITS[self.quantity][self.unit]:,.6g} {SYMBOLS[self.unit]}"
        return f"{self.show(value)} > {limit}{self.per_suffix}"

    def show(self, value: float) -> str:
        """``value`` (mJ, ms or W) as the budget was written."""
        return show_in(self.quantity, value, self.unit)


def parse_marker(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, in_file: bool = False
) -> Budget:
    """Budget written as the arguments of one marker, or ``in_file`` under its quantity's name.

    Raises
    ------
    BudgetError
        With one line that names the marker or quantity, the offending argument and what is allowed.
    """
    quantity = MARKERS[name]
    units = UNITS[quantity]
    allowed = [*units, "platform"] + (["per", "samples", "tokens"] if quantity != "power" else [])
    usage = f"write {name}({next(iter(units))}=120)"
    if in_file:
        name, usage = quantity, f"write {quantity}: {{{next(iter(units))}: 120}}"
    if args:
        raise BudgetError(f"{name}: positional argument {args[0]!r} has no unit; {usage}")
    for key in kwargs:
        if key not in allowed:
            raise BudgetError(
                f"{name}: {_why_not(key, allowed)}: {key}={kwargs[key]!r}; "
                f"allowed: {', '.join(allowed)}"
            )
    given = [key for key in kwargs if key in units]
    if len(given) != 1:
        limits = f"{len(given)} limits given ({', '.join(given)})" if given else "no limit given"
        raise BudgetError(f"{name}: {limits}; give exactly one of {', '.join(units)}; {usage}")
    limit = kwargs[given[0]]
    if isinstance(limit, bool) or not isinstance(limit, int | float):
        raise BudgetError(f"{name}: {given[0]}={limit!r} is not a number; {usage}")
    if not (is_finite(limit) and limit > 0):
        raise BudgetError(f"{name}: {given[0]}={limit!r} must be finite and above 0; {usage}")
    per = kwargs.get("per", "call")
    choices = _PER if quantity == "runtime" else _PER[:3]
    if per not in choices:
        allowed_per = ", ".join(map(repr, choices))
        raise BudgetError(f"{name}: per={per!r}; allowed: {allowed_per}")
    platform = kwargs.get("platform")
    if platform is not None and (not isinstance(platform, str) or not platform):
        raise BudgetError(
            f"{name}: platform={platform!r} must be one platform's name or path; "
            f"write {name} again for a second platform"
        )
    for key in ("samples", "tokens"):
        count = kwargs.get(key)
        part = key.removesuffix("s")
        if count is not None and (type(count) is not int or count < 1 or per != part):
            raise BudgetError(
                f"{name}: {key}={count!r} must be a whole number from 1, together with per={part!r}"
            )
    unit = given[0]
    factor = units[unit]
    counts = kwargs.get("samples"), kwargs.get("tokens")
    return Budget(quantity, float(limit) * factor, unit, cast("Any", per), platform, *counts)


def _why_not(key: Any, allowed: Sequence[str]) -> str:
    """What is wrong with an argument's name."""
    key = str(key)  # of a file it may be any value
    if key in ("per", "samples", "tokens"):
        return "power does not add up over samples"
    for marker, quantity in MARKERS.items():
        if key in UNITS[quantity]:
            return f"{key} is a unit of {marker}"
    close = difflib.get_close_matches(key.lower(), allowed, n=1)
    return "unknown argument" + (f", did you mean {close[0]}?" if close else "")


def closest_budgets(budgets: Iterable[tuple[int, Budget]]) -> tuple[Budget, ...]:
    """Drop every budget that a closer one overrides.

    Parameters
    ----------
    budgets
        Those that apply to the test's platform, each with its distance: 0 on the function, more on
        its class and module. A closer budget of the same quantity and ``per`` overrides one further
        out, so that a default can be loosened or tightened locally; at one distance the budget that
        names the platform does.
    """
    kept: dict[tuple[str, str], Budget] = {}
    for _, budget in sorted(budgets, key=lambda each: (each[0], each[1].platform is None)):
        kept.setdefault((budget.quantity, budget.per), budget)
    return tuple(kept.values())


def check(budget: Budget, prediction: Prediction, judge: Judge = "point") -> Verdict:
    """Hold ``prediction`` against ``budget``.

    Raises
    ------
    BudgetError
        If the platform does not predict what the budget limits, ``judge`` needs an interval and
        the platform has none, or a budget per sample or token meets a call of none, or of inputs
        that do not tell how many.
    """
    value: float | None
    if budget.per in _LATENCIES:
        value, interval = _latency(budget, prediction)
    elif budget.quantity == "runtime":
        value, interval = prediction.runtime_ms, prediction.runtime_interval_ms
    elif budget.quantity == "energy":
        value, interval = prediction.energy_mj, prediction.energy_interval_mj
    else:
        value, interval = prediction.power_w, prediction.power_interval_w
    if value is None:
        alone, other, wanted = (
            ("energy", "energy_budget(mj=...)", "runtime")
            if prediction.runtime_ms is None
            else ("runtime", "runtime_budget(ms=...)", "power")
        )
        raise BudgetError(
            f"{budget.quantity} budget: platform {prediction.platform!r} knows {alone} alone; use "
            f"{other} or a platform with {wanted} (`neuralpower platforms`)"
        )
    if interval is None and judge != "point":
        who, instead = f"platform {prediction.platform!r}", "a platform with intervals"
        if prediction.estimator != "best":
            who, instead = f"estimator {prediction.estimator!r}", "--np-estimator=best"
        raise BudgetError(
            f"{budget.quantity} budget: np_judge={judge} needs intervals and {who} has none; "
            f"use --np-judge=point or {instead}"
        )
    parts = budget.parts(prediction.batch, prediction.tokens)
    if not parts:
        raise BudgetError(
            f"{budget.quantity} budget: the call has 0 {budget.per}s, or inputs that do not tell "
            f"how many; predict at least one, or say {budget.per}s=N in the marker"
        )
    value /= parts
    if interval is not None:
        interval = interval._replace(low=interval.low / parts, high=interval.high / parts)
    held, sure = value, None
    if interval is not None:
        held = {"point": value, "certain": interval.low, "safe": interval.high}[judge]
        sure = not (interval.low <= budget.limit <= interval.high or unknown_share(prediction))
    return Verdict(
        *(budget.quantity, budget.unit, budget.samples, budget.per, budget.limit),
        *(value, held <= budget.limit, judge, interval, sure),
        tokens=budget.tokens,
    )


def _latency(budget: Budget, prediction: Prediction) -> tuple[float | None, Interval | None]:
    """Time to the first token, or between two others, of a generation."""
    if not isinstance(prediction, Generation):
        raise BudgetError(
            f"runtime budget: per={budget.per!r} is of a generation: call "
            "neuralpower.generate(model, prompt=..., new_tokens=...) in the test"
        )
    if budget.per == "first_token":
        return prediction.ttft_ms, prediction.ttft_interval_ms
    if prediction.decode is None:
        raise BudgetError(
            "runtime budget: per='next_token' needs two tokens or more: generate new_tokens=2"
        )
    latency = prediction.itl_ms
    return None if latency is None else latency.mean, prediction.itl_interval_ms


#: Less than this share of a cost is not looked at: it shows as 0%.
_NEGLIGIBLE: Final = 0.005


def unknown_share(prediction: Prediction) -> float:
    """Share (0..1) of the cost whose error nothing measured tells, 0 where it hardly counts.

    Intervals of kinds that were not measured on the device were judged on devices left out, those
    of sizes beyond the calibrated ones by leaving such sizes out; an operation without a formula
    may take any time.
    """
    share = prediction.share(UNCOVERED)
    return share if share >= _NEGLIGIBLE else 0.0


# -- The budget of ``prune_to_budget``.

_TEXT = re.compile(r"\s*([0-9.eE+-]+)\s*([a-zµ]+)\s*", re.IGNORECASE)


def as_budget(budget: Budget | str) -> Budget:
    """A limit on the energy or runtime of one call.

    Parameters
    ----------
    budget
        A :class:`Budget`, or text such as ``"12 mJ"`` or ``"3.5 ms"``.

    Raises
    ------
    BudgetError
        It is no such limit.
    """
    if isinstance(budget, str):
        return _parse(budget)
    if not isinstance(budget, Budget):
        raise BudgetError(f"budget={budget!r}: write '12 mJ' or '3.5 ms', or give a Budget")
    if budget.quantity == "power":
        raise BudgetError("a power budget cannot be pruned to: give energy or runtime")
    return budget


def _parse(text: str) -> Budget:
    found = _TEXT.fullmatch(text)
    unit = found[2].lower().replace("µ", "u") if found else ""
    for quantity in ("energy", "runtime"):
        if found and unit in UNITS[quantity]:
            try:
                limit = float(found[1]) * UNITS[quantity][unit]
            except ValueError:
                break
            if math.isfinite(limit) and limit > 0:
                return Budget(quantity, limit, unit)
    units = ", ".join(SYMBOLS[unit] for each in ("energy", "runtime") for unit in UNITS[each])
    raise BudgetError(f"budget {text!r}: write a number above 0 and one of {units}, as '12 mJ'")
