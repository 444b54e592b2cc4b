"""FlexAttention costs the blocks that its mask keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from pytest_neuralpower.tracing import trace

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

HEADS, WIDTH = 4, 16


def causal(length: int) -> BlockMask:
    def kept(_batch: Any, _head: Any, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        return row >= column

    return create_block_mask(kept, None, None, length, length, device="cpu")


def biased(
    score: torch.Tensor, _batch: Any, _head: Any, row: torch.Tensor, column: torch.Tensor
) -> torch.Tensor:
    return score + (row - column)


class Attend(nn.Module):
    def __init__(self, *, masked: bool = False, key_heads: int = HEADS) -> None:
        super().__init__()
        self.query = nn.Linear(64, HEADS * WIDTH, bias=False)
        self.key = nn.Linear(64, key_heads * WIDTH, bias=False)
        self.masked, self.grouped = masked, key_heads != HEADS
        self.attention: Any = flex_attention
        self.block: BlockMask | None = None
        self.reads = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        query = self.query(x).view(batch, length, HEADS, WIDTH).transpose(1, 2)
        key = self.key(x).view(batch, length, -1, WIDTH).transpose(1, 2)
        block = self.block or (causal(length) if self.masked else None)
        out = self.attention(
            query, key, key, score_mod=biased, block_mask=block, enable_gqa=self.grouped
        )  # fmt: skip
        if self.reads and out.sum() > 0:
            out = -out
        return out.transpose(1, 2).reshape(batch, length, HEADS * WIDTH)


def attended(model: nn.Module, length: int, route: str = "function") -> int:
    """Scores of one head of one sample."""
    with torch.no_grad():
        result = trace(model, torch.randn(2, length, 64))
    assert result.route == route
    (layer,) = [layer for layer in result if layer.kind == "attention"]
    assert layer.cost.flops == 2 * layer.macs
    return layer.macs // (2 * HEADS * 2 * WIDTH)


@pytest.mark.parametrize("key_heads", [HEADS, 2])
def test_without_a_mask_every_score_counts(key_heads: int) -> None:
    assert attended(Attend(key_heads=key_heads), 256) == 256 * 256


@pytest.mark.parametrize(
    ("length", "kept"),
    [(128, 128 * 128), (256, 3 * 128 * 128), (512, 10 * 128 * 128), (200, 128 * 128 + 72 * 200)],
)
@pytest.mark.parametrize("inside", [False, True], ids=["before", "in forward"])
def test_blocks_that_the_mask_keeps_count(length: int, kept: int, inside: bool) -> None:
    model = Attend(masked=inside)
    if not inside:
        model.block = causal(length)
    assert attended(model, length) == kept


def test_compiled_function_is_traced_as_it_was_written() -> None:
    model = Attend(masked=True)
    model.attention = torch.compile(flex_attention)
    assert attended(model, 256) == 3 * 128 * 128


def test_real_forward_computes_and_lists_it() -> None:
    model = Attend(masked=True).requires_grad_(False)
    model.reads = True
    assert attended(model, 256, "forward") == 3 * 128 * 128


def test_mask_made_in_forward_is_listed() -> None:
    with torch.no_grad():
        (made,) = [
            layer
            for layer in trace(Attend(masked=True), torch.randn(1, 256, 64))
            if layer.op == "create_mask"
        ]
    assert made.outputs[0].numel == 256 * 256
