"""The rounds of pruning: reduce, let the user train, look at the score, go on or step back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, cast

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from pytest_neuralpower.compress.channel_pruner import ChannelPruner, LayersCost
from pytest_neuralpower.compress.inputs import Call, as_call, calibration_calls
from pytest_neuralpower.compress.plan import (
    Granularity,
    Plan,
    save_state,
    structure_hash,
    weights_hash,
    write_plan,
)
from pytest_neuralpower.compress.weights import Criterion, WeightPruner
from pytest_neuralpower.compress.width_prices import LayerPrices
from pytest_neuralpower.errors import BudgetError, CompressError, UnsupportedGraphError
from pytest_neuralpower.guard.budget import as_budget
from pytest_neuralpower.platform.catalog import load_platform
from pytest_neuralpower.platform.prediction import EXTRAPOLATED
from pytest_neuralpower.tracing import trace
from pytest_neuralpower.tracing.inputs import batch_size, input_tensors
from pytest_neuralpower.units import show, show_percent

if TYPE_CHECKING:
    from pytest_neuralpower.compress.weights import Order
    from pytest_neuralpower.estimators.features import FloatArray
    from pytest_neuralpower.guard.budget import Budget
    from pytest_neuralpower.layers import Layer
    from pytest_neuralpower.platform.prediction import Prediction
    from pytest_neuralpower.platform.protocol import Platform
    from pytest_neuralpower.units import Quantity

__all__ = [
    "PROGRESS",
    "ROWS_WANTED",
    "Finetune",
    "Guard",
    "Pruned",
    "Pruner",
    "Round",
    "prune_to_budget",
    "run_rounds",
    "statements",
    "warnings_of",
]


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


# -- What pruning to a budget gives back.


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


# -- What is said with every result of pruning: how far its figures can be trusted.

#: Rows of sampled feature maps per weight of an output, below which least squares may overfit.
ROWS_WANTED = 5


def statements(after: Prediction, platform: Platform, quantity: Quantity) -> tuple[str, ...]:
    """Sentences that hold for the figures of ``after``."""
    said = ["Energy and runtime are predicted, not measured."]
    interval = after.energy_interval_mj if quantity == "energy" else after.runtime_interval_ms
    if interval is None:
        said.append(f"Platform {platform.name} has no interval to say how sure it is.")
    else:
        said.append(
            f"{interval.coverage:.0%} interval after pruning: {show(quantity, interval.low)} to "
            f"{show(quantity, interval.high)}."
        )
    return (
        *said,
        f"It holds for a batch of {after.batch} and the inputs' shapes and layout given.",
        _energy_of(platform, after),
    )


def _energy_of(platform: Platform, after: Prediction) -> str:
    if platform.exploits_zeros:
        return (
            f"Energy is of an {platform.device} ({after.energy_basis}); zeros of maps are counted "
            "on the calibration data, before and after."
        )
    return f"Energy is {after.energy_basis}, on platform {platform.name}."


def warnings_of(
    after: Prediction,
    *,
    rows_per_unknown: Mapping[str, float],
    left_out: Mapping[str, str],
    scored: bool,
    guarded: bool,
) -> tuple[str, ...]:
    """Sentences about what may be wrong.

    Parameters
    ----------
    rows_per_unknown
        Of the layers solved by least squares.
    left_out
        Layers or channel groups that are not pruned as asked, with the reason.
    scored, guarded
        Whether there is a ``score_fn``, and a ``max_drop``.
    """
    found = []
    if not scored:
        found.append("Accuracy is unchecked: give score_fn, and max_drop to guard it.")
    elif not guarded:
        found.append("Accuracy is not guarded: give max_drop.")
    few = {path: rows for path, rows in rows_per_unknown.items() if rows < ROWS_WANTED}
    if few:
        path = min(few, key=few.__getitem__)
        layers = "1 layer has" if len(few) == 1 else f"{len(few)} layers have"
        found.append(
            f"{layers} fewer than {ROWS_WANTED} sampled rows per unknown "
            f"({path}: {few[path]:.1f}): give more calibration data."
        )
    share = after.share(EXTRAPOLATED)
    if share:
        found.append(
            f"{show_percent(share)} of the call after pruning is extrapolated: widths or sizes "
            "that the platform was not calibrated on."
        )
    if left_out:
        named = "; ".join(f"{path} ({why})" for path, why in left_out.items())
        found.append(f"Not pruned as asked: {named}.")
    return tuple(found)


def input_texts(call: Call) -> tuple[str, ...]:
    """Shapes of the call's tensors as ``--input`` takes them."""
    named = [*((None, value) for value in call.args), *call.kwargs.items()]
    return tuple(
        f"{name}={_shape(value)}" if name else _shape(value)
        for name, value in named
        if isinstance(value, torch.Tensor)
    )


