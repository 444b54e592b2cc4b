"""Fingerprints of a model: of its structure, and of its weights' values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import nn

__all__ = ["structure_hash", "weights_hash"]


def structure_hash(model: nn.Module) -> str:
    """SHA-256 of the modules' classes and of the names, shapes and dtypes of their tensors."""
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        digest.update(f"{name} {type(module).__qualname__}\n".encode())
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
    return digest.hexdigest()


def weights_hash(state: Mapping[str, object]) -> str:
    """SHA-256 of the values in a state dict, bit for bit, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            flat = tensor.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
