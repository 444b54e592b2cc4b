"""Random small networks: what layers are timed inside, each drawn from a seed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.overrides import TorchFunctionMode

from pytest_neuralpower.calibrate.measure.networks import convolutional, sequences
from pytest_neuralpower.calibrate.measure.networks.blocks import Draw, Network

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

__all__ = ["TEMPLATES", "Network", "build", "materialise", "sketch"]

#: How each kind of network is drawn, and how often: out of all the shares.
TEMPLATES: Final[Mapping[str, tuple[Callable[[Draw], Network], int]]] = {
    "plain": (convolutional.plain, 3),
    "residual": (convolutional.residual, 2),
    "bottleneck": (convolutional.bottleneck, 3),
    "inverted": (convolutional.inverted, 3),
    "shuffled": (convolutional.shuffled, 2),
    "dense": (convolutional.dense, 2),
    "inception": (convolutional.inception, 2),
    "squeeze": (convolutional.squeeze, 1),
    "upsampling": (convolutional.upsampling, 2),
    "encoder": (sequences.encoder, 2),
    "patches": (sequences.patches, 2),
    "decoder": (sequences.decoder, 2),
    "mixer": (sequences.convolutional_mixer, 1),
    "windows": (sequences.windows, 1),
    "recurrent": (sequences.recurrent, 2),
    "sentinel": (convolutional.sentinel, 0),
}


class _Uninitialised(TorchFunctionMode):
    """Weights without data need no initial values, and drawing them on the meta device would import
    torch's compiler first."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _drawn(template: str, seed: int, dtype: torch.dtype) -> Network:
    draw = Draw(f"{template} {seed}")
    with torch.device("meta"), _Uninitialised():
        model, inputs, vocabulary = TEMPLATES[template][0](draw)
    given = (value.to(dtype) if value.is_floating_point() else value for value in inputs)
    return Network(model.to(dtype).eval(), tuple(given), vocabulary)


def sketch(template: str, seed: int, *, dtype: torch.dtype) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network and its inputs on the meta device: enough to trace it, nothing is computed."""
    model, inputs, _ = _drawn(template, seed, dtype)
    return model, inputs


def build(
    template: str, seed: int, *, dtype: torch.dtype, device: torch.device
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The same network with values: normal inputs, weights that keep activations of their size."""
    return materialise(_drawn(template, seed, dtype), seed=seed, device=device)


# -- Parameter values for networks drawn without any.

#: Normal numbers that weights are cut from: as many different ones as any cache line sees.
_POOL: Final = 1 << 18


def materialise(
    network: Network, *, seed: int, device: torch.device
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Give a sketched model and its inputs memory and values on a device.

    Inputs are N(0, 1), as zeros draw less power; weights are scaled so that activations neither
    vanish nor overflow. Integer inputs are drawn below the network's ``vocabulary``.
    """
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randn(_POOL, generator=generator)
    model = network.model.to_empty(device=device)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            _fill(name.rpartition(".")[2], tensor, pool)
    inputs = []
    for sketched in network.inputs:
        shape, dtype = sketched.shape, sketched.dtype
        if sketched.is_floating_point():
            value = torch.randn(shape, generator=generator).to(dtype)
        else:
            value = torch.randint(network.vocabulary, shape, generator=generator, dtype=dtype)
        inputs.append(value.to(device))
    return model, tuple(inputs)


def _fill(name: str, tensor: Tensor, pool: Tensor) -> None:
    if not tensor.is_floating_point():
        tensor.zero_()
    elif name == "running_var" or (name == "weight" and tensor.ndim == 1):
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