def _shape(tensor: torch.Tensor) -> str:
    text = ",".join(map(str, tensor.shape))
    dtype = str(tensor.dtype).removeprefix("torch.")
    return text if dtype == "float32" else f"{text}:{dtype}"


# -- ``prune_to_budget``: remove what a call can do without, until it keeps its budget.

_CHOICES = {
    "granularity": ("channel", "weight"),
    "criterion": ("output_error", "magnitude"),
    "order": ("energy", "greedy"),
    "reconstruct": ("least_squares", None),
}


def prune_to_budget(
    model: nn.Module,
    inputs: Any,
    platform: Platform | str | Path,
    budget: Budget | str,
    *,
    calibration: Any,
    score_fn: Callable[[nn.Module], float] | None = None,
    max_drop: float | None = None,
    granularity: Granularity = "channel",
    criterion: Criterion = "output_error",
    order: Order = "energy",
    widths: Literal["plateau"] | int = "plateau",
    reconstruct: Literal["least_squares"] | None = "least_squares",
    finetune: Finetune | None = None,
    rounds: int = 1,
    seed: int = 0,
    inplace: bool = False,
) -> Pruned:
    """Prune a model until one call keeps its budget on a platform (Yang, Chen, Sze, CVPR 2017).

    In each round layers are pruned from the dearest on, those that stay are solved for by least
    squares so that each layer gives what it gave (no label is needed), ``finetune`` trains the
    whole if it is given, and the round is undone if ``score_fn`` fell too far.

    Parameters
    ----------
    model
        With its trained weights. A copy of it is pruned unless ``inplace``.
    inputs
        The call that the budget is for: a tensor, a tuple of positional or a dict of named inputs.
    platform
        A loaded platform, a name or a path.
    budget
        Limit of energy or runtime: ``"12 mJ"``, ``"3.5 ms"``, or a ``Budget``.
    calibration
        Inputs whose feature maps are sampled: a tensor, or an iterable of batches such as a
        ``DataLoader``; labels are ignored.
    score_fn, max_drop
        Score of a model, higher is better, and how far it may fall from what it is first.
    granularity
        ``channel`` removes channels for real, on any platform. ``weight`` makes single weights
        zero, on a platform whose energy falls with zeros.
    criterion
        What stays: what the layer's output misses most, or what is largest.
    order
        ``energy``: layers from the dearest on, each as far as one common error of their outputs
        allows. ``greedy``: always the step that harms least for what it saves.
    widths
        With channels: ``plateau`` steps between the edges of the platform's plateaus; a number
        steps between its multiples.
    reconstruct
        ``least_squares``, or None to leave what stays as it is.
    finetune
        Called as ``finetune(model, masks, round)``: trains the model in place; weights under a mask
        are made zero again afterwards.
    rounds
        Rounds in which the cost falls to the budget, by one factor each.
    seed
        Of the sampling; the same inputs give the same bits.
    inplace
        Prune ``model`` itself.

    Raises
    ------
    CompressError, BudgetError
        What was asked for cannot be; one line says what can.
    UnsupportedGraphError
        The channels of this model cannot be told apart; the message names the operation.
    """
    options = {
        "granularity": granularity, "criterion": criterion, "order": order,
        "reconstruct": reconstruct,
    }  # fmt: skip
    _check(options, widths, rounds, max_drop, score_fn)
    loaded = load_platform(platform) if isinstance(platform, str | Path) else platform
    _check_values(model)
    call = as_call(inputs)
    limit = _of_the_call(as_budget(budget), call)
    subject: dict[str, Any] = {
        "model": type(model).__name__,
        "structure": structure_hash(model),
        "weights": weights_hash(model.state_dict()),
        "inputs": input_texts(call),
    }
    pruner = _pruner(
        model if inplace else copy.deepcopy(model), call, calibration_calls(calibration, call),
        loaded, limit, granularity=granularity, widths=widths,
        criterion=criterion, order=order, refit=reconstruct is not None, seed=seed,
    )  # fmt: skip
    before = _predicted(pruner, loaded)
    guard = Guard(score_fn, max_drop)
    history, first = run_rounds(pruner, limit.limit, rounds=rounds, guard=guard, finetune=finetune)
    after = _predicted(pruner, loaded)
    met = _priced(after, limit) <= limit.limit * (1 + 1e-9)
    if inplace and pruner.model is not model:  # a round was undone
        model.__dict__.update(pruner.model.__dict__)
    kept = [each for each in history if each.kept]
    plan = Plan(
        **subject,
        pruned_weights=weights_hash(pruner.model.state_dict()),
        platform=loaded.name,
        platform_sha256=loaded.sha256,
        granularity=granularity,
        quantity=limit.quantity,
        limit=limit.limit,
        batch=before.batch,
        before=_priced(before, limit),
        after=_priced(after, limit),
        met=met,
        layers=kept[-1].layers if kept else {},
        masks=pruner.masks(),
        channels=pruner.kept if isinstance(pruner, ChannelPruner) else {},
    )
    return Pruned(
        model=model if inplace else pruner.model,
        plan=plan,
        budget=limit,
        before=before,
        after=after,
        met=met,
        floor=None if met else min(pruner.least(), _priced(after, limit)),
        history=history,
        first_score=first,
        last_score=kept[-1].score if kept else first,
        statements=statements(after, loaded, limit.quantity),
        warnings=warnings_of(
            after,
            rows_per_unknown=pruner.rows_per_unknown,
            left_out=pruner.left_out,
            scored=score_fn is not None,
            guarded=max_drop is not None,
        ),
    )


