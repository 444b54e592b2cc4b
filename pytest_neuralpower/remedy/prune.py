"""``prune_to_budget``: remove what a call can do without, until it keeps its budget."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from pytest_neuralpower.errors import BudgetError, RemedyError, UnsupportedGraphError
from pytest_neuralpower.eyeriss.platform import EyerissPlatform
from pytest_neuralpower.platform import AnyPlatform, load_platform
from pytest_neuralpower.remedy.calls import Call, as_call, calibration_calls
from pytest_neuralpower.remedy.channel_pruner import ChannelPruner, LayersCost
from pytest_neuralpower.remedy.fingerprint import structure_hash, weights_hash
from pytest_neuralpower.remedy.limits import as_budget
from pytest_neuralpower.remedy.plan import Granularity, Plan
from pytest_neuralpower.remedy.prices import LayerPrices
from pytest_neuralpower.remedy.result import Pruned
from pytest_neuralpower.remedy.rounds import Finetune, Guard, run_rounds
from pytest_neuralpower.remedy.statements import input_texts, statements, warnings_of
from pytest_neuralpower.remedy.weights import Criterion, WeightPruner
from pytest_neuralpower.tracing import trace
from pytest_neuralpower.tracing.inputs import batch_size, input_tensors

if TYPE_CHECKING:
    from pytest_neuralpower.budget import Budget
    from pytest_neuralpower.features import FloatArray
    from pytest_neuralpower.layers import Layer
    from pytest_neuralpower.prediction import Prediction
    from pytest_neuralpower.remedy.planner import Order

__all__ = ["prune_to_budget"]

_CHOICES = {
    "granularity": ("channel", "weight"),
    "criterion": ("output_error", "magnitude"),
    "order": ("energy", "greedy"),
    "reconstruct": ("least_squares", None),
}


def prune_to_budget(
    model: nn.Module,
    inputs: Any,
    platform: AnyPlatform | str | Path,
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
    RemedyError, BudgetError
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
    platform: AnyPlatform,
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
        array = _sparse(platform)
        traced = trace(work, *call.args, **call.kwargs)
        _priced(array.predict(traced), limit)
        return WeightPruner(work, reference, traced, array, calls, **options)
    _priced(platform.predict(trace(work, *call.args, **call.kwargs)), limit)
    cost = _layers_cost(platform, limit)
    return ChannelPruner(work, reference, call, cost, calls, widths=widths, **options)


def _predicted(pruner: WeightPruner | ChannelPruner, platform: AnyPlatform) -> Prediction:
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
            raise RemedyError(f"{name}={value!r}: give {' or '.join(map(repr, _CHOICES[name]))}")
    if widths != "plateau" and (type(widths) is not int or widths < 1):
        raise RemedyError(f"widths={widths!r}: give 'plateau' or a whole number from 1")
    if type(rounds) is not int or rounds < 1:
        raise RemedyError(f"rounds={rounds!r}: give a whole number from 1")
    if max_drop is not None and score_fn is None:
        raise RemedyError(f"max_drop={max_drop!r} needs a score_fn to measure it with")
    if max_drop is not None and not max_drop >= 0:
        raise RemedyError(f"max_drop={max_drop!r}: give a number from 0, in units of score_fn")


def _check_values(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise RemedyError(f"model is a {type(model).__name__}: give a torch.nn.Module")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise RemedyError(
                f"{name} is on the meta device: pruning needs the trained weights; load them first"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise RemedyError(f"{name} has values that are not finite: train the model first")
    for path, module in model.named_modules():
        if is_parametrized(module):
            raise UnsupportedGraphError(
                f"{path or 'the model'} ({type(module).__name__}) has a parametrization: its "
                "weights follow from others; call remove_parametrizations of torch.nn.utils first"
            )


def _sparse(platform: AnyPlatform) -> EyerissPlatform:
    if isinstance(platform, EyerissPlatform):
        return platform
    raise RemedyError(
        f"granularity='weight' saves nothing on {platform.name}: its dense kernels compute zeros "
        "too, only an Eyeriss-like array skips them; use granularity='channel'"
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


def _layers_cost(platform: AnyPlatform, limit: Budget) -> LayersCost:
    prices = LayerPrices(platform)

    def cost(sets: Sequence[Sequence[Layer]]) -> FloatArray:
        return cast("FloatArray", prices.of(sets).of(limit.quantity))

    return cost
