"""Find a model's channel groups, and check each: narrow a copy by one unit and trace it again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_neuralpower.errors import TraceError, UnsupportedGraphError
from pytest_neuralpower.remedy.channels import ChannelGroup, ChannelGroups, Gains
from pytest_neuralpower.remedy.coupling import groups_of
from pytest_neuralpower.remedy.effort import Effort
from pytest_neuralpower.remedy.layer_sizes import form, read_sizes
from pytest_neuralpower.remedy.narrowed_copy import NarrowedCopy
from pytest_neuralpower.remedy.torch_pruning import unknown_modules

if TYPE_CHECKING:
    from torch import nn

    from pytest_neuralpower.layers import Layer
    from pytest_neuralpower.remedy.narrowed_copy import Seen

__all__ = ["NOT_CHECKED", "OUTPUT", "find_channel_groups"]

#: Why a group is frozen that no effort was left for.
NOT_CHECKED = "it was not checked"

#: Why a group is frozen that nobody would narrow.
OUTPUT = "it is the model's output"


def find_channel_groups(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    effort: Effort | None = None,
) -> ChannelGroups:
    """The channel groups of ``model(*args, **kwargs)``.

    Works on a copy, without values where the model's code needs none: the model is not changed.

    Parameters
    ----------
    model
        Any module; it may be on the meta device.
    args, kwargs
        Inputs of one call, as :func:`~pytest_neuralpower.tracing.tracer.trace` takes them.
    effort
        What may be spent, without limit if None: groups that are not checked then are frozen.

    Raises
    ------
    MissingExtraError
        torch-pruning is not installed.
    UnsupportedGraphError
        The graph cannot be followed; the message names the operation.
    TraceError
        The model cannot be traced with these inputs.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    effort = effort or Effort(math.inf)
    try:
        groups = _find(NarrowedCopy(model, args, kwargs or {}), effort)
    except (TraceError, UnsupportedGraphError):
        if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
            raise
        groups = _find(NarrowedCopy(model, args, kwargs or {}, with_values=True), effort)
    if not groups.changeable:
        _refuse_unknown(model)
    return groups


def _find(copy: NarrowedCopy, effort: Effort) -> ChannelGroups:
    present = copy.look()
    order: dict[str, int] = {}
    for layer in present.trace:
        order.setdefault(layer.path, len(order))
    checked, gains, shape_gains = [], {}, {}
    for group in groups_of(copy.follow(), order):
        reason, found = group.frozen, None
        if not reason and not effort.is_left:
            reason = NOT_CHECKED
        elif not reason:
            effort.spend(len(present.trace))
            reason, found = _check(copy, present, group)
        checked.append(replace(group, frozen=reason))
        if found is not None:
            gains[group.name], shape_gains[group.name] = found
    groups = ChannelGroups(present.trace, tuple(checked), gains, present.shapes, shape_gains)
    return _without_products(copy, groups)


def _refuse_unknown(model: nn.Module) -> None:
    """Raise UnsupportedGraphError where modules that torch-pruning does not know are why no width
    may change."""
    for path, kind in unknown_modules(model).items():
        raise UnsupportedGraphError(
            f"no width of {type(model).__name__} can change: torch-pruning does not know {kind} "
            f"({path}); use torch.nn's own layers in its place, or change widths by hand"
        )


def _check(
    copy: NarrowedCopy, present: Seen, group: ChannelGroup
) -> tuple[str, tuple[Gains, Gains] | None]:
    """Why the width may not change, or what one more unit adds to layers and parameters."""
    if group.units < 2:
        return f"its {group.width} channels cannot be split", None
    try:
        seen = copy.without({group.name: [group.units - 1]}, [group])
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f"narrower, the model does not run: {lines[0]}", None
    if seen.outputs != present.outputs:
        return OUTPUT, None
    gains: Gains | None = _layer_gains(present.trace.layers, seen.trace.layers)
    if gains is None:
        return "narrower, the model runs other operations", None
    changed: Gains = {
        name: _minus(shape, seen.shapes[name])
        for name, shape in present.shapes.items()
        if shape != seen.shapes[name]
    }
    return "", (gains, changed)


def _layer_gains(before: Sequence[Layer], after: Sequence[Layer]) -> Gains | None:
    """What the wider layers' sizes have more; None where the layers are not the same ones."""
    if len(before) != len(after):
        return None
    gains: dict[int | str, tuple[int, ...]] = {}
    for place, (wide, narrow) in enumerate(zip(before, after, strict=True)):
        if wide != narrow:
            if form(wide) != form(narrow):
                return None
            gains[place] = _minus(read_sizes(wide), read_sizes(narrow))
    return gains


def _minus(before: Sequence[int], after: Sequence[int]) -> tuple[int, ...]:
    return tuple(old - new for old, new in zip(before, after, strict=True))


def _without_products(copy: NarrowedCopy, groups: ChannelGroups) -> ChannelGroups:
    """Freeze groups whose widths do not simply add up: narrow all by half and compare."""
    while groups.changeable:
        half = {group.name: max(group.units // 2, 1) for group in groups.changeable}
        removed = {g.name: list(range(half[g.name], g.units)) for g in groups.changeable}
        widths = {g.name: half[g.name] * g.step for g in groups.changeable}
        try:
            seen = copy.without(removed, groups.changeable)
        except Exception as error:
            raise UnsupportedGraphError(
                f"cannot change the widths of {groups.trace.model} together: {error}"
            ) from error
        expected = groups.with_widths(groups.trace.layers, widths)
        found = seen.trace.layers
        if len(found) != len(expected):
            raise UnsupportedGraphError(
                f"cannot change the widths of {groups.trace.model} together: narrower, it runs "
                f"{len(found)} operations instead of {len(expected)}"
            )
        wrong = {
            i for i, pair in enumerate(zip(expected, found, strict=True)) if pair[0] != pair[1]
        }
        if not wrong:
            return groups
        at_fault = {g.name for g in groups.changeable if wrong & set(groups.reached(g.name))}
        if not at_fault:
            layer = groups.trace.layers[min(wrong)]
            raise UnsupportedGraphError(
                f"cannot change the widths of {groups.trace.model} together: the sizes of "
                f"{layer.op} {layer.path or '(root)'} do not follow from its widths"
            )
        groups = replace(
            groups,
            groups=tuple(
                replace(g, frozen="its sizes do not grow evenly with its width")
                if g.name in at_fault
                else g
                for g in groups.groups
            ),
        )
    return groups
