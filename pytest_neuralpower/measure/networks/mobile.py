"""Networks for phones: inverted residuals with squeeze and excitation, shuffled groups."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pytest_neuralpower.measure.networks.blocks import (
    Joined,
    SqueezeExcite,
    Sum,
    activation,
    convolution,
    head,
    image_input,
)
from pytest_neuralpower.measure.networks.draw import Draw, Network

__all__ = ["inverted", "shuffled"]


def inverted(draw: Draw) -> Network:
    """MobileNet v1 to v3, EfficientNet: depthwise convolutions, often after a wider one."""
    layers, given, (channels, _, _) = image_input(draw, draw.image(most=2.0**23.5))
    act = activation(draw)
    excite = draw.chance(0.4)
    for _ in range(draw.pick(1, 2, 3, 3)):
        stride = draw.pick(1, 1, 1, 2)
        made = channels if stride == 1 and draw.chance(0.6) else draw.width(channels, 2 * channels)
        ratio = draw.pick(1, 1, 2, 3, 4, 6, 6)
        wide = channels * ratio
        inner = convolution(draw, channels, wide, 1, act=act) if ratio > 1 else []
        kernel = draw.pick(3, 3, 3, 5, 5, 7)
        inner += convolution(draw, wide, wide, kernel, stride=stride, groups=wide, act=act)
        if excite:
            inner.append(SqueezeExcite(draw, wide))
        inner += convolution(draw, wide, made, 1, act=act if ratio == 1 else None)
        block: nn.Module = nn.Sequential(*inner)
        if stride == 1 and made == channels and ratio > 1:
            block = Sum([block, nn.Identity()], nn.Identity(), inplace=draw.chance(0.3))
        layers.append(block)
        channels = made
    if draw.chance(0.5):
        wider = draw.width(channels, 4 * channels)
        layers += convolution(draw, channels, wider, 1, act=act)
        channels = wider
    return Network(nn.Sequential(*layers, *head(draw, channels)), (given,))


class _Shuffle(nn.Module):
    """Channels dealt out anew over the groups."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        split = x.view(batch, self.groups, channels // self.groups, height, width)
        return split.transpose(1, 2).contiguous().view(batch, channels, height, width)


class _HalfKept(nn.Module):
    """Half of the channels pass by (ShuffleNet v2, Ma et al., 2018)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.shuffle = _Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = torch.chunk(x, 2, 1)
        return self.shuffle(torch.cat((kept, self.inner(changed)), 1))  # type: ignore[no-any-return]


def shuffled(draw: Draw) -> Network:
    """ShuffleNet v1 and v2, CondenseNet's kind: grouped 1x1 convolutions."""
    layers, given, (channels, _, _) = image_input(draw, draw.image(most=2.0**23))
    second = draw.chance(0.5)
    groups = 2 if second else draw.pick(2, 3, 4, 8)
    channels_now = max(channels // (4 * groups), 1) * 4 * groups
    if channels_now != channels:
        layers += convolution(draw, channels, channels_now, 1, act=nn.ReLU(inplace=True))
        channels = channels_now
    for _ in range(draw.pick(2, 3, 4)):
        stride = draw.pick(1, 1, 1, 2)
        if second:
            layers.append(_second_block(draw, channels, stride))
            channels *= stride
        else:
            layers.append(_first_block(draw, channels, stride, groups))
            channels *= stride
    return Network(nn.Sequential(*layers, *head(draw, channels)), (given,))


def _second_block(draw: Draw, channels: int, stride: int) -> nn.Module:
    half = channels // 2
    taken = half if stride == 1 else channels
    inner = convolution(draw, taken, half * stride, 1, act=nn.ReLU(inplace=True))
    inner += convolution(
        draw, half * stride, half * stride, draw.pick(3, 3, 5), stride=stride, groups=half * stride
    )
    inner += convolution(draw, half * stride, half * stride, 1, act=nn.ReLU(inplace=True))
    if stride == 1:
        return _HalfKept(nn.Sequential(*inner))
    other = convolution(draw, channels, channels, 3, stride=2, groups=channels)
    other += convolution(draw, channels, channels, 1, act=nn.ReLU(inplace=True))
    return nn.Sequential(Joined([nn.Sequential(*other), nn.Sequential(*inner)]), _Shuffle(2))


def _first_block(draw: Draw, channels: int, stride: int, groups: int) -> nn.Module:
    middle = max(channels // (4 * groups), 1) * groups
    inner = convolution(draw, channels, middle, 1, groups=groups, act=nn.ReLU(inplace=True))
    inner.append(_Shuffle(groups))
    inner += convolution(draw, middle, middle, 3, stride=stride, groups=middle)
    inner += convolution(draw, middle, channels, 1, groups=groups)
    body = nn.Sequential(*inner)
    if stride == 1:
        return Sum([body, nn.Identity()], nn.ReLU(inplace=True), inplace=draw.chance(0.3))
    pooled = nn.AvgPool2d(3, 2, 1)
    return nn.Sequential(Joined([body, pooled]), activation(draw))
