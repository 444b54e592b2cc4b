"""Attention as models write it: one call of torch's, or products and a softmax of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["Attention", "RMSNorm"]


class RMSNorm(nn.Module):
    """As Llama writes it, step by step (Zhang and Sennrich, 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        variance = x.pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + 1e-6))


class Attention(nn.Module):
    """Self-attention of ``heads`` heads with ``each`` features.

    Parameters
    ----------
    shared
        Heads that share one key and value (Ainslie et al., 2023).
    fused
        One projection for query, key and value.
    manual
        Products and softmax instead of torch's one function.
    rotary
        Turn queries and keys by their position (Su et al., 2021).
    """

    def __init__(
        self,
        heads: int,
        each: int,
        *,
        shared: int,
        causal: bool,
        fused: bool,
        manual: bool,
        rotary: bool,
        bias: bool,
    ) -> None:
        super().__init__()
        width, narrow = heads * each, heads // shared * each
        self.heads, self.each, self.shared = heads, each, shared
        self.causal, self.manual, self.rotary = causal, manual, rotary
        if fused and shared == 1:
            self.together: nn.Module | None = nn.Linear(width, 3 * width, bias=bias)
        else:
            self.together = None
            self.query = nn.Linear(width, width, bias=bias)
            self.key = nn.Linear(width, narrow, bias=bias)
            self.value = nn.Linear(width, narrow, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        if self.together is not None:
            split = self.together(x).view(batch, tokens, 3, self.heads, self.each)
            query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        else:
            parts = (self.query(x), self.key(x), self.value(x))
            query, key, value = (
                part.view(batch, tokens, -1, self.each).transpose(1, 2) for part in parts
            )
        if self.rotary:
            query, key = _turned(query), _turned(key)
        if self.shared > 1:
            key, value = self._repeated(key), self._repeated(value)
        made = self._manual(query, key, value) if self.manual else self._one(query, key, value)
        return self.out(made.transpose(1, 2).reshape(batch, tokens, width))  # type: ignore[no-any-return]

    def _one(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return scaled_dot_product_attention(query, key, value, is_causal=self.causal)

    def _manual(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = torch.matmul(query, key.transpose(-1, -2)) / self.each**0.5
        if self.causal:
            tokens = scores.shape[-1]
            above = torch.ones(tokens, tokens, dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(above, -1e4)
        return torch.matmul(scores.softmax(-1), value)

    def _repeated(self, x: Tensor) -> Tensor:
        batch, heads, tokens, each = x.shape
        wide = x[:, :, None].expand(batch, heads, self.shared, tokens, each)
        return wide.reshape(batch, heads * self.shared, tokens, each)


def _turned(x: Tensor) -> Tensor:
    tokens, each = x.shape[-2:]
    place = torch.arange(tokens, device=x.device, dtype=torch.float32)
    rate = 10_000.0 ** (-torch.arange(0, each, 2, device=x.device, dtype=torch.float32) / each)
    angle = torch.outer(place, rate)
    angle = torch.cat((angle, angle), -1).to(x.dtype)
    first, second = x.chunk(2, -1)
    return x * angle.cos() + torch.cat((-second, first), -1) * angle.sin()
