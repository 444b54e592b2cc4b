"""Find a model's channel groups: narrow a copy by one unit of each and trace it again."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from torch import nn

from pytest_neuralpower.compress.channels import (
    ChannelGroup,
    ChannelGroups,
    Sizes,
    Slot,
    form,
    read_sizes,
)
from pytest_neuralpower.compress.torch_pruning import (
    WithoutKernels,
    first_line,
    follow,
    module_pruner,
    output_tensors,
    unknown_modules,
)
from pytest_neuralpower.compress.width_prices import LayerQuota
from pytest_neuralpower.errors import TraceError, UnsupportedGraphError
from pytest_neuralpower.tracing import trace
from pytest_neuralpower.tracing.inputs import map_inputs, without_data
from pytest_neuralpower.tracing.torch_private import BUFFERS, ORIGINAL, PARAMETERS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.compress.torch_pruning import Axis, Coupling
    from pytest_neuralpower.layers import Layer, Trace


def _copy_without_values(model: nn.Module) -> nn.Module:
    """A copy on the meta device: all of the model but its weights' values.

    Integer buffers keep their values: they are indices, which decide what the model computes.
    """
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if not tensor.is_floating_point() and not tensor.is_meta:
            continue
        empty = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
        )  # empty_like is a hundred times slower there
        memo[id(tensor)] = nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, memo)


@contextmanager
def _kept_as_they_are(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Whatever happens inside to these modules' attributes and parameters is undone."""
    kept = []
    for module in modules:
        state = dict(module.__dict__)
        for name in (PARAMETERS, BUFFERS):
            state[name] = dict(state[name])
        kept.append((module, state))
    try:
        yield
    finally:
        for module, state in kept:
            module.__dict__.clear()
            module.__dict__.update(state)


# -- Removing channels from a model's modules.


def remove_units(model: nn.Module, removed: Iterable[tuple[ChannelGroup, Sequence[int]]]) -> None:
    """Remove units of channel groups from a model, in place.

    Parameters
    ----------
    model
        With the modules' names and shapes that the groups were found for.
    removed
        Each group with the units to remove, all counted before anything is removed.
    """
    channels: dict[tuple[str, str, str, int], set[int]] = {}
    for group, units in removed:
        for slot in group.slots:
            gone = channels.setdefault((slot.path, slot.axis, slot.kind, slot.dim), set())
            gone.update(slot.indices[list(units)].ravel().tolist())
    for (path, axis, kind, dim), gone in channels.items():
        if not gone:
            continue
        if kind == "parameter":
            module, name = _owner(model, path)
            old = getattr(module, name)
            values = _without(old.detach(), dim, gone)
            setattr(module, name, nn.Parameter(values, requires_grad=old.requires_grad))
        else:
            _narrow(model.get_submodule(path), axis, gone)


def _owner(model: nn.Module, parameter: str) -> tuple[nn.Module, str]:
    path, _, name = parameter.rpartition(".")
    return model.get_submodule(path), name


def _without(values: torch.Tensor, dim: int, gone: set[int]) -> torch.Tensor:
    kept = [index for index in range(values.shape[dim]) if index not in gone]
    return torch.index_select(values, dim, torch.tensor(kept, device=values.device))


def _narrow(module: nn.Module, axis: str, gone: set[int]) -> None:
    trained = {name: each.requires_grad for name, each in module.named_parameters()}
    statistics = {}
    if getattr(module, "track_running_stats", False):
        # Running statistics are taken off meanwhile: torch-pruning would index them, which on
        # tensors without data imports sympy: two seconds.
        statistics = {name: getattr(module, name) for name in ("running_mean", "running_var")}
        setattr(module, "track_running_stats", False)  # noqa: B010 - of norms alone
    getattr(module_pruner(module), f"prune_{axis}_channels")(module, sorted(gone))
    if statistics:
        setattr(module, "track_running_stats", True)  # noqa: B010 - of norms alone
    for name, values in statistics.items():
        setattr(module, name, _without(values, 0, gone))
    for name, parameter in module.named_parameters():  # torch-pruning makes all of them trainable
        parameter.requires_grad_(trained.get(name, True))


# -- A copy of a model whose channels can be removed and put back.


class Seen(NamedTuple):
    """One trace, and the shapes of the parameters and of the outputs."""

    trace: Trace
    shapes: Mapping[str, Sizes]
    outputs: list[Sizes]


