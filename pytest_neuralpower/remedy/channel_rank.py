"""Which channels of a group to remove first: by the error of what reads them, or by magnitude."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pytest_neuralpower.remedy.least_squares import Gram, relative_error
from pytest_neuralpower.remedy.matrices import groups_of, matrix_of, unknowns_of

if TYPE_CHECKING:
    from pytest_neuralpower.remedy.channels import Slot
    from pytest_neuralpower.remedy.feature_maps import Reconstructed

__all__ = ["Ranked", "Reader", "rank_by_magnitude", "rank_by_output_error"]


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
