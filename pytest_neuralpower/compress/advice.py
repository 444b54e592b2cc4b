"""``advise``: which widths lie just past a plateau edge of a platform, and what moving them saves.

FastDeepIoT (Yao et al., SenSys 2018) saw that time over channels has local minima: a few channels
less can save much, and some more can cost nothing. Predicted, never measured here; the model is not
changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pytest_neuralpower.compress.find_groups import NOT_CHECKED, find_channel_groups
from pytest_neuralpower.compress.inputs import as_call
from pytest_neuralpower.compress.width_prices import Effort, WidthPrices, expansion, shrinkage
from pytest_neuralpower.guard.budget import Budget, as_budget, check
from pytest_neuralpower.platform.catalog import load_platform
from pytest_neuralpower.platform.ranges import PROVENANCE_KEY, were_measured

if TYPE_CHECKING:
    from pytest_neuralpower.compress.channels import ChannelGroup, ChannelGroups
    from pytest_neuralpower.estimators.features import FloatArray
    from pytest_neuralpower.platform.prediction import Prediction
    from pytest_neuralpower.platform.protocol import Platform

__all__ = ["DEFAULT_EFFORT", "Advice", "Advised", "advise", "advise_groups"]

#: Edges are looked for within this part of a width, and within so many channels of a narrow one.
_PART: Final = 8
_LEAST_CHANNELS: Final = 4

#: So many units beyond are priced too, to know the usual step.
_BEYOND: Final = 4

#: Layers that are traced and priced at most, unless more are asked for: some seconds.
DEFAULT_EFFORT: Final = 100_000


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

    action: Literal["shrink", "expand"]
    group: str
    coupled: tuple[str, ...]
    width: int
    to_width: int
    energy_change_mj: float | None
    runtime_change_ms: float | None
    parameters_change: int
    known: Known
    meets: bool | None = None

    def change(self, quantity: Literal["energy", "runtime"]) -> float:
        """Predicted change of one quantity (mJ or ms)."""
        found = self.energy_change_mj if quantity == "energy" else self.runtime_change_ms
        return found or 0.0


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
    allowed = Effort(effort)
    loaded = load_platform(platform) if isinstance(platform, str | Path) else platform
    call = as_call(inputs)
    limit = None if budget is None else as_budget(budget)
    groups = find_channel_groups(model, call.args, call.kwargs, effort=allowed)
    return advise_groups(groups, loaded, limit, channels=channels, effort=allowed)


def advise_groups(
    groups: ChannelGroups,
    platform: Platform,
    budget: Budget | None = None,
    *,
    channels: int | None = None,
    effort: Effort | None = None,
) -> Advised:
    """:func:`advise` for channel groups that were found already."""
    before = platform.predict(groups.trace)
    if budget is not None:
        check(budget, before)  # refuses a budget on what the platform does not know
    effort = effort or Effort(math.inf)
    prices = WidthPrices(groups, platform, _quantity(before, budget))
    most = {group.name: _most_units(group, channels) for group in groups.changeable}
    examined = prices.examine({name: units + _BEYOND for name, units in most.items()}, effort)
    found = [
        each
        for group in groups.changeable
        for each in _advice_on(group, prices, most[group.name], examined[group.name])
    ]
    left = [name for name, reason in groups.frozen.items() if reason == NOT_CHECKED]
    left += [name for name, units in most.items() if examined[name] < units]
    shrinking = sorted(
        (each for each in found if each.action == "shrink"),
        key=lambda each: each.change(prices.quantity),
    )
    expanding = sorted(
        (each for each in found if each.action == "expand"),
        key=lambda each: each.width - each.to_width,
    )
    widths = _together(shrinking, prices)
    after = platform.predict(prices.trace_at(widths)) if widths else before
    return Advised(
        before=before,
        advice=tuple(_judged(each, prices, budget) for each in (*shrinking, *expanding)),
        widths=widths,
        after=after,
        parameters=groups.parameters(),
        parameters_after=groups.parameters(widths),
        budget=budget,
        meets=None if budget is None else check(budget, after).passed,
        frozen={name: each for name, each in groups.frozen.items() if each != NOT_CHECKED},
        examined=sum(units > 0 for units in examined.values()),
        left=tuple(left),
    )


def _judged(advice: Advice, prices: WidthPrices, budget: Budget | None) -> Advice:
    """The advice with whether it alone meets the budget."""
    if budget is None:
        return advice
    moved = prices.platform.predict(prices.trace_at({advice.group: advice.to_width}))
    return replace(advice, meets=check(budget, moved).passed)


def _quantity(before: Prediction, budget: Budget | None) -> Literal["energy", "runtime"]:
    """What widths are chosen by: what the budget limits, else energy where it is known."""
    if budget is not None and budget.quantity == "runtime":
        return "runtime"
    return "runtime" if before.energy_mj is None else "energy"


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
    places: tuple[tuple[Literal["shrink", "expand"], int | None], ...] = (
        ("shrink", shrinkage(curve, most * group.step)),
        ("expand", expansion(curve, most * group.step)),
    )
    for action, place in places:
        if place is None:
            continue
        to_width = int(curve.widths[place])
        trusted = bool(priced.trusted[place] and priced.trusted[curve.now])
        yield Advice(
            action=action,
            group=group.name,
            coupled=tuple(dict.fromkeys(slot.path for slot in group.slots[1:])),
            width=group.width,
            to_width=to_width,
            energy_change_mj=_change(priced.energy_mj, place, curve.now),
            runtime_change_ms=_change(priced.runtime_ms, place, curve.now),
            parameters_change=parameters({group.name: to_width}) - parameters(),
            known=_known(prices, group, to_width, trusted=trusted),
        )


def _known(prices: WidthPrices, group: ChannelGroup, to_width: int, *, trusted: bool) -> Known:
    platform = prices.platform
    if platform.analytic:
        return "computed"
    if not trusted:
        return "extrapolated"
    places = prices.groups.reached(group.name)
    present = prices.groups.layers_at(places, {})
    moved = prices.groups.layers_at(places, {group.name: to_width})
    known = platform.provenance.get(PROVENANCE_KEY, {})
    pairs = list(zip(present, moved, strict=True))
    return "measured" if were_measured(known, pairs) else "interpolated"


def _change(values: FloatArray | None, place: int, now: int) -> float | None:
    return None if values is None else float(values[place] - values[now])


def _together(shrinking: Sequence[Advice], prices: WidthPrices) -> dict[str, int]:
    """The widths of all advice that still saves beside the advice before it."""
    widths: dict[str, int] = {}
    for advice in shrinking:
        found = prices.at(advice.group, (advice.width, advice.to_width), widths)
        stay, move = prices.amounts(found).tolist()
        if move < stay:
            widths[advice.group] = advice.to_width
    return widths
