"""Networks over sequences: attention and what lies between it and convolution, and recurrence."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from pytest_neuralpower.calibrate.measure.networks.blocks import Composed, Draw, Network


def _rms_norm(width: int) -> nn.Module:
    """As Llama writes it, step by step (Zhang and Sennrich, 2019)."""

    def forward(x: Tensor, weight: Tensor) -> Tensor:
        variance = x.pow(2).mean(-1, keepdim=True)
        return weight * (x * torch.rsqrt(variance + 1e-6))

    return Composed(forward, weight=nn.Parameter(torch.ones(width)))


def _residual(inner: nn.Module, norm: nn.Module) -> nn.Module:
    """What is made of the normed input, added to it."""
    return Composed(lambda x: x + inner(norm(x)), norm, inner)


def _feed_forward(width: int, hidden: int, act: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(width, hidden), act, nn.Linear(hidden, width))


# -- Attention as models write it: one call of torch's, or products and a softmax of their own.


def _attention(
    heads: int,
    each: int,
    *,
    shared: int = 1,
    causal: bool = False,
    fused: bool = True,
    manual: bool,
    modern: bool = False,
) -> nn.Module:
    """Self-attention of ``heads`` heads with ``each`` features.

    Parameters
    ----------
    shared
        Heads that share one key and value (Ainslie et al., 2023).
    fused
        One projection for query, key and value, where none is shared.
    manual
        Products and softmax instead of torch's one function.
    modern
        Without biases; queries and keys turned by their position (Su et al., 2021).
    """
    width, narrow, bias = heads * each, heads // shared * each, not modern
    outs = (3 * width,) if fused and shared == 1 else (width, narrow, narrow)
    projections = [nn.Linear(width, out, bias=bias) for out in outs]
    last = nn.Linear(width, width, bias=bias)

    def forward(x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        if len(projections) == 1:
            split = projections[0](x).view(batch, tokens, 3, heads, each)
            query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        else:
            parts = [projection(x) for projection in projections]
            query, key, value = (
                part.view(batch, tokens, -1, each).transpose(1, 2) for part in parts
            )
        if modern:
            query, key = _turned(query), _turned(key)
        if shared > 1:
            key, value = _repeated(key, shared), _repeated(value, shared)
        if manual:
            mixed = _manual(query, key, value, causal=causal)
        else:
            mixed = scaled_dot_product_attention(query, key, value, is_causal=causal)
        return last(mixed.transpose(1, 2).reshape(batch, tokens, width))  # type: ignore[no-any-return]

    return Composed(forward, *projections, last)


def _manual(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    scores = torch.matmul(query, key.transpose(-1, -2)) / query.shape[-1] ** 0.5
    if causal:
        tokens = scores.shape[-1]
        above = torch.ones(tokens, tokens, dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(above, -1e4)
    return torch.matmul(scores.softmax(-1), value)


def _repeated(x: Tensor, times: int) -> Tensor:
    batch, heads, tokens, each = x.shape
    wide = x[:, :, None].expand(batch, heads, times, tokens, each)
    return wide.reshape(batch, heads * times, tokens, each)


def _turned(x: Tensor) -> Tensor:
    tokens, each = x.shape[-2:]
    place = torch.arange(tokens, device=x.device, dtype=torch.float32)
    rate = 10_000.0 ** (-torch.arange(0, each, 2, device=x.device, dtype=torch.float32) / each)
    angle = torch.outer(place, rate)
    angle = torch.cat((angle, angle), -1).to(x.dtype)
    first, second = x.chunk(2, -1)
    return x * angle.cos() + torch.cat((-second, first), -1) * angle.sin()


# -- Networks between convolution and attention: channels last, tokens mixed, windows.


def _next(channels: int, kernel: int, ratio: int, *, linear: bool) -> nn.Module:
    """ConvNeXt's block (Liu et al., 2022): a depthwise convolution, then layers over channels."""
    depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
    norm, act = nn.LayerNorm(channels), nn.GELU()
    hidden = ratio * channels
    if linear:
        ends: list[nn.Module] = [nn.Linear(channels, hidden), nn.Linear(hidden, channels)]
    else:
        ends = [nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)]

    def forward(x: Tensor, scale: Tensor) -> Tensor:
        inner = norm(depthwise(x).permute(0, 2, 3, 1))
        if linear:
            inner = (scale * ends[1](act(ends[0](inner)))).permute(0, 3, 1, 2)
        else:
            inner = scale * ends[1](act(ends[0](inner.permute(0, 3, 1, 2))))
        return x + inner  # type: ignore[no-any-return]

    scale = torch.ones(channels if linear else (channels, 1, 1))
    return Composed(forward, depthwise, norm, *ends, act, scale=nn.Parameter(scale))


