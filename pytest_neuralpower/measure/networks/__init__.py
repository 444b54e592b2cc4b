"""Random small networks: what layers are timed inside, each drawn from a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch.overrides import TorchFunctionMode

from pytest_neuralpower.measure.networks.dense import dense, inception, squeeze
from pytest_neuralpower.measure.networks.draw import Draw
from pytest_neuralpower.measure.networks.mobile import inverted, shuffled
from pytest_neuralpower.measure.networks.plain import plain, sentinel
from pytest_neuralpower.measure.networks.recurrent import recurrent
from pytest_neuralpower.measure.networks.residual import bottleneck, residual
from pytest_neuralpower.measure.networks.tokens import convolutional_mixer, windows
from pytest_neuralpower.measure.networks.transformer import decoder, encoder, patches
from pytest_neuralpower.measure.networks.upsampling import upsampling
from pytest_neuralpower.measure.networks.values import materialise

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from pytest_neuralpower.measure.networks.draw import Network

__all__ = ["TEMPLATES", "build", "sketch"]

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
