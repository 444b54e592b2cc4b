"""Attention as models write it: one call of torch's, or products and a softmax of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from pytest_neuralpower.calibrate.measure.networks.blocks import Draw, Network

__all__ = [
    "Attention",
    "RMSNorm",
    "convolutional_mixer",
    "decoder",
    "encoder",
    "patches",
    "recurrent",
    "windows",
]


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


# -- Networks between convolution and attention: channels last, tokens mixed, windows.


class _Next(nn.Module):
    """ConvNeXt's block (Liu et al., 2022): a depthwise convolution, then layers over channels."""

    def __init__(self, channels: int, kernel: int, ratio: int, *, linear: bool) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.linear = linear
        if linear:
            self.up: nn.Module = nn.Linear(channels, ratio * channels)
            self.down: nn.Module = nn.Linear(ratio * channels, channels)
        else:
            self.up = nn.Conv2d(channels, ratio * channels, 1)
            self.down = nn.Conv2d(ratio * channels, channels, 1)
        self.act = nn.GELU()
        self.scale = nn.Parameter(torch.ones(channels if linear else (channels, 1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        made = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        if self.linear:
            made = (self.scale * self.down(self.act(self.up(made)))).permute(0, 3, 1, 2)
        else:
            made = self.scale * self.down(self.act(self.up(made.permute(0, 3, 1, 2))))
        return x + made  # type: ignore[no-any-return]


class _Mixer(nn.Module):
    """MLP-Mixer's block (Tolstikhin et al., 2021): over the tokens, then over the channels."""

    def __init__(self, tokens: int, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.other = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, hidden), nn.GELU(), nn.Linear(hidden, tokens))
        self.channels = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.other(x))  # type: ignore[no-any-return]


def convolutional_mixer(draw: Draw) -> Network:
    """ConvNeXt's or MLP-Mixer's kind."""
    if draw.chance(0.3):
        batch, tokens, width = draw.batch(), draw.size(16, 400), draw.width(32, 768)
        blocks = [_Mixer(tokens, width, draw.width(32, 512)) for _ in range(draw.pick(1, 2))]
        return Network(nn.Sequential(*blocks), (torch.empty(batch, tokens, width),))
    batch, channels, height, wide = draw.image(most=2.0**22)
    ratio, kernel, linear = draw.pick(2, 4, 4), draw.pick(3, 5, 7, 7), draw.chance(0.6)
    layers: list[nn.Module] = [
        _Next(channels, kernel, ratio, linear=linear) for _ in range(draw.pick(1, 2))
    ]
    if height >= 4 and draw.chance(0.5):
        layers.append(nn.Conv2d(channels, 2 * channels, 2, 2))
    return Network(nn.Sequential(*layers), (torch.empty(batch, channels, height, wide),))


class _Windows(nn.Module):
    """Attention within shifted windows (Swin, Liu et al., 2021), and a feed-forward."""

    def __init__(self, attention: nn.Module, width: int, window: int, *, shifted: bool) -> None:
        super().__init__()
        self.attention, self.window, self.shifted = attention, window, shifted
        self.norm, self.other = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, height, across, width = x.shape
        side = self.window
        made = self.norm(x)
        if self.shifted:
            made = torch.roll(made, (-(side // 2), -(side // 2)), (1, 2))
        rows, columns = height // side, across // side
        made = made.view(batch, rows, side, columns, side, width).transpose(2, 3)
        made = self.attention(made.reshape(-1, side * side, width))
        made = made.view(batch, rows, columns, side, side, width).transpose(2, 3)
        made = made.reshape(batch, height, across, width)
        if self.shifted:
            made = torch.roll(made, (side // 2, side // 2), (1, 2))
        x = x + made
        return x + self.feed(self.other(x))  # type: ignore[no-any-return]


def windows(draw: Draw) -> Network:
    """Swin's kind, with the merging of patches."""
    batch = draw.pick(1, 1, 2, 4)
    heads, each, window = draw.pick(2, 3, 4, 6), draw.pick(16, 32, 32), draw.pick(4, 7, 7, 8)
    width, across = heads * each, window * draw.pick(1, 2, 4)
    layers: list[nn.Module] = [
        _Windows(
            Attention(
                *(heads, each),
                shared=1, causal=False, fused=True, manual=draw.chance(0.3), rotary=False,
                bias=True,
            ),
            width, window, shifted=shifted,
        )
        for shifted in (False, True)
    ]  # fmt: skip
    return Network(nn.Sequential(*layers), (torch.empty(batch, across, across, width),))


# -- Transformers: encoders, decoders, and encoders of image patches.


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


# -- Recurrent networks.


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
