"""What a compiler fuses, and what that saves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from pytest_neuralpower.platform.fusion import fused
from pytest_neuralpower.tracing import trace

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Layer


def moved(layer: Layer) -> tuple[int, int]:
    return layer.cost.bytes_in, layer.cost.bytes_out


def layers_of(model: nn.Module, *inputs: torch.Tensor) -> tuple[Layer, ...]:
    found = trace(model.eval(), *inputs)
    return fused(found.layers, found.reads)


SIZE = 2 * 8 * 16 * 16 * 4


def test_a_chain_after_a_convolution_is_read_and_written_once() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 1)
    )
    conv, norm, act, last = layers_of(model, torch.empty(2, 3, 16, 16))
    assert conv.cost.bytes_out == SIZE
    assert moved(norm) == (SIZE, 0)
    assert moved(act) == (0, SIZE)
    assert last.cost.bytes_in == SIZE


def test_what_a_product_reads_too_is_written() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.relu()
            return self.linear(x) + x

    relu, _, add = layers_of(Model(), torch.empty(32, 64))
    size = 32 * 64 * 4
    assert moved(relu) == (size, size)
    assert moved(add) == (2 * size, size)  # the first kernel has ended long ago


def test_a_branch_to_two_fused_readers_stays_in_registers() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x * 2
            return x.sigmoid() * x

    double, sigmoid, product = layers_of(Model(), torch.empty(32, 64))
    size = 32 * 64 * 4
    assert moved(double) == (size, 0)
    assert moved(sigmoid) == (0, 0)
    assert moved(product) == (0, size)


def test_a_gate_waits_for_its_reduction() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.relu()
            return x * x.mean((2, 3), keepdim=True).sigmoid()

    relu, mean, gate, product = layers_of(Model(), torch.empty(2, 8, 16, 16))
    assert moved(relu) == (SIZE, SIZE)
    assert mean.cost.bytes_in == SIZE  # over a map: a kernel of its own
    assert gate.cost.bytes_out == 0
    assert moved(product) == (SIZE, SIZE)


def test_an_engine_folds_what_follows_a_convolution() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.norm(self.conv(x)) + x).relu()

    found = trace(Model().eval(), torch.empty(2, 8, 16, 16))
    conv, norm, add, relu = fused(found.layers, found.reads, folds=True)
    assert conv.cost.bytes_out == SIZE
    assert moved(norm) == (0, 0)
    assert moved(add) == (SIZE, 0)  # the other operand
    assert moved(relu) == (0, 0)


def test_a_cast_goes_with_its_kernel_and_is_made_once() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.left, self.right = nn.LayerNorm(64), nn.Linear(64, 8), nn.Linear(64, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cuda", torch.float16):
                x = self.norm(x)
                return torch.stack([self.left(x), self.right(x)])

    norm, cast, left, again, right, _ = layers_of(Model(), torch.empty(32, 64))
    size = 32 * 64 * 4
    assert (cast.op, again.op) == ("to", "to")
    assert moved(norm) == (size, 0)
    assert moved(cast) == (0, size // 2)
    assert moved(again) == (0, 0)
    assert left.cost.bytes_in == right.cost.bytes_in == size // 2


def test_parts_of_one_tensor_are_cast_each() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            left, right = (x * 2).chunk(2)
            return torch.stack([left.half(), right.half()])

    _, left, right, _ = layers_of(Model(), torch.empty(32, 64))
    assert moved(left) == moved(right) == (32 * 32 * 4, 0)


def test_what_follows_a_pool_goes_on_in_its_kernel() -> None:
    pool, relu = layers_of(nn.Sequential(nn.AvgPool2d(2), nn.ReLU()), torch.empty(2, 8, 32, 32))
    assert moved(pool) == (4 * SIZE, 0)
    assert moved(relu) == (0, SIZE)


def test_the_result_of_the_call_is_written() -> None:
    (relu,) = layers_of(nn.ReLU(), torch.empty(32, 64))
    assert moved(relu) == (32 * 64 * 4, 32 * 64 * 4)


def test_without_edges_nothing_is_fused() -> None:
    found = trace(nn.Sequential(nn.ReLU(), nn.Sigmoid()), torch.empty(2, 2))
    assert fused(found.layers, ()) == found.layers


@pytest.mark.parametrize("kind", [nn.MaxPool2d(2), nn.Conv2d(8, 8, 3)])
def test_pools_and_products_are_kernels_of_their_own(kind: nn.Module) -> None:
    relu, other = layers_of(nn.Sequential(nn.ReLU(), kind), torch.empty(2, 8, 16, 16))
    assert relu.cost.bytes_out == SIZE
    assert other.cost.bytes_in == SIZE