class NarrowedCopy:
    """A copy of ``model`` without values (or with them) and the inputs of one call."""

    def __init__(
        self,
        model: nn.Module,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        with_values: bool = False,
    ) -> None:
        try:
            self.model = copy.deepcopy(model) if with_values else _copy_without_values(model)
        except Exception as error:
            raise UnsupportedGraphError(
                f"cannot copy {type(model).__name__} to look at it with other widths: "
                f"{first_line(error)}; "
                "remove hooks, computed weights (weight_norm) and open files from the model"
            ) from error
        for parameter in self.model.parameters():
            if parameter.is_floating_point():
                # torch-pruning follows gradients, also of weights that the user has frozen.
                parameter.requires_grad_(True)
        self._args, self._kwargs = tuple(args), dict(kwargs)
        self._with_values = with_values

    def follow(self) -> tuple[list[Coupling], list[Sizes]]:
        """Which channels belong together, and the shapes of the outputs in evaluation mode."""
        modes = {module: module.training for module in self.model.modules()}
        args, kwargs = map_inputs((self._args, self._kwargs), self._input)
        shapes: list[Sizes] = []

        def run(model: nn.Module) -> Any:
            with nullcontext() if self._with_values else WithoutKernels():
                outputs = model(*args, **kwargs)
            shapes[:] = _shapes(outputs)
            return outputs

        try:
            return follow(self.model, run), shapes
        finally:
            for module, training in modes.items():
                module.training = training

    def _input(self, tensor: torch.Tensor) -> torch.Tensor:
        if not self._with_values:
            return without_data(tensor)
        return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor

    def look(self) -> Seen:
        """Trace the copy as it is."""
        outputs: list[Sizes] = []

        def record(_module: nn.Module, _inputs: Any, returned: Any) -> None:
            outputs[:] = _shapes(returned)

        handle = self.model.register_forward_hook(record)
        try:
            traced = trace(self.model, *self._args, **self._kwargs)
        finally:
            handle.remove()
        return Seen(traced, self.shapes(), outputs)

    def shapes(self) -> dict[str, Sizes]:
        """Shape of every parameter, by name."""
        return {name: tuple(each.shape) for name, each in self.model.named_parameters()}

    def without(self, removed: Sequence[tuple[ChannelGroup, Sequence[int]]]) -> Seen:
        """Trace the copy with some units of some groups removed; it is whole again afterwards."""
        touched = {
            _owner(self.model, slot.path)[0]
            if slot.kind == "parameter"
            else self.model.get_submodule(slot.path): None
            for group, _ in removed
            for slot in group.slots
        }
        with _kept_as_they_are(touched), torch.no_grad():
            remove_units(self.model, removed)
            return self.look()


def _shapes(outputs: Any) -> list[Sizes]:
    return [tuple(tensor.shape) for tensor in output_tensors(outputs)]


# -- From pairs of coupled channels to channel groups.

#: Modules whose channels a group's width counts.
_WRITERS: Final = ("conv", "linear")

#: Kind of module -> why a width that it shares may not change.
_LEFT_ALONE: Final = {
    "attention": "attention heads are left alone",
    "rnn": "recurrent widths are left alone",
}


def _group_channels(couplings: Sequence[Coupling], order: Mapping[str, int]) -> list[ChannelGroup]:
    """Channel groups in order of execution.

    Parameters
    ----------
    couplings
        As :func:`~pytest_neuralpower.compress.torch_pruning.follow` found them.
    order
        Path of a module -> its place in the order of execution.
    """
    last = len(order)
    axes = sorted(
        dict.fromkeys(axis for pair in couplings for axis in (pair.root, pair.axis)),
        key=lambda axis: (order.get(axis.path, last), axis.path, axis.axis == "in"),
    )
    sizes = [axis.size for axis in axes]
    starts = dict(zip(axes, np.cumsum([0, *sizes]).tolist(), strict=False))
    labels = _labels(couplings, starts)
    reasons = _reasons(couplings, starts, labels)
    owners = np.repeat(np.arange(len(axes)), sizes)
    by_label = np.argsort(labels, kind="stable")
    # Units that run through the same axes, with equally many channels of each: one group.
    alike: dict[tuple[int, ...], list[NDArray[np.intp]]] = {}
    for unit in np.split(by_label, np.flatnonzero(np.diff(labels[by_label])) + 1):
        alike.setdefault(tuple(owners[unit].tolist()), []).append(unit)
    groups = []
    for owning, units in alike.items():
        through = {owner: axes[owner] for owner in owning}
        written = [o for o, axis in through.items() if axis.axis == "out" and axis.kind in _WRITERS]
        if not written:
            continue
        frozen = [_LEFT_ALONE[axis.kind] for axis in through.values() if axis.kind in _LEFT_ALONE]
        frozen += [reasons[label] for unit in units if (label := labels[unit[0]]) in reasons]
        channels = np.stack(units)
        channels = channels[np.argsort(channels[:, owning.index(written[0])])]
        slots = tuple(
            Slot(
                path=axis.path,
                axis=axis.axis,
                kind=axis.kind,
                indices=channels[:, np.equal(owning, owner)] - starts[axis],
                dim=axis.dim,
            )
            for owner, axis in sorted(through.items(), key=lambda item: item[0] != written[0])
        )
        name, counted = slots[0].path, slots[0].indices
        if counted.size != through[written[0]].size:
            name += f"[{counted.min()}:{counted.max() + 1}]"
        groups.append(
            ChannelGroup(name, slots, len(units), counted.shape[1], frozen[0] if frozen else "")
        )
    return sorted(groups, key=lambda group: order.get(group.slots[0].path, last))


