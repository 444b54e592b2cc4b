"""Values for networks that were sketched without any."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.overrides import TorchFunctionMode

from pytest_neuralpower.calibrate.measure.networks.blocks import Draw
from pytest_neuralpower.calibrate.measure.networks.convolutional import (
    bottleneck,
    dense,
    inception,
    inverted,
    plain,
    residual,
    sentinel,
    shuffled,
    squeeze,
    upsampling,
)
from pytest_neuralpower.calibrate.measure.networks.sequences import (
    convolutional_mixer,
    decoder,
    encoder,
    patches,
    recurrent,
    windows,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from pytest_neuralpower.calibrate.measure.networks.blocks import Network

__all__ = [
    "TEMPLATES",
    "build",
    "materialise",
    "sketch",
]


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


# -- Random small networks: what layers are timed inside, each drawn from a seed.

#: How each kind of network is drawn, and how often: out of all the shares.
TEMPLATES: Final[Mapping[str, tuple[Callable[[Draw], Network], int]]] = {
    "plain": (plain, 3),
    "residual": (residual, 2),
    "bottleneck": (bottleneck, 3),
    "inverted": (inverted, 3),
    "shuffled": (shuffled, 2),
    "dense": (dense, 2),
    "inception": (inception, 2),
    "squeeze": (squeeze, 1),
    "upsampling": (upsampling, 2),
    "encoder": (encoder, 2),
    "patches": (patches, 2),
    "decoder": (decoder, 2),
    "mixer": (convolutional_mixer, 1),
    "windows": (windows, 1),
    "recurrent": (recurrent, 2),
    "sentinel": (sentinel, 0),
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


def sketch(template: str, seed: int, *, dtype: torch.dtype) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network and its inputs on the meta device: enough to trace it, nothing is computed."""
    draw = Draw(f"{template} {seed}")
    with torch.device("meta"), _Uninitialised():
        network = TEMPLATES[template][0](draw)
    model = network.model.to(dtype).eval()
    inputs = tuple(each.to(dtype) if each.is_floating_point() else each for each in network.inputs)
    return model, inputs


def build(
    template: str, seed: int, *, dtype: torch.dtype, device: torch.device
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The same network with values: normal inputs, weights that keep activations of their size."""
    model, inputs = sketch(template, seed, dtype=dtype)
    return materialise(model, inputs, seed=seed, device=device)