def _mixer(tokens: int, width: int, hidden: int) -> nn.Module:
    """MLP-Mixer's block (Tolstikhin et al., 2021): over the tokens, then over the channels."""
    norm, over_tokens = nn.LayerNorm(width), _feed_forward(tokens, hidden, nn.GELU())

    def mix(x: Tensor) -> Tensor:
        return x + over_tokens(norm(x).transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]

    over_channels = _residual(_feed_forward(width, 2 * width, nn.GELU()), nn.LayerNorm(width))
    return nn.Sequential(Composed(mix, norm, over_tokens), over_channels)


def convolutional_mixer(draw: Draw) -> Network:
    """ConvNeXt's or MLP-Mixer's kind."""
    if draw.chance(0.3):
        batch, tokens, width = draw.batch(), draw.size(16, 400), draw.width(32, 768)
        blocks = [_mixer(tokens, width, draw.width(32, 512)) for _ in range(draw.pick(1, 2))]
        return Network(nn.Sequential(*blocks), (torch.empty(batch, tokens, width),))
    batch, channels, height, wide = draw.image(most=2.0**22)
    ratio, kernel, linear = draw.pick(2, 4, 4), draw.pick(3, 5, 7, 7), draw.chance(0.6)
    layers = [_next(channels, kernel, ratio, linear=linear) for _ in range(draw.pick(1, 2))]
    if height >= 4 and draw.chance(0.5):
        layers.append(nn.Conv2d(channels, 2 * channels, 2, 2))
    return Network(nn.Sequential(*layers), (torch.empty(batch, channels, height, wide),))


