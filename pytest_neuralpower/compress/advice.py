"""``advise``: which widths lie just past a plateau edge of a platform, and what moving them saves.

FastDeepIoT (Yao et al., SenSys 2018) saw that time over channels has local minima: a few channels
less can save much, and some more can cost nothing. Predicted, never measured here; the model is not
changed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from pytest_neuralpower.compress.find_groups import NOT_CHECKED, find_channel_groups
from pytest_neuralpower.compress.width_prices import LayerQuota, WidthPrices, expansion, shrinkage
from pytest_neuralpower.guard.budget import Budget, as_budget, check
from pytest_neuralpower.model_source import as_call
from pytest_neuralpower.platform.catalog import as_platform
from pytest_neuralpower.platform.prediction import add_known
from pytest_neuralpower.platform.ranges import PROVENANCE_KEY, were_measured
from pytest_neuralpower.report.terminal import call_text, totals_text
from pytest_neuralpower.units import show_in, show_percent

if TYPE_CHECKING:
    from pytest_neuralpower.compress.channels import ChannelGroup, ChannelGroups
    from pytest_neuralpower.platform.prediction import Prediction
    from pytest_neuralpower.platform.protocol import Platform

#: Edges are looked for within this part of a width, and within so many channels of a narrow one.
_PART: Final = 8
_LEAST_CHANNELS: Final = 4

#: So many units beyond are priced too, to know the usual step.
_BEYOND: Final = 4

#: Layers that are traced and priced at most, unless more are asked for: some seconds.
DEFAULT_EFFORT: Final = 100_000

Action = Literal["shrink", "expand"]
Known = Literal["measured", "interpolated", "extrapolated", "computed"]


@dataclass(frozen=True, slots=True)
class Advice:
    """One width to move to an edge, and what that alone changes in one call.

    Attributes
    ----------
    action
        ``shrink`` to an edge below, or ``expand`` to one above that costs next to nothing.
    group
        Name of the channel group: the first module that writes these channels.
    coupled
        Paths of the other modules whose weights change with it.
    width, to_width
        Channels now, and as advised.
    energy_change_mj, runtime_change_ms
        Predicted, negative for a saving; None is what the platform does not know.
    parameters_change
        Values in the model's parameters.
    known
        How the platform knows the edge: ``measured`` in layers of both widths, ``interpolated``
        between measured sizes, ``extrapolated`` beyond them, or ``computed`` by formulas.
    meets
        Whether this change alone meets the budget; None without a budget.
    """

    action: Action
    group: str
    coupled: tuple[str, ...]
    width: int
    to_width: int
    energy_change_mj: float | None
    runtime_change_ms: float | None
    parameters_change: int
    known: Known
    meets: bool | None = None

    def text(self, before: Prediction) -> str:
        """``shrink features.3 65 -> 64 (+2 coupled): energy -3.2%, runtime -4.1%, ...``."""
        coupled = f" (+{len(self.coupled)} coupled)" if self.coupled else ""
        changes = [
            f"{quantity} {'-' if change < 0 else '+'}{show_percent(abs(change) / total)}"
            for quantity, change, total in (
                ("energy", self.energy_change_mj, before.energy_mj),
                ("runtime", self.runtime_change_ms, before.runtime_ms),
            )
            if change is not None and total
        ]
        return (
            f"{self.action} {self.group} {self.width} -> {self.to_width}{coupled}: "
            f"{', '.join([*changes, f'parameters {self.parameters_change:+,d}'])}; {self.known}"
            + ("; alone meets the budget" if self.meets else "")
        )


@dataclass(frozen=True, slots=True)
class Advised:
    """All advice for one model.

    Attributes
    ----------
    before
        The prediction of the model as it is.
    advice
        Shrinking, largest saving first; then expanding, most channels first.
    widths
        By group, the widths of all shrinking that pays together; empty where none does.
    after
        The prediction at those widths; ``before`` where there are none.
    parameters, parameters_after
        Values in the model's parameters, now and at those widths.
    budget, meets
        The budget asked about, and whether those widths together meet it; None without one.
    frozen
        Groups whose width may not change, with the reason.
    examined
        How many groups were examined.
    left
        Groups that were not examined, or not as far as they may move, for lack of effort.
    """

    before: Prediction
    advice: tuple[Advice, ...]
    widths: Mapping[str, int]
    after: Prediction
    parameters: int
    parameters_after: int
    budget: Budget | None = None
    meets: bool | None = None
    frozen: Mapping[str, str] = field(default_factory=dict)
    examined: int = 0
    left: tuple[str, ...] = ()

    def lines(self, most: int | None = None) -> list[str]:
        """``most`` lines of advice (by default all), and one on what all shrinking comes to."""
        return [*(each.text(self.before) for each in self.advice[:most]), self._together()]

    def _together(self) -> str:
        """What all shrinking that pays comes to, and whether that meets the budget."""
        if not self.widths:
            text = "no shrinking saves" if self.advice else "no width near a plateau edge saves"
            if self.budget is None or any(each.meets for each in self.advice):
                return text
            return f"{text}: the budget needs more than advice"
        count = len(self.widths)
        text = (
            f"{'then' if count == 1 else f'all {count} shrunk together'}: "
            f"{totals_text(self.after)}, parameters {self.parameters_after - self.parameters:+,d}"
        )
        if self.budget is None:
            return text
        limit = show_in(self.budget.quantity, self.budget.limit, self.budget.unit)
        return f"{text}; {'within' if self.meets else 'still over'} the budget of {limit}"

    def text(self) -> str:
        """Everything for people."""
        before = self.before
        left = f", {len(self.left)} not as far as they may move (--effort)" if self.left else ""
        reasons = Counter(self.frozen.values())
        return "\n".join(
            [
                f"{before.model} on {before.platform}: {totals_text(before)}",
                f"predicted for {call_text(before)}, not measured; accuracy of a changed model is "
                "unknown",
                f"{self.examined} widths examined, {len(self.frozen)} may not change{left}",
                "",
                *self.lines(),
                *(
                    f"note: {count} width{'s' if count > 1 else ''} may not change: {why}"
                    for why, count in reasons.items()
                ),
            ]
        )

    def to_json(self) -> dict[str, object]:
        """Everything in JSON types."""
        before, budget = self.before, self.budget

        def totals(call: Prediction, parameters: int) -> dict[str, float | int | None]:
            values = {"energy_mj": call.energy_mj, "runtime_ms": call.runtime_ms}
            return {**values, "parameters": parameters}

        return {
            "model": before.model,
            "platform": before.platform,
            "platform_sha256": before.platform_sha256,
            "batch": before.batch,
            "before": totals(before, self.parameters),
            "after": totals(self.after, self.parameters_after),
            "budget": None
            if budget is None
            else {"quantity": budget.quantity, "limit": budget.limit, "meets": self.meets},
            **msgspec.to_builtins(
                {name: getattr(self, name) for name in ("advice", "widths", "frozen", "left")}
            ),
        }


def advise(
    model: Any,
    inputs: Any,
    platform: Platform | str | Path,
    budget: Budget | str | None = None,
    *,
    channels: int | None = None,
    effort: float = DEFAULT_EFFORT,
) -> Advised:
    """Say which widths of ``model`` to move to a near plateau edge of ``platform``.

    Parameters
    ----------
    model
        A ``torch.nn.Module`` on any device, the meta device included; it is not changed.
    inputs
        One tensor, a sequence of positional inputs, or a mapping of keyword inputs.
    platform
        A loaded platform, a shipped platform's name, or the path of a platform file. Where it
        knows no energy the advice is on runtime.
    budget
        What one call should cost at most: ``"120 mJ"``, ``"4 ms"``, or a ``Budget``.
    channels
        Most channels by which a width may move; by default an eighth of it, and at least 4.
    effort
        How many layers to trace and price at most, in round numbers: groups that are not examined
        then are left out, and named in the result.

    Returns
    -------
    Advised
        Predicted, not measured.

    Raises
    ------
    MissingExtraError
        torch-pruning is not installed (the ``prune`` extra).
    UnsupportedGraphError
        Which widths belong together cannot be told; the message names the operation.
    BudgetError
        The budget is misused, or limits what the platform does not know.
    TraceError
        The model cannot be traced with these inputs.
    """
    left = LayerQuota(effort)
    loaded = as_platform(platform)
    call = as_call(inputs)
    limit = None if budget is None else as_budget(budget)
    groups = find_channel_groups(model, call.args, call.kwargs, effort=left)
    return advise_groups(groups, loaded, limit, channels=channels, effort=left)


def advise_groups(
    groups: ChannelGroups,
    platform: Platform,
    budget: Budget | None = None,
    *,
    channels: int | None = None,
    effort: LayerQuota | None = None,
) -> Advised:
    """:func:`advise` for channel groups that were found already."""
    before = platform.predict(groups.trace)
    if budget is not None:
        check(budget, before)  # refuses a budget on what the platform does not know
    by_runtime = before.energy_mj is None or (budget and budget.quantity == "runtime")
    prices = WidthPrices(groups, platform, "runtime" if by_runtime else "energy")
    most = {group.name: _most_units(group, channels) for group in groups.changeable}
    reach = {name: units + _BEYOND for name, units in most.items()}
    examined = prices.examine(reach, effort or LayerQuota(math.inf))
    advised = [
        advice
        for group in groups.changeable
        for advice in _advice_on(group, prices, most[group.name], examined[group.name])
    ]
    shrinking = sorted(
        (advice for advice in advised if advice.action == "shrink"),
        key=lambda advice: (
            (advice.runtime_change_ms if by_runtime else advice.energy_change_mj) or 0.0
        ),
    )
    expanding = sorted(
        (advice for advice in advised if advice.action == "expand"),
        key=lambda advice: advice.width - advice.to_width,
    )
    shrinking = [each for each in shrinking if _is_noticed(each, before, bool(by_runtime))]
    widths = _paying(shrinking, prices)
    after = platform.predict(groups.trace_at(widths)) if widths else before

    def judged(advice: Advice) -> Advice:
        advice = _of_the_call(advice, before)
        if budget is None:
            return advice
        moved = platform.predict(groups.trace_at({advice.group: advice.to_width}))
        return replace(advice, meets=check(budget, moved).passed)

    return Advised(
        before=before,
        advice=tuple(map(judged, (*shrinking, *expanding))),
        widths=widths,
        after=after,
        parameters=groups.parameters(),
        parameters_after=groups.parameters(widths),
        budget=budget,
        meets=None if budget is None else check(budget, after).passed,
        frozen={name: why for name, why in groups.frozen.items() if why != NOT_CHECKED},
        examined=sum(units > 0 for units in examined.values()),
        left=(
            *(name for name, why in groups.frozen.items() if why == NOT_CHECKED),
            *(name for name, units in most.items() if examined[name] < units),
        ),
    )


#: Share of the call that a shrinking must save: nobody gives up channels for less.
_LEAST_SAVING: Final = 0.01


def _is_noticed(advice: Advice, before: Prediction, by_runtime: bool) -> bool:
    """Whether what shrinking saves of the layers' cost, without waiting, is worth a line."""
    if by_runtime:
        change, whole = advice.runtime_change_ms, before.device_ms
    else:
        change, whole = (
            advice.energy_change_mj,
            add_known([each.energy_mj for each in before.layers]),
        )
    return -(change or 0.0) >= _LEAST_SAVING * (whole or 0.0)


