"""Which channels of a group to remove first: by the error of what reads them, or by magnitude."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

import numpy as np
import torch
from torch import nn

from pytest_neuralpower.compress.find_groups import OUTPUT, find_channel_groups, remove_units
from pytest_neuralpower.compress.least_squares import (
    MOST_UNKNOWNS,
    RECONSTRUCTED,
    Gram,
    Reconstructed,
    groups_of,
    matrix_of,
    relative_error,
    sampled_grams,
    solve_kept,
    unknowns_of,
    write_matrix,
)
from pytest_neuralpower.compress.weights import RIDGE, Choice, Criterion, Order, choosers
from pytest_neuralpower.compress.width_prices import Curve, descent, widest_as_cheap

if TYPE_CHECKING:
    from pytest_neuralpower.compress.channels import ChannelGroup, ChannelGroups, Slot
    from pytest_neuralpower.compress.inputs import Call
    from pytest_neuralpower.estimators.features import FloatArray
    from pytest_neuralpower.layers import Layer

__all__ = [
    "ChannelPruner",
    "LayersCost",
    "Ranked",
    "Reader",
    "rank_by_magnitude",
    "rank_by_output_error",
]


@dataclass(frozen=True)
class Reader:
    """One layer that reads a group's channels.

    Attributes
    ----------
    gram
        Its sampled sums.
    prior
        Its weights, shape (groups, outputs, unknowns).
    columns
        Unknowns that read each unit, shape (units, columns), counted over all groups.
    """

    gram: Gram
    prior: torch.Tensor
    columns: torch.Tensor
    ridge: float

    @classmethod
    def of(cls, layer: Reconstructed, slot: Slot, gram: Gram, *, ridge: float) -> Reader:
        groups, prior = groups_of(layer), matrix_of(layer)
        channels = torch.as_tensor(slot.indices)
        kernel = layer.weight[0, 0].numel()
        of_group = unknowns_of(layer) // kernel  # channels that one group reads
        start = (channels // of_group) * prior.shape[2] + (channels % of_group) * kernel
        columns = (start[:, :, None] + torch.arange(kernel)).flatten(1)
        assert int(columns.max()) < groups * prior.shape[2]
        return cls(gram, prior, columns, ridge)

    def state(self, kept: torch.Tensor, *, refit: bool) -> tuple[torch.Tensor, float]:
        """Removal cost of each unit and the error now, both shares of the output's square.

        Parameters
        ----------
        kept
            Units that are there, shape (units,).
        refit
            Whether the weights that stay are solved for; costs then count that they would be
            solved for again.
        """
        stays = torch.ones(self.prior.shape[0] * self.prior.shape[2], dtype=torch.bool)
        stays[self.columns[~kept].flatten()] = False
        stays = stays.view(self.prior.shape[0], -1)
        total = float(self.gram.outputs.sum()) or 1.0
        cost = torch.zeros(len(kept), dtype=torch.float64)
        weights = torch.where(stays[:, None, :], self.prior, 0.0)
        amounts = self.gram.ridge(self.ridge).clamp_min(1e-12)
        of_group = self.columns // self.prior.shape[2]
        for group, mask in enumerate(stays):
            units = ((of_group == group).any(1) & kept).nonzero()[:, 0]
            system = self.gram.inputs[group]
            inverse = None
            if refit:
                at = mask.nonzero()[:, 0]
                part = system[at[:, None], at]
                part.diagonal().add_(amounts[group])
                wanted = self.gram.cross[group][at] + amounts[group] * self.prior[group][:, at].mT
                factor = torch.linalg.cholesky(part)
                solved = torch.cholesky_solve(wanted, factor)
                weights[group][:, at] = solved.mT
                inverse = torch.zeros_like(system)
                inverse[at[:, None], at] = torch.cholesky_inverse(factor)
            if not len(units):
                continue
            own = self.columns[units]
            inside = own[of_group[units] == group].view(len(units), -1) - group * len(mask)
            rows = weights[group][:, inside].permute(1, 2, 0)  # (units, columns, outputs)
            if inverse is not None:
                blocks = inverse[inside[:, :, None], inside[:, None, :]]
                cost[units] += (rows * torch.linalg.solve(blocks, rows)).sum((1, 2))
            else:
                blocks = system[inside[:, :, None], inside[:, None, :]]
                slope = (self.gram.cross[group] - system @ weights[group].mT)[inside]
                cost[units] += (rows * (blocks @ rows) + 2 * rows * slope).sum((1, 2))
        return cost / total, relative_error(self.gram, weights)


@dataclass(frozen=True)
class Ranked:
    """Units of one group in the order in which to remove them, and the error at some counts.

    ``errors`` has the summed relative squared errors of the readers' outputs by the units left.
    """

    order: tuple[int, ...]
    errors: dict[int, float]

    def kept(self, units: int) -> tuple[int, ...]:
        """Units that stay when ``units`` of them do, ascending."""
        return tuple(sorted(self.order[len(self.order) - units :]))


def rank_by_output_error(
    readers: Sequence[Reader], units: int, counts: Sequence[int], *, refit: bool
) -> Ranked:
    """Remove the units that the readers' outputs miss least, and look again at each count.

    Parameters
    ----------
    counts
        How many units to leave, falling.
    """
    kept = torch.ones(units, dtype=torch.bool)
    order: list[int] = []
    errors: dict[int, float] = {}
    cost = torch.zeros(units, dtype=torch.float64)
    for count in (units, *counts):
        excess = int(kept.sum()) - count
        if excess:
            gone = torch.where(kept, cost, torch.inf).argsort(stable=True)[:excess]
            order += gone.tolist()
            kept[gone] = False
        states = [reader.state(kept, refit=refit) for reader in readers]
        errors[count] = sum(error for _, error in states)
        cost = torch.stack([each for each, _ in states]).sum(0)
    return Ranked((*order, *kept.nonzero()[:, 0].tolist()), errors)


def rank_by_magnitude(
    readers: Sequence[Reader],
    sizes: torch.Tensor,
    counts: Sequence[int],
    *,
    refit: bool,
) -> Ranked:
    """Remove the units whose writing weights have the smallest ``sizes``, shape (units,)."""
    units = len(sizes)
    order = sizes.argsort(stable=True).tolist()
    errors = {}
    for count in (units, *counts):
        kept = torch.ones(units, dtype=torch.bool)
        kept[order[: units - count]] = False
        errors[count] = sum(reader.state(kept, refit=refit)[1] for reader in readers)
    return Ranked(tuple(order), errors)


# -- Channel granularity: channels are removed for real, so that any platform is cheaper.

#: Cost (mJ, ms, or anything that falls with widths and is a sum over layers) of each of several
#: sets of layers.
LayersCost: TypeAlias = "Callable[[Sequence[Sequence[Layer]]], FloatArray]"


@dataclass
class ChannelPruner:
    """Removes channels of one model, in place.

    Attributes
    ----------
    model, reference
        What is pruned, and the model whose feature maps it is to keep.
    call
        The call that is priced by ``layers_cost``.
    refit
        Whether weights that stay are solved for by least squares.
    kept
        Units of each group that are left, as the model had them at first.
    outputs
        Channels of the reference's layers that the model's layers still write, by path.
    """

    model: nn.Module
    reference: nn.Module
    call: Call
    layers_cost: LayersCost
    calls: Sequence[Call]
    criterion: Criterion = "output_error"
    order: Order = "energy"
    widths: Literal["plateau"] | int = "plateau"
    refit: bool = True
    seed: int = 0
    kept: dict[str, tuple[int, ...]] = field(default_factory=dict)
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    rows_per_unknown: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.groups = self._find()
        self.first = {group.name: group for group in self.groups.groups}
        if not self.kept:
            self.kept = {group.name: tuple(range(group.units)) for group in self.groups.groups}

    def _find(self) -> ChannelGroups:
        return find_channel_groups(self.model, self.call.args, self.call.kwargs)

    def _layer(self, path: str) -> Reconstructed:
        return cast("Reconstructed", self.model.get_submodule(path))

    @property
    def left_out(self) -> dict[str, str]:
        """Groups whose channels stay though they are not the model's output, with the reason."""
        sampled = set(self._paths())
        unsolved = "no layer that reads it can be solved for"
        return {
            name: group.frozen or unsolved
            for name, group in self.first.items()
            if group.frozen != OUTPUT and (group.frozen or not sampled & set(group.consumers))
        }

    def cost(self) -> float:
        return float(self.layers_cost([self.groups.trace.layers])[0])

    def masks(self) -> dict[str, torch.Tensor]:
        """Nothing is masked: removed channels are gone."""
        return {}

    def reduce_to(self, limit: float) -> Mapping[str, float]:
        """Remove channels until one call costs at most ``limit``; share of channels by group."""
        grams = self._grams(self._paths())
        priced = _Priced(self.groups, self.layers_cost)
        ranked = {
            group.name: ranking
            for group in self.groups.changeable
            if (ranking := self._rank(group, grams, priced)) is not None
        }
        points = {
            name: sorted(each.errors, reverse=True) for name, each in ranked.items()
        }  # units, falling
        errors = {name: [each.errors[at] for at in points[name]] for name, each in ranked.items()}

        def widths(choice: Choice) -> dict[str, int]:
            return {name: points[name][at] * self._step(name) for name, at in choice.items()}

        chosen = choosers[self.order](
            errors, lambda choice: priced.at(widths(choice)), limit, priced.dearest(ranked)
        )
        final = widths(chosen)
        if self.widths == "plateau":
            for name in final:  # free capacity: FastDeepIoT's expansion to the local minimum
                curve = priced.curve(name, final)
                final[name] = int(curve.widths[widest_as_cheap(curve)])
        self.keep({name: ranked[name].kept(final[name] // self._step(name)) for name in final})
        return {name: len(units) / self.first[name].units for name, units in self.kept.items()}

    def least(self) -> float:
        """Cost of the call with one unit left of every group that can be pruned."""
        left_out = self.left_out
        return _Priced(self.groups, self.layers_cost).at(
            {g.name: g.step for g in self.groups.changeable if g.name not in left_out}
        )

    def trained(self) -> None:
        """After the user has trained the model: what it gives now is what it is to keep giving."""
        self.reference, self.outputs = copy.deepcopy(self.model), {}

    def _step(self, name: str) -> int:
        return self.groups[name].step

    def _paths(self) -> list[str]:
        """Layers that least squares can solve, in running order."""
        found: dict[str, None] = {}
        for layer in self.groups.trace.layers:
            module = self.model.get_submodule(layer.path)
            if (
                layer.kind in ("conv", "linear")
                and isinstance(module, RECONSTRUCTED)
                and unknowns_of(module) <= MOST_UNKNOWNS
            ):
                found[layer.path] = None
        return list(found)

    def _grams(self, paths: Sequence[str]) -> Mapping[str, Gram]:
        return sampled_grams(
            self.model, self.reference, paths, self.calls, outputs=self.outputs, seed=self.seed
        )

    def _rank(
        self, group: ChannelGroup, grams: Mapping[str, Gram], priced: _Priced
    ) -> Ranked | None:
        """None where no layer that reads the group can be sampled."""
        readers = [
            Reader.of(self._layer(slot.path), slot, grams[slot.path], ridge=RIDGE)
            for slot in group.slots
            if slot.axis == "in" and slot.path in grams
        ]
        if not readers:
            return None
        counts = [width // group.step for width in self._candidates(group, priced)]
        if self.criterion == "output_error":
            return rank_by_output_error(readers, group.units, counts, refit=self.refit)
        return rank_by_magnitude(readers, self._sizes(group), counts, refit=self.refit)

    def _candidates(self, group: ChannelGroup, priced: _Priced) -> list[int]:
        """Widths to step to, falling."""
        if self.widths == "plateau":
            curve = priced.curve(group.name)
            return [int(curve.widths[place]) for place in descent(curve)]
        every = range(group.step, group.width, group.step)
        return [width for width in every if width % self.widths == 0][::-1]

    def _sizes(self, group: ChannelGroup) -> torch.Tensor:
        """Squared weights that write each unit."""
        sizes = torch.zeros(group.units, dtype=torch.float64)
        for slot in group.slots:
            if slot.axis == "out" and slot.kind in ("conv", "linear"):
                weight = self._layer(slot.path).weight.detach().cpu().double()
                sizes += weight.flatten(1).square().sum(1)[torch.as_tensor(slot.indices)].sum(1)
        return sizes

    def keep(self, chosen: Mapping[str, Sequence[int]]) -> None:
        """Remove all other units of these groups, and refit the layers in running order."""
        removed = []
        kept, outputs = dict(self.kept), dict(self.outputs)
        gone: dict[str, set[int]] = {}
        # Groups keep their order when they are found again, names of parts of them may not.
        names = dict(zip((group.name for group in self.groups.groups), kept, strict=True))
        for name, units in chosen.items():
            group = self.groups[name]
            out = sorted(set(range(group.units)) - set(units))
            removed.append((group, out))
            before = kept[names[name]]
            kept[names[name]] = tuple(before[unit] for unit in units)
            for slot in group.slots:
                if slot.axis == "out" and slot.kind != "parameter":
                    gone.setdefault(slot.path, set()).update(slot.indices[out].ravel().tolist())
        for path, channels in gone.items():
            layer = self.model.get_submodule(path)
            if isinstance(layer, RECONSTRUCTED):
                present = outputs.get(path, torch.arange(layer.weight.shape[0]))
                stays = [each for each in range(len(present)) if each not in channels]
                outputs[path] = present[stays]
        remove_units(self.model, removed)
        self.kept, self.outputs = kept, outputs
        self.groups = self._find()
        if self.refit:
            self._refit()

    def _refit(self) -> None:
        rows = {}
        for path in self._paths():
            gram = self._grams([path]).get(path)
            if gram is None:
                continue
            layer = self._layer(path)
            prior = matrix_of(layer)
            everything = torch.ones_like(prior, dtype=torch.bool)
            write_matrix(layer, solve_kept(gram, prior, everything, ridge=RIDGE)[0])
            rows[path] = gram.rows / gram.inputs.shape[-1]
        self.rows_per_unknown = rows


class _Priced:
    """Cost of the call at other widths; each set of widths is priced once."""

    def __init__(self, groups: ChannelGroups, layers_cost: LayersCost) -> None:
        self._groups = groups
        self._layers_cost = layers_cost

        @cache
        def price(widths: tuple[tuple[str, int], ...]) -> float:
            layers = groups.with_widths(groups.trace.layers, dict(widths))
            return float(layers_cost([layers])[0])

        self._price = price

    def at(self, widths: Mapping[str, int]) -> float:
        return self._price(tuple(sorted(widths.items())))

    def curve(self, name: str, others: Mapping[str, int] | None = None) -> Curve:
        """What the layers that one group reaches cost at every width it can have, beside others.

        The present width is that in ``others``, or what the group has now.
        """
        group, others = self._groups[name], others or {}
        places = self._groups.reached(name)
        widths = np.arange(group.step, group.width + 1, group.step)
        sets = [
            self._groups.layers_at(places, {**others, name: width}) for width in widths.tolist()
        ]
        now = others.get(name, group.width) // group.step - 1
        return Curve(widths, self._layers_cost(sets), now)

    def dearest(self, names: Mapping[str, object]) -> list[str]:
        """Names of groups by what the call would save without all but one unit of each."""

        def narrowest(name: str) -> float:
            return self.at({name: self._groups[name].step})

        return sorted(names, key=narrowest)