def _of_the_call(limit: Budget, call: Call) -> Budget:
    """The limit of the whole call: rounds aim at what the call costs."""
    if limit.per == "call":
        return limit
    samples = limit.samples or batch_size(input_tensors((call.args, dict(call.kwargs))))
    return limit._replace(limit=limit.limit * samples, per="call", samples=None)


def _pruner(
    work: nn.Module,
    call: Call,
    calls: Sequence[Call],
    platform: Platform,
    limit: Budget,
    *,
    granularity: Granularity,
    widths: Literal["plateau"] | int,
    **options: Any,
) -> WeightPruner | ChannelPruner:
    """What prunes ``work`` in place; refuses a limit on what the platform does not know."""
    work.eval()
    reference = copy.deepcopy(work)
    if granularity == "weight":
        _check_exploits_zeros(platform)
        traced = trace(work, *call.args, **call.kwargs)
        _priced(platform.predict(traced), limit)
        return WeightPruner(work, reference, traced, platform, calls, **options)
    _priced(platform.predict(trace(work, *call.args, **call.kwargs)), limit)
    cost = _layers_cost(platform, limit)
    return ChannelPruner(work, reference, call, cost, calls, widths=widths, **options)


def _predicted(pruner: WeightPruner | ChannelPruner, platform: Platform) -> Prediction:
    """The call as the model is now."""
    if isinstance(pruner, WeightPruner):
        return pruner.prediction()
    return platform.predict(pruner.groups.trace)


def _check(
    options: dict[str, Any],
    widths: Any,
    rounds: int,
    max_drop: float | None,
    score_fn: Any,
) -> None:
    """Refuse what cannot be, before anything is computed."""
    for name, value in options.items():
        if value not in _CHOICES[name]:
            raise CompressError(f"{name}={value!r}: give {' or '.join(map(repr, _CHOICES[name]))}")
    if widths != "plateau" and (type(widths) is not int or widths < 1):
        raise CompressError(f"widths={widths!r}: give 'plateau' or a whole number from 1")
    if type(rounds) is not int or rounds < 1:
        raise CompressError(f"rounds={rounds!r}: give a whole number from 1")
    if max_drop is not None and score_fn is None:
        raise CompressError(f"max_drop={max_drop!r} needs a score_fn to measure it with")
    if max_drop is not None and not max_drop >= 0:
        raise CompressError(f"max_drop={max_drop!r}: give a number from 0, in units of score_fn")


def _check_values(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise CompressError(f"model is a {type(model).__name__}: give a torch.nn.Module")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise CompressError(
                f"{name} is on the meta device: pruning needs the trained weights; load them first"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CompressError(f"{name} has values that are not finite: train the model first")
    for path, module in model.named_modules():
        if is_parametrized(module):
            raise UnsupportedGraphError(
                f"{path or 'the model'} ({type(module).__name__}) has a parametrization: its "
                "weights follow from others; call remove_parametrizations of torch.nn.utils first"
            )


def _check_exploits_zeros(platform: Platform) -> None:
    if not platform.exploits_zeros:
        raise CompressError(
            f"granularity='weight' saves nothing on {platform.name}: its dense kernels compute "
            "zeros too, only an Eyeriss-like array skips them; use granularity='channel'"
        )


def _priced(prediction: Prediction, limit: Budget) -> float:
    """The limited quantity of the call (mJ or ms)."""
    runtime = limit.quantity == "runtime"
    value = prediction.runtime_ms if runtime else prediction.energy_mj
    if value is None:
        other, example = ("energy", "12mJ") if runtime else ("runtime", "3ms")
        raise BudgetError(
            f"{limit.quantity} budget: platform {prediction.platform!r} knows {other} alone; use "
            f"--budget {example} (in Python {example!r}) or a platform with {limit.quantity}"
        )
    return value


def _layers_cost(platform: Platform, limit: Budget) -> LayersCost:
    prices = LayerPrices(platform)

    def cost(sets: Sequence[Sequence[Layer]]) -> FloatArray:
        return cast("FloatArray", prices.of(sets).of(limit.quantity))

    return cost
