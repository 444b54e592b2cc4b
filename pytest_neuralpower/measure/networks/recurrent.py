"""Recurrent networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pytest_neuralpower.measure.networks.draw import Draw, Network

__all__ = ["recurrent"]


class _Recurrent(nn.Module):
    """Words or features, a recurrent layer, a score for the last step or for every one."""

    def __init__(self, begin: nn.Module, recurrent: nn.Module, end: nn.Module, last: bool) -> None:
        super().__init__()
        self.begin, self.recurrent, self.end, self.last = begin, recurrent, end, last
        self.vocabulary = 2

    def forward(self, x: Tensor) -> Tensor:
        made, _ = self.recurrent(self.begin(x))
        return self.end(made[:, -1] if self.last else made)  # type: ignore[no-any-return]


def recurrent(draw: Draw) -> Network:
    """LSTM and GRU over words, or over features."""
    batch, steps = draw.batch(), draw.size(2, 160)
    width, hidden = draw.width(16, 768), draw.width(16, 768)
    both = draw.chance(0.3)
    kind = draw.pick(nn.LSTM, nn.LSTM, nn.GRU, nn.RNN)
    layers = draw.pick(1, 1, 2)
    network = kind(width, hidden, layers, batch_first=True, bidirectional=both)
    end = nn.Linear(hidden * (1 + both), draw.size(2, 2000))
    if draw.chance(0.6):
        vocabulary = draw.size(200, 20_000)
        model = _Recurrent(nn.Embedding(vocabulary, width), network, end, draw.chance(0.5))
        model.vocabulary = vocabulary
        return Network(model, (torch.empty(batch, steps, dtype=torch.int64),))
    model = _Recurrent(nn.Identity(), network, end, draw.chance(0.5))
    return Network(model, (torch.empty(batch, steps, width),))
