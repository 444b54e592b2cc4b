"""A small network trained on scikit-learn's digits, for the tests of pruning."""

from __future__ import annotations

import functools

import torch
from sklearn.datasets import load_digits
from torch import nn

TRAINING = 1000


@functools.cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images (1797, 1, 8, 8) in 0..1 in a fixed order, and labels."""
    found = load_digits()
    images = torch.tensor(found.data, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order], torch.tensor(found.target)[order]


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 16, 48), nn.ReLU(),
        nn.Linear(48, 10),
    )  # fmt: skip


def train(model: nn.Module, epochs: int, masks: dict[str, torch.Tensor] | None = None) -> None:
    """Adam on the first 1,000 digits; weights under a mask are left to the caller."""
    images, labels = digits()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(1)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(TRAINING, generator=generator).view(-1, 50):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimiser.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Percent right on the digits that nothing is trained on."""
    images, labels = digits()
    model.eval()
    right = model(images[TRAINING:]).argmax(1) == labels[TRAINING:]
    return 100 * right.double().mean().item()


@functools.cache
def trained_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = network()
    train(model, epochs=6)
    return model.state_dict()


def trained() -> nn.Module:
    """A fresh copy of the trained network; also what the command imports."""
    model = network()
    model.load_state_dict(trained_state())
    return model.eval()


def calibration() -> torch.Tensor:
    return digits()[0][:400]


def parametrized() -> nn.Module:
    """The network with a layer whose weights follow from others."""
    model = trained()
    nn.utils.parametrizations.weight_norm(model[0])
    return model
