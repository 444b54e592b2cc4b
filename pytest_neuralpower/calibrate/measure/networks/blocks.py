"""Draws: sizes of a random network, log-uniform, some aligned and some odd."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

__all__ = [
    "Draw",
    "Joined",
    "Network",
    "SqueezeExcite",
    "Stem",
    "Sum",
    "activation",
    "convolution",
    "head",
    "image_input",
    "norm",
]


T = TypeVar("T")


class Network(NamedTuple):
    """A model and the inputs of one call."""

    model: nn.Module
    inputs: tuple[Tensor, ...]


class Draw:
    """A seeded source of sizes.

    Python's own generator: its numbers for a seed are the same on every machine and version.
    """

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def log(self, low: float, high: float) -> float:
        """Log-uniform number."""
        return float(low * (high / low) ** self._random.random())

    def size(self, low: int, high: int) -> int:
        """Log-uniform whole number, both ends included."""
        return min(max(round(self.log(low, high)), low), high)

    def chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def pick(self, *choices: T) -> T:
        return self._random.choice(choices)

    def some(self, choices: Sequence[T], count: int) -> list[T]:
        return self._random.sample(list(choices), count)

    def width(self, low: int, high: int) -> int:
        """A number of channels or features: in three of four draws a multiple of 32, 16, 8 or 4,
        as libraries' vectors and most architectures are; otherwise any."""
        found = self.size(low, high)
        step = self.pick(32, 16, 8, 8, 4, 1, 1, 32)
        return max(step, round(found / step) * step) if found > step else found

    def batch(self) -> int:
        return self.pick(1, 1, 1, 1, 2, 3, 4, 4, 5, 8, 16)

    def image(self, *, most: float = 2.0**24.5) -> tuple[int, int, int, int]:
        """Shape of a feature map: how large it is first, then how that is spread over the axes.

        ``most`` bounds its elements; the large end is some tens of megabytes on purpose, where
        caches end and allocators change their ways.
        """
        batch = self.batch()
        # Drawn as the square of a uniform share: more large maps than small ones.
        share = 1.0 - (1.0 - self._random.random()) ** 1.5
        elements = 2.0**11 * (most / 2.0**11) ** share
        across = self.size(5, 240)
        channels = elements / (batch * across * across)
        if channels < 3:
            across = max(int(math.sqrt(elements / (batch * 3))), 3)
            channels = 3.0
        return batch, self.aligned(min(channels, 1536.0)), across, self._beside(across)

    def aligned(self, width: float) -> int:
        """A drawn width, put on a multiple as :meth:`width` does."""
        step = self.pick(32, 16, 8, 8, 4, 1, 1, 32)
        return max(step, round(width / step) * step) if width > step else max(round(width), 1)

    def _beside(self, across: int) -> int:
        """The map's other side: mostly the same."""
        return across if self.chance(0.85) else max(3, round(across * self.log(0.5, 2.0)))


# -- Blocks that several kinds of networks share.


def activation(draw: Draw, *, common: bool = True) -> nn.Module:
    """An activation; ReLU half the time where ``common``."""
    inplace = draw.chance(0.5)
    if common and draw.chance(0.5):
        return nn.ReLU(inplace=inplace)
    return draw.pick(
        nn.ReLU(inplace=inplace),
        nn.ReLU6(inplace=inplace),
        nn.SiLU(inplace=inplace),
        nn.Hardswish(inplace=inplace),
        nn.LeakyReLU(0.1, inplace=inplace),
        nn.GELU(),
        nn.Sigmoid(),
        nn.Tanh(),
        nn.ELU(inplace=inplace),
        nn.Mish(inplace=inplace),
        nn.Hardsigmoid(inplace=inplace),
        nn.PReLU(1),
    )


def norm(draw: Draw, channels: int) -> nn.Module:
    """Batch norm, and now and then another."""
    if draw.chance(0.85):
        return nn.BatchNorm2d(channels)
    if draw.chance(0.5):
        groups = [each for each in (32, 16, 8, 4, 2, 1) if channels % each == 0]
        return nn.GroupNorm(draw.pick(*groups), channels)
    return nn.InstanceNorm2d(channels, affine=True)


