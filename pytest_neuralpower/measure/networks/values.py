"""Values for networks that were sketched without any."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["materialise"]

#: Normal numbers that weights are cut from: as many different ones as any cache line sees.
_POOL: Final = 1 << 18


def materialise(
    model: nn.Module, inputs: tuple[Tensor, ...], *, seed: int, device: torch.device
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Give a sketched model and its inputs memory and values on a device.

    Inputs are N(0, 1), as zeros draw less power; weights are scaled so that activations neither
    vanish nor overflow. Integer inputs are drawn below what the sketch kept in ``vocabulary``.
    """
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randn(_POOL, generator=generator)
    model = model.to_empty(device=device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _fill(name.rpartition(".")[2], parameter, pool)
        for name, buffer in model.named_buffers():
            _fill(name.rpartition(".")[2], buffer, pool)
    vocabulary = int(getattr(model, "vocabulary", 2))
    given = []
    for each in inputs:
        if each.is_floating_point():
            made = torch.randn(each.shape, generator=generator).to(each.dtype)
        else:
            made = torch.randint(vocabulary, each.shape, generator=generator, dtype=each.dtype)
        given.append(made.to(device))
    return model, tuple(given)


def _fill(name: str, tensor: Tensor, pool: Tensor) -> None:
    if not tensor.is_floating_point():
        tensor.zero_()
    elif name in ("running_var",) or (name == "weight" and tensor.ndim == 1):
        tensor.fill_(1.0)
    elif tensor.ndim < 2:
        tensor.copy_(_cut(pool, tensor.shape) * 0.1)
    else:
        fan_in = math.prod(tensor.shape[1:])
        tensor.copy_(_cut(pool, tensor.shape) * (1.4 / math.sqrt(fan_in)))


def _cut(pool: Tensor, shape: torch.Size) -> Tensor:
    count = shape.numel()
    repeats = -(-count // len(pool))
    return (pool.repeat(repeats) if repeats > 1 else pool)[:count].reshape(shape)
