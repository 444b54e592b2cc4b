"""Networks without branches: convolutions and pools, then large fully connected layers."""

from __future__ import annotations

import torch
from torch import nn

from pytest_neuralpower.measure.networks.blocks import (
    SqueezeExcite,
    activation,
    convolution,
    head,
    image_input,
)
from pytest_neuralpower.measure.networks.draw import Draw, Network

__all__ = ["plain", "sentinel"]


def plain(draw: Draw) -> Network:
    """AlexNet's and VGG's kind."""
    layers, given, (channels, height, width) = image_input(draw, draw.image())
    normed = draw.chance(0.5)
    responses = not normed and draw.chance(0.7)  # local response norms, as AlexNet has
    act = activation(draw)
    for _ in range(draw.pick(1, 2, 3, 3, 4)):
        made = draw.width(max(channels // 2, 8), max(channels * 2, 16))
        kernel = draw.pick(3, 3, 3, 3, 1, 5, 7)
        stride = draw.pick(1, 1, 1, 2)
        dilation = 2 if stride == 1 and kernel == 3 and draw.chance(0.08) else 1
        groups = 2 if draw.chance(0.1) and channels % 2 == made % 2 == 0 else 1
        layers += convolution(
            *(draw, channels, made, kernel),
            stride=stride, groups=groups, dilation=dilation, act=act, normed=normed,
        )  # fmt: skip
        channels, height, width = made, -(-height // stride), -(-width // stride)
        if responses and draw.chance(0.7):
            layers.append(nn.LocalResponseNorm(draw.pick(3, 5, 5)))
        if draw.chance(0.5) and min(height, width) >= 6:
            layers.append(
                draw.pick(
                    nn.MaxPool2d(2, 2),
                    nn.MaxPool2d(3, 2),
                    nn.MaxPool2d(3, 2, 1),
                    nn.AvgPool2d(2, 2),
                    nn.MaxPool2d(3, 2, ceil_mode=True),
                )
            )
            height, width = height // 2, width // 2
    return Network(nn.Sequential(*layers, *_classifier(draw, channels)), (given,))


def _classifier(draw: Draw, channels: int) -> list[nn.Module]:
    if draw.chance(0.5):
        return head(draw, channels)
    side = draw.pick(1, 3, 6, 7)
    features = channels * side * side
    # VGG's first fully connected layer has 103 million weights: more than any cache holds.
    most = draw.pick(24_000_000, 24_000_000, 110_000_000)
    hidden = draw.size(64, max(65, min(4096, most // features)))
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(side), nn.Flatten()]
    layers += [nn.Linear(features, hidden), nn.ReLU(inplace=True), nn.Dropout(0.5)]
    if draw.chance(0.6):
        deeper = draw.size(64, max(65, min(4096, 24_000_000 // hidden)))
        layers += [nn.Linear(hidden, deeper), nn.ReLU(inplace=True)]
        hidden = deeper
    return [*layers, nn.Linear(hidden, draw.pick(10, 1000))]


def sentinel(draw: Draw) -> Network:
    """A small network of every main kind, the same always: what is timed again to see drift."""
    draw = Draw("sentinel")
    layers = [
        nn.Conv2d(32, 96, 3, padding=1),
        nn.BatchNorm2d(96),
        nn.ReLU(inplace=True),
        nn.Conv2d(96, 96, 3, padding=1, groups=96),
        nn.Conv2d(96, 128, 1),
        SqueezeExcite(draw, 128),
        nn.MaxPool2d(2),
        nn.Flatten(2),
        nn.Linear(28 * 28, 512),
        nn.GELU(),
        nn.LayerNorm(512),
        nn.Softmax(-1),
    ]
    return Network(nn.Sequential(*layers), (torch.empty(1, 32, 56, 56),))
