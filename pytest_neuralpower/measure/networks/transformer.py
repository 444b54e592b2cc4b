"""Transformers: encoders, decoders, and encoders of image patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pytest_neuralpower.measure.networks.attention import Attention, RMSNorm
from pytest_neuralpower.measure.networks.draw import Draw, Network

__all__ = ["decoder", "encoder", "patches"]


class _FeedForward(nn.Module):
    """Two layers, or three with a gate (Shazeer, 2020)."""

    def __init__(self, width: int, hidden: int, *, act: nn.Module, gated: bool) -> None:
        super().__init__()
        bias = not gated
        self.gate = nn.Linear(width, hidden, bias=False) if gated else None
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.act(self.up(x)))  # type: ignore[no-any-return]
        return self.down(self.act(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


class _Block(nn.Module):
    """Attention and feed-forward, each around a residual; the norm before or after it."""

    def __init__(
        self,
        attention: nn.Module,
        forward: nn.Module,
        norms: list[nn.Module],
        *,
        first: bool,
        scaled: int = 0,
    ) -> None:
        super().__init__()
        self.attention, self.feed = attention, forward
        self.norms = nn.ModuleList(norms)
        self.first = first
        self.scale = nn.Parameter(torch.ones(scaled)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        for norm, inner in zip(self.norms, (self.attention, self.feed), strict=True):
            if self.first:
                made = inner(norm(x))
                x = x + (made if self.scale is None else made * self.scale)
            else:
                x = norm(x + inner(x))
        return x


def _shape(draw: Draw, *, longest: int = 640) -> tuple[int, int, int, int]:
    """batch, tokens, heads and features of one head."""
    batch = draw.batch()
    tokens = draw.size(4, longest)
    heads = draw.pick(1, 2, 3, 4, 6, 8, 12, 16)
    each = draw.pick(16, 32, 32, 64, 64, 64, 80, 96, 128, 24)
    while batch * tokens * heads * each > 6_000_000 and batch > 1:
        batch //= 2
    return batch, tokens, heads, each


def _blocks(
    draw: Draw, heads: int, each: int, *, causal: bool, modern: bool, count: int
) -> list[nn.Module]:
    width = heads * each
    hidden = draw.pick(4 * width, 4 * width, 2 * width, draw.width(width, 4 * width))
    act = draw.pick(nn.GELU(), nn.GELU(), nn.GELU("tanh"), nn.ReLU(), nn.SiLU())
    if modern:
        act = nn.SiLU()
    gated = modern and draw.chance(0.8)
    first = modern or draw.chance(0.6)
    fused = draw.chance(0.5)
    manual = draw.chance(0.25)
    shared = draw.pick(1, 1, 2, 4) if modern else 1
    shared = shared if heads % shared == 0 else 1
    scaled = width if first and not modern and draw.chance(0.2) else 0
    blocks: list[nn.Module] = []
    for _ in range(count):
        norms: list[nn.Module] = [
            RMSNorm(width) if modern else nn.LayerNorm(width) for _ in range(2)
        ]
        attention = Attention(
            *(heads, each),
            shared=shared, causal=causal, fused=fused, manual=manual, rotary=modern,
            bias=not modern,
        )  # fmt: skip
        feed = _FeedForward(width, hidden, act=act, gated=gated)
        blocks.append(_Block(attention, feed, norms, first=first, scaled=scaled))
    return blocks


class _Embedded(nn.Module):
    """Tokens and positions looked up and added."""

    def __init__(self, vocabulary: int, tokens: int, width: int, *, normed: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(tokens, width)
        self.norm = nn.LayerNorm(width) if normed else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        place = torch.arange(tokens.shape[1], device=tokens.device)
        return self.norm(self.words(tokens) + self.places(place))  # type: ignore[no-any-return]


class _Model(nn.Sequential):
    """Layers in sequence; knows how many words it tells apart."""

    vocabulary = 2


def _model(layers: list[nn.Module], vocabulary: int) -> nn.Module:
    model = _Model(*layers)
    model.vocabulary = vocabulary
    return model


def encoder(draw: Draw) -> Network:
    """BERT's kind: embeddings, blocks, a pooled first token or one prediction a token."""
    batch, tokens, heads, each = _shape(draw)
    width = heads * each
    vocabulary = draw.size(200, min(30_000, 16_000_000 // width))
    layers: list[nn.Module] = [
        _Embedded(vocabulary, tokens, width, normed=draw.chance(0.7)),
        *_blocks(draw, heads, each, causal=False, modern=False, count=draw.pick(1, 1, 2, 3)),
    ]
    if draw.chance(0.5):
        layers += [_First(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2)]
    return Network(_model(layers, vocabulary), (torch.empty(batch, tokens, dtype=torch.int64),))


def decoder(draw: Draw) -> Network:
    """GPT's and Llama's kind: causal, now and then with one token a call, words scored at last."""
    batch, tokens, heads, each = _shape(draw)
    if draw.chance(0.1):
        tokens = 1
    width = heads * each
    modern = draw.chance(0.5)
    vocabulary = draw.size(200, min(50_000, 16_000_000 // width))
    begin = (
        nn.Embedding(vocabulary, width)
        if modern
        else _Embedded(vocabulary, tokens, width, normed=False)
    )
    blocks = _blocks(draw, heads, each, causal=True, modern=modern, count=draw.pick(1, 1, 2, 3))
    last: nn.Module = RMSNorm(width) if modern else nn.LayerNorm(width)
    scores = nn.Linear(width, vocabulary, bias=False)
    return Network(
        _model([begin, *blocks, last, scores], vocabulary),
        (torch.empty(batch, tokens, dtype=torch.int64),),
    )


class _First(nn.Module):
    """The first token of each sample."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


class _Patches(nn.Module):
    """An image cut into patches, a class token before them, positions added (ViT)."""

    def __init__(self, width: int, patch: int, count: int, *, token: bool) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width)) if token else None
        self.places = nn.Parameter(torch.zeros(1, count + token, width))

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.cut(image).flatten(2).transpose(1, 2)
        if self.token is not None:
            tokens = torch.cat((self.token.expand(len(tokens), -1, -1), tokens), 1)
        return tokens + self.places  # type: ignore[no-any-return]


def patches(draw: Draw) -> Network:
    """Vision transformers (Dosovitskiy et al., 2021)."""
    batch, tokens, heads, each = _shape(draw, longest=400)
    across = max(round(tokens**0.5), 2)
    width, patch = heads * each, draw.pick(4, 8, 14, 16, 16, 32)
    token = draw.chance(0.7)
    layers: list[nn.Module] = [
        _Patches(width, patch, across * across, token=token),
        *_blocks(draw, heads, each, causal=False, modern=False, count=draw.pick(1, 1, 2, 3)),
        nn.LayerNorm(width),
        _First(),
        nn.Linear(width, draw.pick(10, 1000)),
    ]
    given = torch.empty(batch, 3, across * patch, across * patch)
    return Network(nn.Sequential(*layers), (given,))
