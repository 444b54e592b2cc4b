"""A layer's weight and bias as the matrix of its least squares, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from pytest_neuralpower.remedy.feature_maps import Reconstructed

__all__ = ["all_kept", "groups_of", "mask_of", "matrix_of", "unknowns_of", "write_matrix"]


def groups_of(module: nn.Module) -> int:
    """Independent convolutions of a layer; 1 for a linear layer."""
    return int(getattr(module, "groups", 1))


def unknowns_of(module: Reconstructed) -> int:
    """Weights of one output, without the bias."""
    return module.weight[0].numel()


def matrix_of(module: Reconstructed) -> torch.Tensor:
    """Weights in float64, shape (groups, outputs of a group, unknowns); a bias is the last one."""
    groups = groups_of(module)
    flat = module.weight.detach().flatten(1)
    if module.bias is not None:
        flat = torch.cat([flat, module.bias.detach()[:, None]], 1)
    return flat.cpu().double().view(groups, -1, flat.shape[1])


def write_matrix(module: Reconstructed, matrix: torch.Tensor) -> None:
    """Put what :func:`matrix_of` returned, changed, back into the layer."""
    flat = matrix.flatten(0, 1)
    unknowns = unknowns_of(module)
    with torch.no_grad():
        module.weight.copy_(flat[:, :unknowns].reshape(module.weight.shape))
        if module.bias is not None:
            module.bias.copy_(flat[:, unknowns])


def all_kept(module: Reconstructed) -> torch.Tensor:
    """Mask of the weights that are not zero now, in the matrix's shape; a bias always stays."""
    kept = matrix_of(module) != 0
    kept[..., unknowns_of(module) :] = True
    return kept


def mask_of(module: Reconstructed, kept: torch.Tensor) -> torch.Tensor:
    """A matrix's mask in the shape of the layer's weight, without the bias."""
    return kept.flatten(0, 1)[:, : unknowns_of(module)].reshape(module.weight.shape)