def _of_the_call(advice: Advice, before: Prediction) -> Advice:
    """What moving the width does to a call that may wait for its host: its layers stay as many."""
    host, device_ms, change = before.host, before.device_ms, advice.runtime_change_ms
    if host is None or device_ms is None or change is None:
        return advice
    launches, moved = before.launches, device_ms + change
    runtime = [host.total_ms(each, launches) or 0.0 for each in (device_ms, moved)]
    waiting = [host.waiting_mj(each, launches) for each in (device_ms, moved)]
    energy = advice.energy_change_mj
    return replace(
        advice,
        runtime_change_ms=runtime[1] - runtime[0],
        energy_change_mj=None if energy is None else energy + waiting[1] - waiting[0],
    )


def _most_units(group: ChannelGroup, channels: int | None) -> int:
    """By how many units a width may move at most."""
    most = max(group.width // _PART, _LEAST_CHANNELS) if channels is None else channels
    return most // group.step


def _advice_on(
    group: ChannelGroup, prices: WidthPrices, most: int, examined: int
) -> Iterator[Advice]:
    """The edges near one width, one below and one above, where there are any."""
    curve, priced = prices.curve(group, examined)
    parameters = prices.groups.parameters
    chosen: tuple[tuple[Action, int | None], ...] = (
        ("shrink", shrinkage(curve, most * group.step)),
        ("expand", expansion(curve, most * group.step)),
    )
    for action, index in chosen:
        if index is None:
            continue
        to_width = int(curve.widths[index])
        trusted = bool(priced.trusted[index] and priced.trusted[curve.now])
        energy, runtime = (
            None if math.isnan(values[index]) else float(values[index] - values[curve.now])
            for values in (priced.energy_mj, priced.runtime_ms)
        )
        yield Advice(
            action=action,
            group=group.name,
            coupled=tuple(dict.fromkeys(slot.path for slot in group.slots[1:])),
            width=group.width,
            to_width=to_width,
            energy_change_mj=energy,
            runtime_change_ms=runtime,
            parameters_change=parameters({group.name: to_width}) - parameters(),
            known=_known(prices, group, to_width, trusted=trusted),
        )


def _known(prices: WidthPrices, group: ChannelGroup, to_width: int, *, trusted: bool) -> Known:
    platform = prices.platform
    if platform.analytic:
        return "computed"
    if not trusted:
        return "extrapolated"
    present = prices.groups.layers_at({}, group.gains)
    moved = prices.groups.layers_at({group.name: to_width}, group.gains)
    known = platform.provenance.get(PROVENANCE_KEY, {})
    pairs = list(zip(present, moved, strict=True))
    return "measured" if were_measured(known, pairs) else "interpolated"


def _paying(shrinking: Sequence[Advice], prices: WidthPrices) -> dict[str, int]:
    """The widths of all advice that still saves after the advice before it."""
    widths: dict[str, int] = {}
    for advice in shrinking:
        priced = prices.at(advice.group, (advice.width, advice.to_width), widths)
        stay, move = priced.of(prices.quantity).tolist()
        if move < stay:
            widths[advice.group] = advice.to_width
    return widths
