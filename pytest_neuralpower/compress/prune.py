"""``prune_to_budget``: remove what a call can do without, until it keeps its budget."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args

import msgspec
import torch
from tabulate import tabulate
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from pytest_neuralpower.compress.channel_pruner import ChannelPruner
from pytest_neuralpower.compress.plan import (
    VERSION,
    Granularity,
    Mask,
    Plan,
    save_state,
    structure_hash,
    weights_hash,
    write_plan,
)
from pytest_neuralpower.compress.pruner import Criterion, Order, Pruner
from pytest_neuralpower.compress.weight_pruner import WeightPruner
from pytest_neuralpower.compress.width_prices import LayerPrices
from pytest_neuralpower.errors import BudgetError, CompressError, UnsupportedGraphError
from pytest_neuralpower.guard.budget import as_budget
from pytest_neuralpower.model_source import Call, as_call, input_texts
from pytest_neuralpower.platform.catalog import as_platform
from pytest_neuralpower.platform.prediction import EXTRAPOLATED
from pytest_neuralpower.text import printable
from pytest_neuralpower.tracing import trace
from pytest_neuralpower.tracing.inputs import batch_size, token_count
from pytest_neuralpower.units import show, show_in, show_percent

if TYPE_CHECKING:
    from pytest_neuralpower.guard.budget import Budget
    from pytest_neuralpower.platform.prediction import Prediction
    from pytest_neuralpower.platform.protocol import Platform
    from pytest_neuralpower.units import Quantity

#: Called after each round with the model to train in place, the masks of its weights by parameter
#: name (empty with channels, which are gone) and the round's number from 0.
Finetune = Callable[["nn.Module", Mapping[str, "torch.Tensor"], int], Any]

#: Smaller steps that are tried after a round has lost too much.
_RETRIES: Final = 3
#: Less than this share of the cost saved in a round is none.
_PROGRESS: Final = 1e-3


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
    rounds: int = 1,
    score_fn: Callable[[nn.Module], float] | None = None,
    max_drop: float | None = None,
    finetune: Finetune | None = None,
) -> tuple[tuple[Round, ...], float | None]:
    """Prune until one call costs at most ``limit``; the targets fall by one factor a round.

    A round after which the score has fallen by more than ``max_drop`` from what it was first is
    undone, and half of its step (as a factor) is tried instead.

    Returns
    -------
    rounds, first score
    """

    def scored() -> float | None:
        return None if score_fn is None else float(score_fn(pruner.model))

    first = scored()
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
        score = scored()
        stays = first is None or score is None or max_drop is None or first - score <= max_drop
        history.append(Round(len(history), target, reached, score, stays, layers))
        if stays:
            left = reached < now * (1 - _PROGRESS)
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


# -- The result.


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

    def text(self) -> str:
        """What came out, round by round and layer by layer, and what to know about it."""
        plan, quantity = self.plan, self.budget.quantity
        limit = show_in(quantity, self.budget.limit, self.budget.unit)
        lines = [
            f"{plan.model} on {plan.platform}: {show(quantity, plan.before)} -> "
            f"{show(quantity, plan.after)} ({plan.before / plan.after:.2f} times less), budget "
            f"{limit}: {'met' if self.met else 'NOT met'}"
        ]
        if not self.met and self.floor is not None:
            lines.append(self._why_not(self.floor))
        if self.first_score is not None and self.last_score is not None:
            lines.append(f"score {self.first_score:.4g} -> {self.last_score:.4g}")
        lines += ["", self._history_table(), ""]
        rows = [(path, show_percent(share)) for path, share in plan.layers.items()]
        if rows:
            lines += [tabulate(rows, ("", f"{plan.granularity}s left"), tablefmt="plain"), ""]
        lines += [f"- {sentence}" for sentence in self.statements]
        return "\n".join([*lines, *(f"! {sentence}" for sentence in self.warnings)])

    def _why_not(self, floor: float) -> str:
        """What stopped it short of the budget."""
        shown = show(self.budget.quantity, floor)
        if floor > self.budget.limit:
            return (
                f"unreachable: the floor is {shown}, whatever {self.plan.granularity}s are removed "
                "(those that cost nothing stay); raise the budget or change the network"
            )
        return (
            f"stopped by max_drop at {show(self.budget.quantity, self.plan.after)} (the floor "
            f"without it is {shown}): fine-tune, take more rounds, or raise the budget"
        )

    def _history_table(self) -> str:
        rows, now = [], self.plan.before
        for done in self.history:
            saves = done.reached < now * (1 - _PROGRESS)
            rows.append(
                (
                    done.number,
                    show(self.budget.quantity, done.target),
                    show(self.budget.quantity, done.reached),
                    None if done.score is None else f"{done.score:.4g}",
                    "undone" if not done.kept else "kept" if saves else "saves nothing more",
                )
            )
            now = done.reached if done.kept else now
        return tabulate(rows, ("round", "target", "reached", "score", ""), tablefmt="plain")

    def to_json(self) -> dict[str, object]:
        """The result in JSON types, without masks and weights."""
        names = (
            "met", "quantity", "limit", "before", "after", "floor", "first_score", "last_score",
            "platform", "platform_sha256", "granularity", "batch", "layers", "history",
            "statements", "warnings",
        )  # fmt: skip
        plan = self.plan
        values = {name: getattr(plan if hasattr(plan, name) else self, name) for name in names}
        plain: dict[str, object] = msgspec.to_builtins(values)
        return plain


# -- Caveats of a result.

#: Rows of sampled feature maps per weight of an output, below which least squares may overfit.
_ROWS_WANTED: Final = 5


def _statements(after: Prediction, platform: Platform, quantity: Quantity) -> Iterator[str]:
    """Sentences that hold for the figures of ``after``."""
    yield "Energy and runtime are predicted, not measured."
    interval = after.energy_interval_mj if quantity == "energy" else after.runtime_interval_ms
    if interval is None:
        yield f"Platform {platform.name} has no interval to say how sure it is."
    else:
        low, high = show(quantity, interval.low), show(quantity, interval.high)
        yield f"{interval.coverage:.0%} interval after pruning: {low} to {high}."
    yield f"It holds for a batch of {after.batch} and the inputs' shapes and layout given."
    if platform.exploits_zeros:
        yield (
            f"Energy is of an {platform.device} ({after.energy_basis}); zeros of maps are counted "
            "on the calibration data, before and after."
        )
    else:
        yield f"Energy is {after.energy_basis}, on platform {platform.name}."


def _warnings(
    after: Prediction, pruner: Pruner, *, scored: bool, max_drop: float | None
) -> Iterator[str]:
    """Sentences about what may be wrong."""
    if not scored:
        yield "Accuracy is unchecked: give score_fn, and max_drop to guard it."
    elif max_drop is None:
        yield "Accuracy is not guarded: give max_drop."
    few = {path: rows for path, rows in pruner.rows_per_unknown.items() if rows < _ROWS_WANTED}
    if few:
        path = min(few, key=few.__getitem__)
        layers = "1 layer has" if len(few) == 1 else f"{len(few)} layers have"
        yield (
            f"{layers} fewer than {_ROWS_WANTED} sampled rows per unknown "
            f"({path}: {few[path]:.1f}): give more calibration data."
        )
    if share := after.share(EXTRAPOLATED):
        yield (
            f"{show_percent(share)} of the call after pruning is extrapolated: widths or sizes "
            "that the platform was not calibrated on."
        )
    if pruner.left_out:
        named = "; ".join(f"{path} ({why})" for path, why in pruner.left_out.items())
        yield f"Not pruned as asked: {named}."


# -- ``prune_to_budget``.


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

    In each round layers are pruned from the most expensive on, the weights that stay are solved for
    by least squares so that each layer's output stays as it was (no label is needed), ``finetune``
    trains the model if it is given, and the round is undone if ``score_fn`` fell too far.

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
        ``energy``: layers from the most expensive on, each as far as one common error of their
        outputs allows. ``greedy``: always the step that harms least for what it saves.
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
    _check_options(
        granularity=granularity,
        criterion=criterion,
        order=order,
        reconstruct=reconstruct,
        widths=widths,
        rounds=rounds,
        max_drop=max_drop,
        scored=score_fn is not None,
    )
    loaded = as_platform(platform)
    _check_values(model)
    call = as_call(inputs)
    limit = _of_the_call(as_budget(budget), call)
    _check_platform(loaded, limit.quantity, granularity)
    structure, weights = structure_hash(model), weights_hash(model.state_dict())
    pruner, predicted = _pruner(
        granularity,
        (model if inplace else copy.deepcopy(model)).eval(),
        call,
        loaded,
        limit.quantity,
        widths=widths,
        calls=calibration_calls(calibration, call),
        criterion=criterion,
        order=order,
        refit=reconstruct is not None,
        seed=seed,
    )
    before = predicted()
    history, first = run_rounds(
        pruner, limit.limit, rounds=rounds, score_fn=score_fn, max_drop=max_drop, finetune=finetune
    )
    after = predicted()
    reached = _limited(after, limit)
    met = reached <= limit.limit * (1 + 1e-9)
    if inplace and pruner.model is not model:  # a round was undone
        model.__dict__.update(pruner.model.__dict__)
    kept = [done for done in history if done.kept]
    plan = Plan(
        version=VERSION,
        model=printable(type(model).__name__),
        structure=structure,
        weights=weights,
        pruned_weights=weights_hash(pruner.model.state_dict()),
        platform=loaded.name,
        platform_sha256=loaded.sha256,
        granularity=granularity,
        quantity="runtime" if limit.quantity == "runtime" else "energy",
        limit=limit.limit,
        batch=before.batch,
        inputs=tuple(input_texts(call)),
        before=_limited(before, limit),
        after=reached,
        met=met,
        layers=dict(kept[-1].layers) if kept else {},
        channels=pruner.kept if isinstance(pruner, ChannelPruner) else {},
        masks={name: Mask.of(mask) for name, mask in pruner.masks().items()},
    )
    return Pruned(
        model=model if inplace else pruner.model,
        plan=plan,
        budget=limit,
        before=before,
        after=after,
        met=met,
        floor=None if met else min(pruner.least(), reached),
        history=history,
        first_score=first,
        last_score=kept[-1].score if kept else first,
        statements=tuple(_statements(after, loaded, limit.quantity)),
        warnings=tuple(_warnings(after, pruner, scored=first is not None, max_drop=max_drop)),
    )


def _pruner(
    granularity: Granularity,
    model: nn.Module,
    call: Call,
    platform: Platform,
    quantity: Quantity,
    *,
    widths: Literal["plateau"] | int,
    **options: Any,
) -> tuple[WeightPruner | ChannelPruner, Callable[[], Prediction]]:
    """What prunes the model in place, and what predicts the call as the model is by then."""
    options["reference"] = copy.deepcopy(model)
    if granularity == "weight":
        traced = trace(model, *call.args, **call.kwargs)
        by_weights = WeightPruner(model=model, trace=traced, platform=platform, **options)
        return by_weights, by_weights.prediction
    prices = LayerPrices(platform)
    by_channels = ChannelPruner(
        model=model,
        call=call,
        widths=widths,
        layers_cost=lambda sets: prices.of(sets).of(quantity),
        **options,
    )
    return by_channels, lambda: platform.predict(by_channels.groups.trace)


def _check_options(
    *, widths: Any, rounds: Any, max_drop: float | None, scored: bool, **choices: Any
) -> None:
    """Raise a CompressError that says what can be given instead."""
    allowed_values = {
        "granularity": get_args(Granularity),
        "criterion": get_args(Criterion),
        "order": get_args(Order),
        "reconstruct": ("least_squares", None),
    }
    for name, allowed in allowed_values.items():
        value = choices[name]
        if value not in allowed:
            raise CompressError(f"{name}={value!r}: give {' or '.join(map(repr, allowed))}")
    if widths != "plateau" and (type(widths) is not int or widths < 1):
        raise CompressError(f"widths={widths!r}: give 'plateau' or a whole number from 1")
    if type(rounds) is not int or rounds < 1:
        raise CompressError(f"rounds={rounds!r}: give a whole number from 1")
    if max_drop is not None and not scored:
        raise CompressError(f"max_drop={max_drop!r} needs a score_fn to measure it with")
    if max_drop is not None and not max_drop >= 0:
        raise CompressError(f"max_drop={max_drop!r}: give a number from 0, in units of score_fn")


def calibration_calls(calibration: Any, example: Call) -> tuple[Call, ...]:
    """The calls whose feature maps are sampled; labels are dropped.

    Parameters
    ----------
    calibration
        One tensor, or an iterable of batches: tensors, tuples of which the first as many as
        ``example`` has positional arguments are used (a ``DataLoader``'s labels come after them),
        or mappings.

    Raises
    ------
    CompressError
        There is no batch, or a batch is no call.
    """
    if isinstance(calibration, torch.Tensor):
        return (Call((calibration,), {}),)
    if not isinstance(calibration, Iterable) or isinstance(calibration, str | Mapping):
        raise CompressError(
            f"calibration is a {type(calibration).__name__}: give a tensor or an iterable of "
            "batches, such as a DataLoader; labels are not needed"
        )
    calls = []
    for batch in calibration:
        call = as_call(batch)
        if call.args and len(call.args) < len(example.args):
            raise CompressError(
                f"calibration: a batch has {len(call.args)} values, the model's call has "
                f"{len(example.args)}; give every input of the model"
            )
        calls.append(Call(call.args[: len(example.args)], call.kwargs))
    if not calls:
        raise CompressError("calibration has no batch: give some inputs; labels are not needed")
    return tuple(calls)


def _of_the_call(limit: Budget, call: Call) -> Budget:
    """The limit of the whole call: rounds aim at what the call costs."""
    kwargs = dict(call.kwargs)
    parts = limit.parts(batch_size(call.args, kwargs), token_count(call.args, kwargs))
    if not parts:
        what = f"{limit.per}s"
        raise CompressError(f"the inputs do not tell how many {what} a call has: say {what}=")
    return limit._replace(limit=limit.limit * parts, per="call", samples=None, tokens=None)


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


def _check_platform(platform: Platform, quantity: Quantity, granularity: Granularity) -> None:
    if granularity == "weight" and not platform.exploits_zeros:
        raise CompressError(
            f"granularity='weight' saves nothing on {platform.name}: its dense kernels compute "
            "zeros too, only an Eyeriss-like array skips them; use granularity='channel'"
        )
    if not platform.knows(quantity):
        runtime = quantity == "runtime"
        other, example = ("energy", "12mJ") if runtime else ("runtime", "3ms")
        raise BudgetError(
            f"{quantity} budget: platform {platform.name!r} knows {other} alone; use "
            f"--budget {example} (in Python {example!r}) or a platform with {quantity}"
        )


def _limited(prediction: Prediction, limit: Budget) -> float:
    """The limited quantity of the call (mJ or ms), which the platform knows."""
    runtime = limit.quantity == "runtime"
    return cast("float", prediction.runtime_ms if runtime else prediction.energy_mj)
