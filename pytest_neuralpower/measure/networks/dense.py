"""Networks that join feature maps: dense, inception and squeeze blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pytest_neuralpower.measure.networks.blocks import (
    Joined,
    activation,
    convolution,
    head,
    image_input,
)
from pytest_neuralpower.measure.networks.draw import Draw, Network

__all__ = ["dense", "inception", "squeeze"]


class _Grown(nn.Module):
    """What comes in, and what is made of it beside."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.inner(x)), 1)


def dense(draw: Draw) -> Network:
    """DenseNet (Huang et al., 2017): norm and activation first, every layer sees all before."""
    layers, given, (channels, height, width) = image_input(draw, draw.image(most=2.0**23.5))
    growth = draw.width(8, 64)
    for _ in range(draw.pick(2, 3, 4, 5)):
        middle = growth * draw.pick(2, 4, 4)
        inner = [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        inner += convolution(draw, channels, middle, 1, act=nn.ReLU(inplace=True))
        inner.append(nn.Conv2d(middle, growth, 3, padding=1, bias=False))
        layers.append(_Grown(nn.Sequential(*inner)))
        channels += growth
        if draw.chance(0.25) and min(height, width) >= 4:
            halved = max(channels // 2, 4)
            layers += [nn.BatchNorm2d(channels), activation(draw)]
            layers += [nn.Conv2d(channels, halved, 1, bias=False), nn.AvgPool2d(2, 2)]
            channels, height, width = halved, height // 2, width // 2
    return Network(nn.Sequential(*layers, *head(draw, channels)), (given,))


def inception(draw: Draw) -> Network:
    """Inception modules (Szegedy et al., 2016): kernels of many shapes side by side."""
    layers, given, (channels, height, width) = image_input(draw, draw.image(most=2.0**23))
    act = nn.ReLU(inplace=True)
    for _ in range(draw.pick(1, 2, 2, 3)):
        branches = []
        made = 0
        for kind in draw.some(("1", "3", "5", "33", "17", "pool", "31"), draw.pick(2, 3, 4)):
            narrow = draw.aligned(max(channels / draw.pick(2, 4, 8), 8))
            wide = draw.aligned(max(channels / draw.pick(1, 2, 4), 8))
            made += wide
            branches.append(nn.Sequential(*_branch(draw, kind, (channels, narrow, wide), act)))
        layers.append(Joined(branches))
        channels = made
        if draw.chance(0.3) and min(height, width) >= 6:
            layers.append(draw.pick(nn.MaxPool2d(3, 2), nn.MaxPool2d(3, 2, 1, ceil_mode=True)))
            height, width = height // 2, width // 2
    return Network(nn.Sequential(*layers, *head(draw, channels)), (given,))


def _branch(draw: Draw, kind: str, widths: tuple[int, int, int], act: nn.Module) -> list[nn.Module]:
    channels, narrow, wide = widths
    if kind == "1":
        return convolution(draw, channels, wide, 1, act=act)
    if kind == "pool":
        pool = draw.pick(nn.AvgPool2d(3, 1, 1), nn.MaxPool2d(3, 1, 1))
        return [pool, *convolution(draw, channels, wide, 1, act=act)]
    parts = convolution(draw, channels, narrow, 1, act=act)
    if kind in ("3", "5"):
        return parts + convolution(draw, narrow, wide, int(kind), act=act)
    if kind == "33":
        parts += convolution(draw, narrow, narrow, 3, act=act)
        return parts + convolution(draw, narrow, wide, 3, act=act)
    across = draw.pick(5, 7) if kind == "17" else 3
    parts += convolution(draw, narrow, narrow, (1, across), act=act)
    return parts + convolution(draw, narrow, wide, (across, 1), act=act)


def squeeze(draw: Draw) -> Network:
    """SqueezeNet's fire modules (Iandola et al., 2016), without norms."""
    layers, given, (channels, height, width) = image_input(draw, draw.image(most=2.0**23))
    act = nn.ReLU(inplace=True)
    for _ in range(draw.pick(1, 2, 3)):
        narrow = draw.width(8, max(channels // 2, 16))
        wide = draw.width(2 * narrow, 6 * narrow)
        layers += convolution(draw, channels, narrow, 1, act=act, normed=False)
        layers.append(
            Joined(
                [
                    nn.Sequential(*convolution(draw, narrow, wide, 1, act=act, normed=False)),
                    nn.Sequential(*convolution(draw, narrow, wide, 3, act=act, normed=False)),
                ]
            )
        )
        channels = 2 * wide
        if draw.chance(0.4) and min(height, width) >= 6:
            layers.append(nn.MaxPool2d(3, 2, ceil_mode=draw.chance(0.5)))
            height, width = height // 2, width // 2
    return Network(nn.Sequential(*layers, *head(draw, channels)), (given,))
