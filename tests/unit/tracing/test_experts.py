"""A mixture of experts reads the experts that its tokens choose."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_neuralpower.errors import TraceError
from pytest_neuralpower.layers import Layer, expected_experts
from pytest_neuralpower.platform.catalog import load_platform, predict
from pytest_neuralpower.tracing import trace

WIDTH, HIDDEN = 2048, 1024


class Experts(nn.Module):
    """Each token's ``chosen`` best experts by ``grouped_mm``, as transformers runs them."""

    def __init__(self, experts: int, chosen: int, *, ranked: bool = True) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, experts, bias=False)
        self.up = nn.Parameter(torch.empty(experts, WIDTH, HIDDEN))
        self.chosen, self.ranked = chosen, ranked
        self.to(torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        experts = self.up.shape[0]
        if self.ranked:
            picked = self.gate(x).softmax(-1).topk(self.chosen, -1).indices.flatten()
        else:
            picked = torch.arange(len(x) * self.chosen) % experts
        rows = x[picked.argsort() // self.chosen]
        ends = (picked[:, None] == torch.arange(experts)).sum(0).cumsum(0).to(torch.int32)
        return nn.functional.grouped_mm(rows, self.up, offs=ends)


def product(experts: int, chosen: int, tokens: int, *, ranked: bool = True) -> Layer:
    with torch.device("meta"):
        model = Experts(experts, chosen, ranked=ranked).eval()
    x = torch.empty(tokens, WIDTH, dtype=torch.bfloat16, device="meta")
    (layer,) = [layer for layer in trace(model, x) if layer.op == "grouped_mm"]
    return layer


@pytest.mark.parametrize(
    ("experts", "chosen", "tokens", "read"),
    [
        (8, 2, 1, 2.0),
        (128, 8, 1, 8.0),
        (4, 4, 5, 4.0),
        (8, 2, 2, 8 * (1 - 0.75**2)),
        (128, 8, 1000, 128.0),
    ],
)
def test_experts_that_tokens_choose_are_read(
    experts: int, chosen: int, tokens: int, read: float
) -> None:
    layer = product(experts, chosen, tokens)
    rows = tokens * chosen
    assert layer.macs == rows * WIDTH * HIDDEN
    assert expected_experts(layer) == pytest.approx(read)
    moved = 2 * (rows * (WIDTH + HIDDEN) + read * WIDTH * HIDDEN)
    assert layer.cost.bytes_moved == pytest.approx(moved, abs=1)


class Differentiated(Experts):
    """It differentiates inside forward: only the dispatcher sees its operations."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            out = super().forward(x)
            torch.autograd.grad(out.sum(), self.gate.weight, allow_unused=True)
        return out


def test_the_dispatcher_sees_the_same_choice() -> None:
    traced = trace(Differentiated(8, 2).eval(), torch.zeros(4, WIDTH, dtype=torch.bfloat16))
    assert traced.route == "aten"
    (layer, *_) = [layer for layer in traced if layer.op == "grouped_mm"]
    assert layer == product(8, 2, 4)


def test_experts_read_may_be_told() -> None:
    model, x = Experts(8, 2).eval(), torch.zeros(4, WIDTH, dtype=torch.bfloat16)
    told = trace(model, x).with_experts(3)
    (layer,) = [layer for layer in told if layer.op == "grouped_mm"]
    assert expected_experts(layer) == 3
    assert told.notes == (
        "Given: the tokens of one call choose 3 experts, whose weights are read.",
    )
    few, all_of_them = (predict(model, x, platform="h200", experts=experts) for experts in (1, 1.0))
    assert few.runtime_ms < all_of_them.runtime_ms
    assert few.notes != all_of_them.notes
    with pytest.raises(TraceError, match="experts=0: allowed: 'uniform'"):
        predict(model, x, platform="h200", experts=0)


def test_rows_without_a_ranking_choose_one_expert_each() -> None:
    assert expected_experts(product(8, 2, 3, ranked=False)) == pytest.approx(8 * (1 - 0.875**6))


def test_assumption_is_stated() -> None:
    model = Experts(8, 2)
    (note,) = trace(model.eval(), torch.zeros(4, WIDTH, dtype=torch.bfloat16)).notes
    assert "4 tokens choose 2 of 8 experts" in note
    assert "5.469" in note


def test_experts_that_are_not_chosen_have_no_price() -> None:
    """One token's call costs the same however many experts it does not choose."""
    few, many = product(8, 2, 1), product(256, 2, 1)
    prices = load_platform("h200").predict([few, many]).layers
    assert prices[1].runtime_ms == pytest.approx(prices[0].runtime_ms, rel=0.02)
