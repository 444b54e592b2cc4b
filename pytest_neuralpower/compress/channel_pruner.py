"""Channel granularity: channels are removed for real, so that any platform is cheaper."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch

from pytest_neuralpower.compress.find_groups import OUTPUT, find_channel_groups, remove_units
from pytest_neuralpower.compress.least_squares import (
    MOST_UNKNOWNS,
    RECONSTRUCTED,
    Gram,
    Reconstructed,
    groups_of,
    matrix_of,
    relative_error,
    solve_kept,
    unknowns_of,
    weighted_module,
    write_matrix,
)
from pytest_neuralpower.compress.pruner import CHOOSERS, RIDGE, Choice, Pruner
from pytest_neuralpower.compress.width_prices import Curve, descent, widest_as_cheap

if TYPE_CHECKING:
    from pytest_neuralpower.compress.channels import ChannelGroup, ChannelGroups, Slot
    from pytest_neuralpower.estimators.features import FloatArray
    from pytest_neuralpower.layers import Layer
    from pytest_neuralpower.model_source import Call

# -- Which channels of a group to remove first: by the error of what reads them, or by magnitude.


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
class RemovalOrder:
    """Units of one group in the order in which to remove them, and the error at some counts.

    ``errors`` has the summed relative squared errors of the readers' outputs by the units left.
    """

    order: tuple[int, ...]
    errors: dict[int, float]

    def kept(self, units: int) -> tuple[int, ...]:
        """Units that stay when ``units`` of them do, ascending."""
        return tuple(sorted(self.order[len(self.order) - units :]))


def rank(
    readers: Sequence[Reader],
    units: int,
    counts: Sequence[int],
    *,
    refit: bool,
    sizes: torch.Tensor | None = None,
) -> RemovalOrder:
    """Remove the units that the readers' outputs miss least, and look again at each count.

    Parameters
    ----------
    counts
        How many units to leave, falling.
    refit
        Whether the weights that stay are solved for.
    sizes
        Of the weights that write each unit, shape (units,): the smallest are removed instead.
    """
    kept = torch.ones(units, dtype=torch.bool)
    cost = torch.zeros(units, dtype=torch.float64) if sizes is None else sizes
    order: list[int] = []
    errors: dict[int, float] = {}
    for count in (units, *counts):
        gone = torch.where(kept, cost, torch.inf).argsort(stable=True)[: int(kept.sum()) - count]
        order += gone.tolist()
        kept[gone] = False
        states = [reader.state(kept, refit=refit) for reader in readers]
        errors[count] = sum(error for _, error in states)
        if sizes is None:
            cost = torch.stack([removal for removal, _ in states]).sum(0)
    return RemovalOrder((*order, *kept.nonzero()[:, 0].tolist()), errors)


# -- The pruner.

#: Cost (mJ, ms, or anything that falls with widths and is a sum over layers) of each of several
#: sets of layers.
LayersCost: TypeAlias = "Callable[[Sequence[Sequence[Layer]]], FloatArray]"


@dataclass(kw_only=True)
class ChannelPruner(Pruner):
    """Removes channels of one model, in place.

    Attributes
    ----------
    call
        The call that is priced by ``layers_cost``.
    widths
        ``plateau`` steps between the edges of plateaus; a number steps between its multiples.
    kept
        Units of each group that are left, as the model had them at first.
    """

    call: Call
    layers_cost: LayersCost
    widths: Literal["plateau"] | int = "plateau"
    kept: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.groups = self._find()
        self.first = {group.name: group for group in self.groups.groups}
        self.kept = {name: tuple(range(group.units)) for name, group in self.first.items()}

    def _find(self) -> ChannelGroups:
        return find_channel_groups(self.model, self.call.args, self.call.kwargs)

    @property
    def left_out(self) -> dict[str, str]:
        """Groups whose channels stay though they are not the model's output, with the reason."""
        solved = set(self._paths())
        unsolved = "no layer that reads it can be solved for"
        return {
            name: group.frozen or unsolved
            for name, group in self.first.items()
            if group.frozen != OUTPUT and (group.frozen or not solved & set(group.consumers))
        }

    def cost(self) -> float:
        return self._cost_at({})

    def _cost_at(self, widths: Mapping[str, int]) -> float:
        return float(self.layers_cost([self.groups.layers_at(widths)])[0])

    def masks(self) -> dict[str, torch.Tensor]:
        """Nothing is masked: removed channels are gone."""
        return {}

    def reduce_to(self, limit: float) -> Mapping[str, float]:
        grams = self.grams(self._paths())
        ranked = {
            group.name: ranking
            for group in self.groups.changeable
            if (ranking := self._rank(group, grams)) is not None
        }
        units = {name: sorted(group.errors, reverse=True) for name, group in ranked.items()}
        errors = {name: [group.errors[at] for at in units[name]] for name, group in ranked.items()}
        steps = {name: self.groups[name].step for name in ranked}

        def widths(choice: Choice) -> dict[str, int]:
            return {name: units[name][at] * steps[name] for name, at in choice.items()}

        # By what the call would save without all but one unit of each.
        most_expensive_first = sorted(ranked, key=lambda name: self._cost_at({name: steps[name]}))
        chosen = CHOOSERS[self.order](
            errors, lambda choice: self._cost_at(widths(choice)), limit, most_expensive_first
        )
        final = widths(chosen)
        if self.widths == "plateau":
            for name in final:  # free capacity: FastDeepIoT's expansion to the local minimum
                curve = self._curve(name, final)
                final[name] = int(curve.widths[widest_as_cheap(curve)])
        self.keep({name: ranked[name].kept(final[name] // steps[name]) for name in final})
        return {name: len(left) / self.first[name].units for name, left in self.kept.items()}

    def least(self) -> float:
        left_out = self.left_out
        return self._cost_at(
            {g.name: g.step for g in self.groups.changeable if g.name not in left_out}
        )

    def trained(self) -> None:
        self.reference, self.outputs = copy.deepcopy(self.model), {}

    def _paths(self) -> list[str]:
        """Layers that least squares can solve, in running order."""
        found: dict[str, None] = {}
        for layer in self.groups.trace:
            module = weighted_module(self.model, layer)
            if isinstance(module, RECONSTRUCTED) and unknowns_of(module) <= MOST_UNKNOWNS:
                found[layer.path] = None
        return list(found)

    def _rank(self, group: ChannelGroup, grams: Mapping[str, Gram]) -> RemovalOrder | None:
        """None where no layer that reads the group can be sampled."""
        readers = [
            Reader.of(self._layer(slot.path), slot, grams[slot.path], ridge=RIDGE)
            for slot in group.slots
            if slot.axis == "in" and slot.path in grams
        ]
        if not readers:
            return None
        if self.widths == "plateau":
            curve = self._curve(group.name, {})
            widths = curve.widths[descent(curve)].tolist()
        else:
            every = range(group.step, group.width, group.step)
            widths = [width for width in every if width % self.widths == 0][::-1]
        counts = [width // group.step for width in widths]
        sizes = self._sizes(group) if self.criterion == "magnitude" else None
        return rank(readers, group.units, counts, refit=self.refit, sizes=sizes)

    def _curve(self, name: str, others: Mapping[str, int]) -> Curve:
        """What the layers that one group reaches cost at every width it can have, with others.

        The present width is that in ``others``, or what the group has now.
        """
        group = self.groups[name]
        widths = np.arange(group.step, group.width + 1, group.step)
        sets = [
            self.groups.layers_at({**others, name: width}, group.gains) for width in widths.tolist()
        ]
        now = others.get(name, group.width) // group.step - 1
        return Curve(widths, self.layers_cost(sets), now)

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
                stays = [channel for channel in range(len(present)) if channel not in channels]
                outputs[path] = present[stays]
        remove_units(self.model, removed)
        self.kept, self.outputs = kept, outputs
        self.groups = self._find()
        if not self.refit:
            return
        rows = {}
        for path in self._paths():
            gram = self.grams([path]).get(path)
            if gram is None:
                continue
            layer = self._layer(path)
            prior = matrix_of(layer)
            everything = torch.ones_like(prior, dtype=torch.bool)
            write_matrix(layer, solve_kept(gram, prior, everything, ridge=RIDGE)[0])
            rows[path] = gram.rows / gram.inputs.shape[-1]
        self.rows_per_unknown = rows