def convolution(
    draw: Draw,
    cin: int,
    cout: int,
    kernel: int | tuple[int, int],
    *,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
    act: nn.Module | None = None,
    normed: bool = True,
) -> list[nn.Module]:
    """A convolution of the same size, its norm, its activation."""
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (dilation * (sides[0] // 2), dilation * (sides[1] // 2))
    parts: list[nn.Module] = [
        nn.Conv2d(
            *(cin, cout, sides, stride, padding, dilation, groups),
            bias=not normed or draw.chance(0.1),
        )
    ]
    if normed:
        parts.append(norm(draw, cout))
    if act is not None:
        parts.append(act)
    return parts


class Sum(nn.Module):
    """Branches added up, then an activation."""

    def __init__(self, branches: Sequence[nn.Module], act: nn.Module, *, inplace: bool) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.act = act
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        total = self.branches[0](x)
        for branch in self.branches[1:]:
            if self.inplace:
                total += branch(x)
            else:
                total = total + branch(x)
        return self.act(total)  # type: ignore[no-any-return]


class Joined(nn.Module):
    """Branches joined along the channels."""

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class SqueezeExcite(nn.Module):
    """Channels weighed by what their means say (Hu et al., 2018)."""

    def __init__(self, draw: Draw, channels: int) -> None:
        super().__init__()
        inner = max(channels // draw.pick(4, 8, 16, 24), 4)
        self.pooled = draw.chance(0.7)
        if draw.chance(0.7):
            self.squeeze: nn.Module = nn.Conv2d(channels, inner, 1)
            self.excite: nn.Module = nn.Conv2d(inner, channels, 1)
            self.shape: tuple[int, ...] = (channels, 1, 1)
        else:
            self.squeeze, self.excite = nn.Linear(channels, inner), nn.Linear(inner, channels)
            self.shape = (channels,)
        self.act = draw.pick(nn.ReLU(inplace=True), nn.SiLU(), nn.ReLU())
        self.gate = draw.pick(nn.Sigmoid(), nn.Sigmoid(), nn.Hardsigmoid())
        self.inplace = draw.chance(0.2)

    def forward(self, x: Tensor) -> Tensor:
        if self.pooled:
            mean = nn.functional.adaptive_avg_pool2d(x, 1)
        else:
            mean = x.mean((2, 3), keepdim=True)
        weight = self.gate(self.excite(self.act(self.squeeze(mean.view(x.shape[0], *self.shape)))))
        weight = weight.view(x.shape[0], x.shape[1], 1, 1)
        return x.mul_(weight) if self.inplace else x * weight


class Stem(nn.Module):
    """From an image of three channels to a feature map of given size."""

    def __init__(self, draw: Draw, channels: int, stride: int) -> None:
        super().__init__()
        kernel = draw.pick(3, 3, 5, 7, 7, 11) if stride > 1 else draw.pick(3, 3, 5)
        parts = convolution(draw, 3, channels, kernel, stride=stride, act=activation(draw))
        self.body = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]


def image_input(
    draw: Draw, shape: tuple[int, int, int, int]
) -> tuple[list[nn.Module], Tensor, tuple[int, int, int]]:
    """How a network begins: at a feature map of this shape, or at an image before a stem.

    Returns
    -------
    stem, input, (channels, height, width)
        Of what follows the stem.
    """
    batch, channels, height, width = shape
    if height < 16 or not draw.chance(0.45):
        return [], torch.empty(shape), (channels, height, width)
    stride = draw.pick(1, 2, 2, 4) if height * width <= 128 * 128 else 1
    channels = min(channels, draw.width(16, 96))
    given = torch.empty(batch, 3, height * stride, width * stride)
    return [Stem(draw, channels, stride)], given, (channels, height, width)


def head(draw: Draw, channels: int) -> list[nn.Module]:
    """How a network ends: pooled and classified."""
    classes = draw.pick(10, 100, 1000, draw.size(16, 4000))
    pooled: nn.Module = nn.AdaptiveAvgPool2d(1)
    if draw.chance(0.3):
        return [pooled, nn.Conv2d(channels, classes, 1), nn.Flatten()]
    return [pooled, nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, classes)]
