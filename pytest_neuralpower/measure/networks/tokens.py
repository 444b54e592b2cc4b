"""Networks between convolution and attention: channels last, tokens mixed, windows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pytest_neuralpower.measure.networks.attention import Attention
from pytest_neuralpower.measure.networks.draw import Draw, Network

__all__ = ["convolutional_mixer", "windows"]


class _Next(nn.Module):
    """ConvNeXt's block (Liu et al., 2022): a depthwise convolution, then layers over channels."""

    def __init__(self, channels: int, kernel: int, ratio: int, *, linear: bool) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.linear = linear
        if linear:
            self.up: nn.Module = nn.Linear(channels, ratio * channels)
            self.down: nn.Module = nn.Linear(ratio * channels, channels)
        else:
            self.up = nn.Conv2d(channels, ratio * channels, 1)
            self.down = nn.Conv2d(ratio * channels, channels, 1)
        self.act = nn.GELU()
        self.scale = nn.Parameter(torch.ones(channels if linear else (channels, 1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        made = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        if self.linear:
            made = (self.scale * self.down(self.act(self.up(made)))).permute(0, 3, 1, 2)
        else:
            made = self.scale * self.down(self.act(self.up(made.permute(0, 3, 1, 2))))
        return x + made  # type: ignore[no-any-return]


class _Mixer(nn.Module):
    """MLP-Mixer's block (Tolstikhin et al., 2021): over the tokens, then over the channels."""

    def __init__(self, tokens: int, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.other = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, hidden), nn.GELU(), nn.Linear(hidden, tokens))
        self.channels = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.other(x))  # type: ignore[no-any-return]


def convolutional_mixer(draw: Draw) -> Network:
    """ConvNeXt's or MLP-Mixer's kind."""
    if draw.chance(0.3):
        batch, tokens, width = draw.batch(), draw.size(16, 400), draw.width(32, 768)
        blocks = [_Mixer(tokens, width, draw.width(32, 512)) for _ in range(draw.pick(1, 2))]
        return Network(nn.Sequential(*blocks), (torch.empty(batch, tokens, width),))
    batch, channels, height, wide = draw.image(most=2.0**22)
    ratio, kernel, linear = draw.pick(2, 4, 4), draw.pick(3, 5, 7, 7), draw.chance(0.6)
    layers: list[nn.Module] = [
        _Next(channels, kernel, ratio, linear=linear) for _ in range(draw.pick(1, 2))
    ]
    if height >= 4 and draw.chance(0.5):
        layers.append(nn.Conv2d(channels, 2 * channels, 2, 2))
    return Network(nn.Sequential(*layers), (torch.empty(batch, channels, height, wide),))


class _Windows(nn.Module):
    """Attention within shifted windows (Swin, Liu et al., 2021), and a feed-forward."""

    def __init__(self, attention: nn.Module, width: int, window: int, *, shifted: bool) -> None:
        super().__init__()
        self.attention, self.window, self.shifted = attention, window, shifted
        self.norm, self.other = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, height, across, width = x.shape
        side = self.window
        made = self.norm(x)
        if self.shifted:
            made = torch.roll(made, (-(side // 2), -(side // 2)), (1, 2))
        rows, columns = height // side, across // side
        made = made.view(batch, rows, side, columns, side, width).transpose(2, 3)
        made = self.attention(made.reshape(-1, side * side, width))
        made = made.view(batch, rows, columns, side, side, width).transpose(2, 3)
        made = made.reshape(batch, height, across, width)
        if self.shifted:
            made = torch.roll(made, (side // 2, side // 2), (1, 2))
        x = x + made
        return x + self.feed(self.other(x))  # type: ignore[no-any-return]


def windows(draw: Draw) -> Network:
    """Swin's kind, with the merging of patches."""
    batch = draw.pick(1, 1, 2, 4)
    heads, each, window = draw.pick(2, 3, 4, 6), draw.pick(16, 32, 32), draw.pick(4, 7, 7, 8)
    width, across = heads * each, window * draw.pick(1, 2, 4)
    layers: list[nn.Module] = [
        _Windows(
            Attention(
                *(heads, each),
                shared=1, causal=False, fused=True, manual=draw.chance(0.3), rotary=False,
                bias=True,
            ),
            width, window, shifted=shifted,
        )
        for shifted in (False, True)
    ]  # fmt: skip
    return Network(nn.Sequential(*layers), (torch.empty(batch, across, across, width),))