def _windows(attention: nn.Module, width: int, side: int, *, shifted: bool) -> nn.Module:
    """Attention within shifted windows (Swin, Liu et al., 2021), and a feed-forward."""
    norm = nn.LayerNorm(width)

    def forward(x: Tensor) -> Tensor:
        batch, height, across, width = x.shape
        inner = norm(x)
        if shifted:
            inner = torch.roll(inner, (-(side // 2), -(side // 2)), (1, 2))
        rows, columns = height // side, across // side
        inner = inner.view(batch, rows, side, columns, side, width).transpose(2, 3)
        inner = attention(inner.reshape(-1, side * side, width))
        inner = inner.view(batch, rows, columns, side, side, width).transpose(2, 3)
        inner = inner.reshape(batch, height, across, width)
        if shifted:
            inner = torch.roll(inner, (side // 2, side // 2), (1, 2))
        return x + inner  # type: ignore[no-any-return]

    feed = _residual(_feed_forward(width, 4 * width, nn.GELU()), nn.LayerNorm(width))
    return nn.Sequential(Composed(forward, attention, norm), feed)


def windows(draw: Draw) -> Network:
    """Swin's kind, with the merging of patches."""
    batch = draw.pick(1, 1, 2, 4)
    heads, each, side = draw.pick(2, 3, 4, 6), draw.pick(16, 32, 32), draw.pick(4, 7, 7, 8)
    width, across = heads * each, side * draw.pick(1, 2, 4)
    layers = [
        _windows(_attention(heads, each, manual=draw.chance(0.3)), width, side, shifted=shifted)
        for shifted in (False, True)
    ]
    return Network(nn.Sequential(*layers), (torch.empty(batch, across, across, width),))


# -- Transformers: encoders, decoders, and encoders of image patches.


def _gated(width: int, hidden: int, act: nn.Module) -> nn.Module:
    """Three layers with a gate (Shazeer, 2020)."""
    gate, up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
    down = nn.Linear(hidden, width, bias=False)
    return Composed(lambda x: down(act(gate(x)) * up(x)), gate, up, down, act)


def _block(
    norms: tuple[nn.Module, nn.Module],
    inner: tuple[nn.Module, nn.Module],
    *,
    first: bool,
    scaled: int,
) -> nn.Module:
    """Attention and feed-forward, each around a residual; the norm before or after it."""

    def forward(x: Tensor, scale: Tensor | None = None) -> Tensor:
        for norm, change in zip(norms, inner, strict=True):
            if first:
                changed = change(norm(x))
                x = x + (changed if scale is None else changed * scale)
            else:
                x = norm(x + change(x))
        return x

    scales = {"scale": nn.Parameter(torch.ones(scaled))} if scaled else {}
    return Composed(forward, *inner, *norms, **scales)


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
    make_norm: Callable[[int], nn.Module] = _rms_norm if modern else nn.LayerNorm
    blocks: list[nn.Module] = []
    for _ in range(count):
        attention = _attention(
            heads, each, shared=shared, causal=causal, fused=fused, manual=manual, modern=modern
        )
        feed = (_gated if gated else _feed_forward)(width, hidden, act)
        norms = (make_norm(width), make_norm(width))
        blocks.append(_block(norms, (attention, feed), first=first, scaled=scaled))
    return blocks


def _embedded(vocabulary: int, tokens: int, width: int) -> nn.Module:
    """Words and positions looked up and added."""
    words, places = nn.Embedding(vocabulary, width), nn.Embedding(tokens, width)

    def forward(x: Tensor) -> Tensor:
        place = torch.arange(x.shape[1], device=x.device)
        return words(x) + places(place)  # type: ignore[no-any-return]

    return Composed(forward, words, places)


def _first_token() -> nn.Module:
    return Composed(lambda x: x[:, 0])


def encoder(draw: Draw) -> Network:
    """BERT's kind: embeddings, blocks, a pooled first token or one prediction a token."""
    batch, tokens, heads, each = _shape(draw)
    width = heads * each
    vocabulary = draw.size(200, min(30_000, 16_000_000 // width))
    layers = [_embedded(vocabulary, tokens, width)]
    if draw.chance(0.7):
        layers.append(nn.LayerNorm(width))
    count = draw.pick(1, 1, 2, 3)
    layers += _blocks(draw, heads, each, causal=False, modern=False, count=count)
    if draw.chance(0.5):
        layers += [_first_token(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2)]
    given = torch.empty(batch, tokens, dtype=torch.int64)
    return Network(nn.Sequential(*layers), (given,), vocabulary)


def decoder(draw: Draw) -> Network:
    """GPT's and Llama's kind: causal, now and then with one token a call, words scored at last."""
    batch, tokens, heads, each = _shape(draw)
    if draw.chance(0.1):
        tokens = 1
    width = heads * each
    modern = draw.chance(0.5)
    vocabulary = draw.size(200, min(50_000, 16_000_000 // width))
    begin = nn.Embedding(vocabulary, width) if modern else _embedded(vocabulary, tokens, width)
    count = draw.pick(1, 1, 2, 3)
    blocks = _blocks(draw, heads, each, causal=True, modern=modern, count=count)
    norm = _rms_norm(width) if modern else nn.LayerNorm(width)
    scores = nn.Linear(width, vocabulary, bias=False)
    given = torch.empty(batch, tokens, dtype=torch.int64)
    return Network(nn.Sequential(begin, *blocks, norm, scores), (given,), vocabulary)


def patches(draw: Draw) -> Network:
    """Vision transformers (Dosovitskiy et al., 2021): patches, a class token, positions added."""
    batch, tokens, heads, each = _shape(draw, longest=400)
    across = max(round(tokens**0.5), 2)
    width, patch = heads * each, draw.pick(4, 8, 14, 16, 16, 32)
    with_token = draw.chance(0.7)
    cut = nn.Conv2d(3, width, patch, patch)

    def embed(image: Tensor, *parameters: Tensor) -> Tensor:
        tokens: Tensor = cut(image).flatten(2).transpose(1, 2)
        *token, places = parameters
        if token:
            tokens = torch.cat((token[0].expand(len(tokens), -1, -1), tokens), 1)
        return tokens + places

    parameters = {"token": nn.Parameter(torch.zeros(1, 1, width))} if with_token else {}
    parameters["places"] = nn.Parameter(torch.zeros(1, across * across + with_token, width))
    count = draw.pick(1, 1, 2, 3)
    layers: list[nn.Module] = [
        Composed(embed, cut, **parameters),
        *_blocks(draw, heads, each, causal=False, modern=False, count=count),
        nn.LayerNorm(width),
        _first_token(),
        nn.Linear(width, draw.pick(10, 1000)),
    ]
    given = torch.empty(batch, 3, across * patch, across * patch)
    return Network(nn.Sequential(*layers), (given,))


# -- Recurrent networks.


def recurrent(draw: Draw) -> Network:
    """LSTM and GRU over words or features; a score for the last step or for every one."""
    batch, steps = draw.batch(), draw.size(2, 160)
    width, hidden = draw.width(16, 768), draw.width(16, 768)
    both = draw.chance(0.3)
    kind = draw.pick(nn.LSTM, nn.LSTM, nn.GRU, nn.RNN)
    layers = draw.pick(1, 1, 2)
    network = kind(width, hidden, layers, batch_first=True, bidirectional=both)
    end = nn.Linear(hidden * (1 + both), draw.size(2, 2000))
    begin: nn.Module = nn.Identity()
    given, vocabulary = torch.empty(batch, steps, width), 2
    if draw.chance(0.6):
        vocabulary = draw.size(200, 20_000)
        begin = nn.Embedding(vocabulary, width)
        given = torch.empty(batch, steps, dtype=torch.int64)
    last = draw.chance(0.5)

    def forward(x: Tensor) -> Tensor:
        steps, _ = network(begin(x))
        return end(steps[:, -1] if last else steps)  # type: ignore[no-any-return]

    return Network(Composed(forward, begin, network, end), (given,), vocabulary)