def _labels(couplings: Sequence[Coupling], starts: Mapping[Axis, int]) -> NDArray[np.intp]:
    """Label of every channel of every axis; equal labels belong together."""
    edges = []
    for pair in couplings:
        known = pair.root_channels >= 0
        roots, channels = pair.root_channels[known], pair.channels[known]
        edges.append((starts[pair.root] + roots, starts[pair.axis] + channels))
    for axis, start in starts.items():
        if axis.groups > 1 and axis.size % axis.groups == 0:
            # Each group of a grouped convolution must keep equally many: the same positions.
            places = start + np.arange(axis.size).reshape(axis.groups, -1)
            edges.append((places[:-1].ravel(), places[1:].ravel()))
    labels = np.arange(sum(axis.size for axis in starts))
    if not edges:
        return labels
    first, second = (np.concatenate(ends) for ends in zip(*edges, strict=True))
    while True:  # each channel takes the least label of its neighbours, until nothing changes
        lower = labels.copy()
        least = np.minimum(labels[first], labels[second])
        np.minimum.at(lower, first, least)
        np.minimum.at(lower, second, least)
        lower = lower[lower]
        if (lower == labels).all():
            return labels
        labels = lower


def _reasons(
    couplings: Sequence[Coupling], starts: Mapping[Axis, int], labels: NDArray[np.intp]
) -> dict[int, str]:
    """Label -> why its channels may not change, as far as the operations on their way tell."""
    reasons: dict[int, str] = {}
    for pair in couplings:
        reason = pair.through and f"{pair.through} moves its channels"
        if (pair.root_channels < 0).any():
            reason = "its channels are repeated for several attention heads"
        if reason:
            for label in labels[starts[pair.root] + np.arange(pair.root.size)].tolist():
                reasons.setdefault(label, reason)
    return reasons


# -- Find the channel groups, and check each.

#: Why a group is frozen that no effort was left for.
NOT_CHECKED: Final = "it was not checked"

#: Why a group is frozen that nobody would narrow.
OUTPUT: Final = "it is the model's output"

_OTHER_OPERATIONS: Final = "narrower, the model runs other operations"


