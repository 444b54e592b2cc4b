"""A small chain of blocks, predicted on a shipped platform, to be changed by the tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from pytest_neuralpower import load_platform, predict
from pytest_neuralpower.platform.prediction import Prediction

Predict = Callable[..., Prediction]


class Block(nn.Module):
    """Convolution, normalisation and a ReLU beside a shortcut."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(channels, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.wide = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.wide(torch.relu(self.norm(self.narrow(x)))))


@pytest.fixture(scope="session")
def chain() -> Callable[..., nn.Module]:
    """``chain(widths, names=...)``: blocks of these widths in a row."""

    def build(widths: Sequence[int], names: Sequence[str] | None = None) -> nn.Module:
        model = nn.Sequential()
        with torch.device("meta"):
            for index, width in enumerate(widths):
                model.add_module(names[index] if names else str(index), Block(64, width))
        return model.eval()

    return build


@pytest.fixture(scope="session")
def predicted(chain: Callable[..., nn.Module]) -> Predict:
    """``predicted(widths, names=, batch=, dtype=, platform=)``: such a chain, predicted."""

    def run(
        widths: Sequence[int],
        names: Sequence[str] | None = None,
        *,
        batch: int = 4,
        dtype: torch.dtype = torch.float32,
        platform: str = "titanx",
    ) -> Prediction:
        image = torch.empty(batch, 64, 28, 28, device="meta", dtype=dtype)
        return predict(chain(widths, names).to(dtype), image, platform=load_platform(platform))

    return run
