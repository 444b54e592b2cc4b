"""Networks that make a map larger again: for segmentation and images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pytest_neuralpower.measure.networks.blocks import activation, convolution, image_input
from pytest_neuralpower.measure.networks.draw import Draw, Network

__all__ = ["upsampling"]


class _Level(nn.Module):
    """Down, inner levels, up again, and joined with what was there before (U-Net)."""

    def __init__(self, down: nn.Module, inner: nn.Module, up: nn.Module, *, joined: bool) -> None:
        super().__init__()
        self.down, self.inner, self.up, self.joined = down, inner, up, joined

    def forward(self, x: Tensor) -> Tensor:
        above = self.up(self.inner(self.down(x)))
        above = above[:, :, : x.shape[2], : x.shape[3]]
        return torch.cat((x, above), 1) if self.joined else x + above


def upsampling(draw: Draw) -> Network:
    """U-Net's kind: pools or strides down, transposed convolutions or interpolation up."""
    batch, channels, height, width = draw.image(most=2.0**22.5)
    height, width = max(height // 4, 2) * 4, max(width // 4, 2) * 4
    layers, given, (channels, _, _) = image_input(draw, (batch, channels, height, width))
    joined = draw.chance(0.6)
    level: nn.Module = nn.Identity()
    for depth in reversed(range(draw.pick(1, 2))):
        outer = channels * 2**depth
        wide = 2 * outer
        act = activation(draw)
        if draw.chance(0.5):
            down = [nn.MaxPool2d(2), *convolution(draw, outer, wide, 3, act=act)]
        else:
            down = convolution(draw, outer, wide, 3, stride=2, act=act)
        inside = wide if isinstance(level, nn.Identity) else (2 * wide if joined else wide)
        level = _Level(
            nn.Sequential(*down), level, nn.Sequential(*_up(draw, inside, outer)), joined=joined
        )
    channels = 2 * channels if joined else channels
    last = nn.Conv2d(channels, draw.pick(1, 3, 21), 1)
    return Network(nn.Sequential(*layers, level, last), (given,))


def _up(draw: Draw, cin: int, cout: int) -> list[nn.Module]:
    if draw.chance(0.5):
        kernel = draw.pick(2, 2, 4, 3)
        padding, further = {2: (0, 0), 4: (1, 0), 3: (1, 1)}[kernel]
        return [nn.ConvTranspose2d(cin, cout, kernel, 2, padding, further)]
    mode = draw.pick("nearest", "bilinear")
    upsample = nn.Upsample(scale_factor=2, mode=mode)
    return [upsample, *convolution(draw, cin, cout, draw.pick(1, 3), act=activation(draw))]
