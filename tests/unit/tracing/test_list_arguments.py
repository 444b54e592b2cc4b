"""Sizes written as lists: torch takes them wherever it takes tuples, and so must the rules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own spelling

from pytest_neuralpower.tracing import trace

IMAGE = (1, 4, 16, 16)
CALLS = {
    "conv2d": lambda x, w: F.conv2d(x, w, stride=[2, 2], padding=[1, 1], dilation=[1, 1]),
    "torch.conv2d": lambda x, w: torch.conv2d(x, w, None, [1, 1], [0, 0], [1, 1]),
    "conv_transpose2d": lambda x, w: F.conv_transpose2d(x, w, stride=[2, 2], output_padding=[1, 1]),
    "max_pool2d": lambda x, _: F.max_pool2d(x, [2, 2], [2, 2]),
    "avg_pool2d": lambda x, _: F.avg_pool2d(x, [2, 2]),
    "adaptive_avg_pool2d": lambda x, _: F.adaptive_avg_pool2d(x, [3, 3]),
    "layer_norm": lambda x, _: F.layer_norm(x, [16, 16]),
    "pad": lambda x, _: F.pad(x, [1, 1]),
    "mean": lambda x, _: torch.mean(x, [2, 3]),
    "interpolate": lambda x, _: F.interpolate(x, [8, 8]),
}


class Calls(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return CALLS[self.name](x, self.weight)


@pytest.mark.parametrize("name", CALLS)
def test_a_list_is_as_good_as_a_tuple(name):
    found = trace(Calls(name), torch.randn(IMAGE))
    expected = Calls(name)(torch.randn(IMAGE))
    assert [layer.covered for layer in found] == [True]
    assert not found.fallbacks
    assert found[0].outputs[0].shape == tuple(expected.shape)