def find_channel_groups(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    effort: LayerQuota | None = None,
    traced: Trace | None = None,
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
    traced
        The call's layers where they are known; it is traced again if the model is in training mode
        or they are no longer its own.

    Raises
    ------
    MissingExtraError
        torch-pruning is not installed.
    UnsupportedGraphError
        The graph cannot be followed; the message names the operation.
    TraceError
        The model cannot be traced with these inputs.
    """
    model = getattr(model, ORIGINAL, model)  # torch.compile's wrapper
    effort = effort or LayerQuota(math.inf)
    if traced is not None and not _is_of(traced, model):
        traced = None
    try:
        groups = _find(NarrowedCopy(model, args, kwargs or {}), effort, traced)
    except (TraceError, UnsupportedGraphError):
        if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
            raise
        groups = _find(NarrowedCopy(model, args, kwargs or {}, with_values=True), effort, traced)
    if not groups.changeable:
        for path, kind in unknown_modules(model).items():
            of_torch = type(model.get_submodule(path)) is getattr(nn, kind, None)
            instead = "" if of_torch else "use torch.nn's own layers in its place, or "
            place = f" ({path})" if path else ""  # the model itself has no path
            raise UnsupportedGraphError(
                f"no width of {type(model).__name__} can change: torch-pruning does not know {kind}"
                f"{place}; {instead}change widths by hand"
            )
    return groups


def _is_of(traced: Trace, model: nn.Module) -> bool:
    """Whether the layers' weights are the model's parameters as they are now, in evaluation mode:
    couplings are followed, and the outputs seen, in that mode alone."""
    shapes = {tuple(each.shape) for each in model.parameters()}
    return not any(module.training for module in model.modules()) and all(
        weight.shape in shapes for layer in traced for weight in layer.weights
    )


def _find(copy: NarrowedCopy, effort: LayerQuota, traced: Trace | None) -> ChannelGroups:
    if traced is None:
        present = copy.look()
        couplings, _ = copy.follow()
    else:
        couplings, outputs = copy.follow()
        present = Seen(traced, copy.shapes(), outputs)
    order: dict[str, int] = {}
    for layer in present.trace:
        order.setdefault(layer.path, len(order))
    checked = []
    for group in _group_channels(couplings, order):
        if group.frozen:
            checked.append(group)
        elif not effort.is_left:
            checked.append(replace(group, frozen=NOT_CHECKED))
        else:
            effort.spend(len(present.trace))
            checked.append(_checked(copy, present, group))
            if checked[-1].frozen == _OTHER_OPERATIONS and traced is not None:
                return _find(copy, effort, None)  # it was traced in another mode, or under autocast
    return _without_products(copy, ChannelGroups(present.trace, tuple(checked), present.shapes))


def _checked(copy: NarrowedCopy, present: Seen, group: ChannelGroup) -> ChannelGroup:
    """The group with what one more unit adds to layers and parameters, or why it is frozen."""
    if group.units < 2:
        return replace(group, frozen=f"its {group.width} channels cannot be split")
    try:
        seen = copy.without([(group, [group.units - 1])])
    except Exception as error:
        return replace(group, frozen=f"narrower, the model does not run: {first_line(error)}")
    if seen.outputs != present.outputs:
        return replace(group, frozen=OUTPUT)
    gains = _gains(present.trace.layers, seen.trace.layers)
    if gains is None:
        return replace(group, frozen=_OTHER_OPERATIONS)
    shape_gains = {
        name: _minus(shape, seen.shapes[name])
        for name, shape in present.shapes.items()
        if shape != seen.shapes[name]
    }
    return replace(group, gains=gains, shape_gains=shape_gains)


def _gains(before: Sequence[Layer], after: Sequence[Layer]) -> dict[int, Sizes] | None:
    """What the wider layers' sizes have more; None where the layers are not the same ones."""
    if len(before) != len(after):
        return None
    gains = {}
    for place, (wide, narrow) in enumerate(zip(before, after, strict=True)):
        if wide != narrow:
            if form(wide) != form(narrow):
                return None
            gains[place] = _minus(read_sizes(wide), read_sizes(narrow))
    return gains


def _minus(before: Sizes, after: Sizes) -> Sizes:
    return tuple(old - new for old, new in zip(before, after, strict=True))


def _without_products(copy: NarrowedCopy, groups: ChannelGroups) -> ChannelGroups:
    """Freeze groups whose widths do not simply add up: narrow all by half and compare.

    Raises
    ------
    UnsupportedGraphError
        Narrowed together, the model runs otherwise than its widths say.
    """
    cannot = f"cannot change the widths of {groups.trace.model} together: "
    while groups.changeable:
        half = {group.name: max(group.units // 2, 1) for group in groups.changeable}
        try:
            seen = copy.without([(g, range(half[g.name], g.units)) for g in groups.changeable])
        except Exception as error:
            raise UnsupportedGraphError(f"{cannot}{error}") from error
        expected = groups.layers_at({g.name: half[g.name] * g.step for g in groups.changeable})
        layers = seen.trace.layers
        if len(layers) != len(expected):
            raise UnsupportedGraphError(
                f"{cannot}narrower, it runs {len(layers)} operations instead of {len(expected)}"
            )
        pairs = enumerate(zip(expected, layers, strict=True))
        wrong = {place for place, (one, other) in pairs if one != other}
        if not wrong:
            return groups
        at_fault = {group.name for group in groups.changeable if wrong & group.gains.keys()}
        if not at_fault:
            layer = groups.trace.layers[min(wrong)]
            raise UnsupportedGraphError(
                f"{cannot}the sizes of {layer.op} {layer.path or '(root)'} do not follow from its "
                "widths"
            )
        why = "its sizes do not grow evenly with its width"
        checked = (replace(g, frozen=why) if g.name in at_fault else g for g in groups.groups)
        groups = replace(groups, groups=tuple(checked))
    return groups
