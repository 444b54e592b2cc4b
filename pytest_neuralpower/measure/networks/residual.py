"""Residual networks: basic and bottleneck blocks."""

from __future__ import annotations

from torch import nn

from pytest_neuralpower.measure.networks.blocks import (
    SqueezeExcite,
    Sum,
    activation,
    convolution,
    head,
    image_input,
)
from pytest_neuralpower.measure.networks.draw import Draw, Network

__all__ = ["bottleneck", "residual"]


def residual(draw: Draw) -> Network:
    """ResNet's basic blocks (He et al., 2016), now and then a pool after the stem."""
    layers, given, (channels, height, _) = image_input(draw, draw.image())
    if layers and draw.chance(0.6) and height >= 12:
        layers.append(nn.MaxPool2d(3, 2, 1))
    for _ in range(draw.pick(1, 2, 2, 3)):
        stride = draw.pick(1, 1, 2)
        made = channels if stride == 1 and draw.chance(0.7) else draw.width(channels, 2 * channels)
        inner = convolution(draw, channels, made, 3, stride=stride, act=activation(draw))
        inner += convolution(draw, made, made, 3)
        layers.append(_block(draw, inner, channels, made, stride))
        channels = made
    return Network(nn.Sequential(*layers, *head(draw, channels)), (given,))


def bottleneck(draw: Draw) -> Network:
    """Bottlenecks of ResNet, ResNeXt (Xie et al., 2017) and SENet."""
    layers, given, (channels, _, _) = image_input(draw, draw.image())
    groups = draw.pick(1, 1, 1, 2, 4, 8, 16, 32, 32)
    excite = draw.chance(0.25)
    for _ in range(draw.pick(1, 2, 2, 3)):
        stride = draw.pick(1, 1, 1, 2)
        made = channels if stride == 1 and draw.chance(0.6) else draw.width(channels, 2 * channels)
        middle = max(draw.aligned(made / draw.pick(2, 4, 4)), 4)
        middle = max(middle // groups, 1) * groups
        strided_first = draw.chance(0.3)
        inner = convolution(
            *(draw, channels, middle, 1),
            stride=stride if strided_first else 1, act=activation(draw),
        )  # fmt: skip
        inner += convolution(
            *(draw, middle, middle, 3),
            stride=1 if strided_first else stride, groups=groups, act=activation(draw),
        )  # fmt: skip
        inner += convolution(draw, middle, made, 1)
        if excite:
            inner.append(SqueezeExcite(draw, made))
        layers.append(_block(draw, inner, channels, made, stride))
        channels = made
    return Network(nn.Sequential(*layers, *head(draw, channels)), (given,))


def _block(draw: Draw, inner: list[nn.Module], channels: int, made: int, stride: int) -> nn.Module:
    skip: nn.Module = nn.Identity()
    if stride > 1 or channels != made:
        skip = nn.Sequential(*convolution(draw, channels, made, 1, stride=stride))
    return Sum([nn.Sequential(*inner), skip], activation(draw), inplace=draw.chance(0.5))
