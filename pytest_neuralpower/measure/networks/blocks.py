"""Blocks that several kinds of networks share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_neuralpower.measure.networks.draw import Draw

__all__ = [
    "Joined",
    "SqueezeExcite",
    "Stem",
    "Sum",
    "activation",
    "convolution",
    "head",
    "image_input",
    "norm",
]


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
