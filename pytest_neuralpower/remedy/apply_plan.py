"""``apply_plan``: remove from a fresh model what a plan removed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pytest_neuralpower.errors import RemedyError
from pytest_neuralpower.remedy.calls import as_call
from pytest_neuralpower.remedy.fingerprint import structure_hash, weights_hash
from pytest_neuralpower.remedy.plan import Plan, read_plan
from pytest_neuralpower.remedy.tensor_files import load_state

__all__ = ["apply_plan"]


def apply_plan(
    model: nn.Module,
    plan: Plan | str | Path,
    *,
    inputs: Any = None,
    weights: Mapping[str, torch.Tensor] | str | Path | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Remove from ``model`` what the plan removed.

    Parameters
    ----------
    model
        Of the structure that the plan was made for.
    inputs
        The call; needed where channels are removed, and taken as zeros of the plan's shapes where
        it is left out.
    weights
        The pruned weights (a state dict or its file): with them the model gives the same bits as
        the one that was pruned. Without them the model keeps its own, as far as they are left.
    inplace
        Change ``model`` itself, not a copy.

    Raises
    ------
    RemedyError
        The plan is of another model, or the weights are not those that came out of it.
    """
    found = plan if isinstance(plan, Plan) else read_plan(plan)
    if structure_hash(model) != found.structure:
        raise RemedyError(
            f"the plan was made for another {found.model}: modules or shapes of this "
            f"{type(model).__name__} differ; build the model as it was, or prune again"
        )
    work = model if inplace else copy.deepcopy(model)
    if found.granularity == "channel":
        _remove_channels(work, found, inputs)
    else:
        parameters = dict(work.named_parameters())
        with torch.no_grad():
            for name, mask in found.masks.items():
                values = parameters[name]
                values.copy_(torch.where(mask.to(values.device), values, 0.0))
    if weights is not None:
        state = weights if isinstance(weights, Mapping) else load_state(weights)
        if weights_hash(state) != found.pruned_weights:
            raise RemedyError(
                "the weights are not those that this plan came with; give the file that "
                "`neuralpower prune` wrote beside it"
            )
        # A model on the meta device, as `neuralpower.build` makes it, has no values to copy into.
        work.load_state_dict(state, assign=any(each.is_meta for each in work.parameters()))
    return work


def _remove_channels(model: nn.Module, plan: Plan, inputs: Any) -> None:
    from pytest_neuralpower.model_source import parse_inputs  # noqa: PLC0415
    from pytest_neuralpower.remedy.find_groups import find_channel_groups  # noqa: PLC0415
    from pytest_neuralpower.remedy.narrowing import remove_units  # noqa: PLC0415

    if inputs is None:
        args, kwargs = parse_inputs(plan.inputs)
        call = as_call(args)._replace(kwargs=kwargs)
    else:
        call = as_call(inputs)
    was = {module: module.training for module in model.modules()}
    groups = find_channel_groups(model.eval(), call.args, call.kwargs)
    for module, training in was.items():
        module.training = training
    removed = []
    for name, units in plan.channels.items():
        group = groups[name]
        gone = sorted(set(range(group.units)) - set(units))
        if gone:
            removed.append((group, gone))
    remove_units(model, removed)
