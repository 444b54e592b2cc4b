"""Closed-form least squares from Gram matrices, with some weights held at zero."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Gram", "relative_error", "solve_kept"]

#: Bytes of the systems solved at once.
_CHUNK_BYTES = 64 * 2**20


@dataclass
class Gram:
    """Sums over the rows of one layer's feature maps, in float64.

    Attributes
    ----------
    inputs
        ``X^T X``, shape (groups, unknowns, unknowns).
    cross
        ``X^T Y``, shape (groups, unknowns, outputs of a group).
    outputs
        ``sum(Y^2)`` of each output, shape (groups, outputs of a group).
    rows
        Samples x positions that were summed.
    """

    inputs: torch.Tensor
    cross: torch.Tensor
    outputs: torch.Tensor
    rows: int = 0

    @classmethod
    def empty(cls, groups: int, unknowns: int, outputs: int) -> Gram:
        return cls(
            torch.zeros(groups, unknowns, unknowns, dtype=torch.float64),
            torch.zeros(groups, unknowns, outputs, dtype=torch.float64),
            torch.zeros(groups, outputs, dtype=torch.float64),
        )

    def add(self, given: torch.Tensor, wanted: torch.Tensor) -> None:
        """Add rows: inputs (groups, rows, unknowns), outputs (groups, rows, outputs)."""
        x, y = given.cpu().double(), wanted.cpu().double()
        self.inputs.baddbmm_(x.mT, x)
        self.cross.baddbmm_(x.mT, y)
        self.outputs += y.square().sum(1)
        self.rows += x.shape[1]

    def ridge(self, share: float) -> torch.Tensor:
        """Ridge of each group, shape (groups,): ``share`` of the mean square of its inputs."""
        return share * self.inputs.diagonal(dim1=1, dim2=2).mean(1)


def solve_kept(
    gram: Gram, prior: torch.Tensor, kept: torch.Tensor, *, ridge: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of least squared output error, those not ``kept`` at zero.

    Minimises ``|X w - y|^2 + lambda |w - prior|^2`` over the kept weights of each output, by
    Cholesky's factorisation of their own normal equations.

    Parameters
    ----------
    prior, kept
        Shape (groups, outputs, unknowns): the old weights, and which may differ from zero.
    ridge
        ``lambda`` as a share of the mean square of a group's inputs.

    Returns
    -------
    weights, saliency
        Of ``prior``'s shape. Saliency is how much the minimum rises if that one weight is removed
        too and the others of its output are solved again, ``w^2 / inverse[i, i]`` (Optimal Brain
        Surgeon, Hassibi and Stork 1993); zero where a weight is not kept.
    """
    weights, saliency = torch.zeros_like(prior), torch.zeros_like(prior)
    unknowns = prior.shape[2]
    eye = torch.eye(unknowns, dtype=torch.float64)
    for group, each in enumerate(gram.ridge(ridge)):
        # An input that is always zero leaves its weight to the ridge; all of them, to this floor.
        amount = each.clamp_min(1e-12)
        system = gram.inputs[group] + amount * eye
        wanted = gram.cross[group].mT + amount * prior[group]
        counts = kept[group].sum(1)
        if bool((counts == unknowns).all()):  # one factorisation serves every output
            factor = torch.linalg.cholesky(system)
            weights[group] = torch.cholesky_solve(wanted.mT, factor).mT
            saliency[group] = weights[group].square() / torch.cholesky_inverse(factor).diagonal()
            continue
        # Outputs with about as many weights are solved together, padded to the most.
        order = counts.argsort(descending=True)
        start = 0
        while start < len(order):
            size = int(counts[order[start]])
            if not size:
                break
            rows = order[start : start + max(1, _CHUNK_BYTES // (8 * size**2))]
            start += len(rows)
            picked, index = (
                kept[group][rows].to(torch.uint8).sort(dim=1, descending=True, stable=True)
            )
            index, real = index[:, :size], picked[:, :size].bool()
            both = real[:, :, None] & real[:, None, :]
            part = torch.where(
                both, system[index[:, :, None], index[:, None, :]], eye[:size, :size]
            )
            factor = torch.linalg.cholesky(part)
            right = torch.where(real, wanted[rows[:, None], index], 0.0)
            solved = torch.cholesky_solve(right[:, :, None], factor)[:, :, 0]
            spread = torch.cholesky_inverse(factor).diagonal(dim1=1, dim2=2)
            at = (rows[:, None].expand_as(index)[real], index[real])
            weights[group].index_put_(at, solved[real])
            saliency[group].index_put_(at, (solved.square() / spread)[real])
    return weights, saliency


def relative_error(gram: Gram, weights: torch.Tensor) -> float:
    """Squared error of the layer's output as a share of its square; weights as in `solve_kept`."""
    product = weights @ gram.inputs
    error = gram.outputs - 2 * (weights * gram.cross.mT).sum(2) + (product * weights).sum(2)
    total = float(gram.outputs.sum())
    return max(0.0, float(error.sum())) / total if total else 0.0
