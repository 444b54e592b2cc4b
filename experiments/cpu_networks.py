"""Networks that characterizing-pytorch-power measured on the two processors: 512 images of 64x64.

``src/nets/torch_nets.py`` and ``src/nets/out/`` of github.com/willowec/characterizing-pytorch-power
(MIT): torchvision's networks with a further layer of 1000 to 10 features, forward pass, mean of 10
passes (Raptor Lake) or one (Broadwell-EP) over CIFAR-10 images enlarged to 64 x 64. The energy of
ResNet-18 on Broadwell-EP is negative there (the counter wrapped) and left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

BATCH = 512


class Network(NamedTuple):
    """One network and its measured forward pass: ms, and J of the whole package."""

    name: str
    factory: Callable[[], nn.Module]
    platform: str
    measured_ms: float
    measured_j: float | None


def alexnet() -> nn.Module:
    """torchvision's AlexNet, then a layer of 10 classes."""
    layers: list[nn.Module] = []
    sizes = ((3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1),
             (256, 256, 3, 1, 1))  # fmt: skip
    for index, (cin, cout, kernel, stride, padding) in enumerate(sizes):
        layers += [nn.Conv2d(cin, cout, kernel, stride, padding), nn.ReLU(inplace=True)]
        if index in (0, 1, 4):
            layers.append(nn.MaxPool2d(3, 2))
    layers += [nn.AdaptiveAvgPool2d(6), nn.Flatten()]
    for cin, cout in ((256 * 36, 4096), (4096, 4096)):
        layers += [nn.Dropout(), nn.Linear(cin, cout), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(4096, 1000), nn.Linear(1000, 10)).eval()


class _Block(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(),
            nn.Conv2d(cout, cout, 3, 1, 1, bias=False), nn.BatchNorm2d(cout),
        )  # fmt: skip
        self.skip = nn.Sequential()
        if stride > 1:
            self.skip = nn.Sequential(
                nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.path(x) + self.skip(x))


def resnet18() -> nn.Module:
    """torchvision's ResNet-18, then a layer of 10 classes."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    cin = 64
    for cout in (64, 128, 256, 512):
        layers += [_Block(cin, cout, 1 if cin == cout else 2), _Block(cout, cout, 1)]
        cin = cout
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000), nn.Linear(1000, 10)]
    return nn.Sequential(*layers).eval()


NETWORKS = (
    Network("AlexNet", alexnet, "cpu-raptorlake", 253.6, 18.59),
    Network("ResNet-18", resnet18, "cpu-raptorlake", 365.7, 26.13),
    Network("AlexNet", alexnet, "cpu-broadwell", 467.1, 16.16),
    Network("ResNet-18", resnet18, "cpu-broadwell", 545.0, None),
)


def meta_call(network: Network) -> tuple[nn.Module, torch.Tensor]:
    """The network and its input on the meta device."""
    with torch.device("meta"):
        return network.factory(), torch.empty(BATCH, 3, 64, 64)
