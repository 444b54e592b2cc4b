"""Channel granularity: channels are removed for real, so that any platform is cheaper."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

import numpy as np
import torch
from torch import nn

from pytest_neuralpower.remedy.channel_rank import (
    Ranked,
    Reader,
    rank_by_magnitude,
    rank_by_output_error,
)
from pytest_neuralpower.remedy.feature_maps import RECONSTRUCTED, Reconstructed
from pytest_neuralpower.remedy.find_groups import OUTPUT, find_channel_groups
from pytest_neuralpower.remedy.least_squares import solve_kept
from pytest_neuralpower.remedy.matrices import matrix_of, unknowns_of, write_matrix
from pytest_neuralpower.remedy.narrowing import remove_units
from pytest_neuralpower.remedy.planner import Choice, Order, choosers
from pytest_neuralpower.remedy.plateaus import Curve, descent, widest_as_cheap
from pytest_neuralpower.remedy.sampling import MOST_UNKNOWNS, sampled_grams
from pytest_neuralpower.remedy.weights import RIDGE, Criterion

if TYPE_CHECKING:
    from pytest_neuralpower.features import FloatArray
    from pytest_neuralpower.layers import Layer
    from pytest_neuralpower.remedy.calls import Call
    from pytest_neuralpower.remedy.channels import ChannelGroup, ChannelGroups
    from pytest_neuralpower.remedy.least_squares import Gram

__all__ = ["ChannelPruner", "LayersCost"]

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
