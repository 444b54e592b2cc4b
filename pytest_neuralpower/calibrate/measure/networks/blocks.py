"""Draws: sizes of a random network, log-uniform, some aligned and some odd; and shared blocks."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

T = TypeVar("T")


class Network(NamedTuple):
    """A model and the inputs of one call; of words, how many the model tells apart."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    vocabulary: int = 2


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

    def aligned(self, width: float) -> int:
        """A number of channels or features: in three of four draws a multiple of 32, 16, 8 or 4,
        as libraries' vectors and most architectures are; otherwise any."""
        step = self.pick(32, 16, 8, 8, 4, 1, 1, 32)
        return max(step, round(width / step) * step) if width > step else max(round(width), 1)

    def width(self, low: int, high: int) -> int:
        """A drawn size, aligned."""
        return self.aligned(self.size(low, high))

    def batch(self) -> int:
        return self.pick(1, 1, 1, 1, 2, 3, 4, 4, 5, 8, 16)

    def image(self, *, most: float = 2.0**24.5) -> tuple[int, int, int, int]:
        """Shape of a feature map: how large it is first, then how that is spread over the axes.

        ``most`` bounds its elements; the large end is some tens of megabytes on purpose, where
        caches end and allocators change their ways. Three of twenty maps are not square.
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
        width = self.aligned(min(channels, 1536.0))
        square = self.chance(0.85)
        return batch, width, across, across if square else max(3, round(across * self.log(0.5, 2)))


class Composed(nn.Module):
    """A function of the input, and the modules and parameters that it uses.

    Parameters are handed to ``function`` after the input, as they are replaced when a sketch gets
    its values.
    """

    def __init__(
        self, function: Callable[..., Tensor], *parts: nn.Module, **parameters: nn.Parameter
    ) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(parts)
        for name, parameter in parameters.items():
            self.register_parameter(name, parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parameters(recurse=False))


# -- Blocks that several kinds of networks share.


def activation(draw: Draw) -> nn.Module:
    """An activation; ReLU half the time."""
    inplace = draw.chance(0.5)
    if draw.chance(0.5):
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


def _norm(draw: Draw, channels: int) -> nn.Module:
    """Batch norm, and now and then another."""
    if draw.chance(0.85):
        return nn.BatchNorm2d(channels)
    if draw.chance(0.5):
        groups = [count for count in (32, 16, 8, 4, 2, 1) if channels % count == 0]
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
    bias = not normed or draw.chance(0.1)
    parts: list[nn.Module] = [
        nn.Conv2d(cin, cout, sides, stride, padding, dilation, groups, bias=bias)
    ]
    if normed:
        parts.append(_norm(draw, cout))
    return parts if act is None else [*parts, act]


def added(
    draw: Draw, body: nn.Module, skip: nn.Module, act: nn.Module, inplace: float
) -> nn.Module:
    """What two branches make, added up (in place in a share of draws), then an activation."""
    in_place = draw.chance(inplace)

    def forward(x: Tensor) -> Tensor:
        total: Tensor = body(x)
        if in_place:
            total += skip(x)
        else:
            total = total + skip(x)
        return act(total)  # type: ignore[no-any-return]

    return Composed(forward, body, skip, act)


def joined(*branches: nn.Module) -> nn.Module:
    """What branches make, joined along the channels."""
    return Composed(lambda x: torch.cat([branch(x) for branch in branches], 1), *branches)


def squeeze_excite(draw: Draw, channels: int) -> nn.Module:
    """Channels weighed by what their means say (Hu et al., 2018)."""
    inner = max(channels // draw.pick(4, 8, 16, 24), 4)
    pooled = draw.chance(0.7)
    ends: list[nn.Module]
    if draw.chance(0.7):
        ends = [nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)]
        shape: tuple[int, ...] = (channels, 1, 1)
    else:
        ends = [nn.Linear(channels, inner), nn.Linear(inner, channels)]
        shape = (channels,)
    act = draw.pick(nn.ReLU(inplace=True), nn.SiLU(), nn.ReLU())
    gate = draw.pick(nn.Sigmoid(), nn.Sigmoid(), nn.Hardsigmoid())
    weigh = nn.Sequential(ends[0], act, ends[1], gate)
    inplace = draw.chance(0.2)

    def forward(x: Tensor) -> Tensor:
        mean = adaptive_avg_pool2d(x, 1) if pooled else x.mean((2, 3), keepdim=True)
        weight = weigh(mean.view(x.shape[0], *shape)).view(x.shape[0], x.shape[1], 1, 1)
        return x.mul_(weight) if inplace else x * weight

    return Composed(forward, weigh)


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
    kernel = draw.pick(3, 3, 5, 7, 7, 11) if stride > 1 else draw.pick(3, 3, 5)
    stem = convolution(draw, 3, channels, kernel, stride=stride, act=activation(draw))
    return [nn.Sequential(*stem)], given, (channels, height, width)


def head(draw: Draw, channels: int) -> list[nn.Module]:
    """How a network ends: pooled and classified."""
    classes = draw.pick(10, 100, 1000, draw.size(16, 4000))
    pooled: nn.Module = nn.AdaptiveAvgPool2d(1)
    if draw.chance(0.3):
        return [pooled, nn.Conv2d(channels, classes, 1), nn.Flatten()]
    return [pooled, nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, classes)]
