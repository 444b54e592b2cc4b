"""Random convolutional networks: plain, residual, joined, mobile and upsampling ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pytest_neuralpower.calibrate.measure.networks.blocks import (
    Composed,
    Draw,
    Network,
    activation,
    added,
    convolution,
    head,
    image_input,
    joined,
    squeeze_excite,
)


def plain(draw: Draw) -> Network:
    """AlexNet's and VGG's kind."""
    layers, given, (channels, height, width) = image_input(draw, draw.image())
    normed = draw.chance(0.5)
    responses = not normed and draw.chance(0.7)  # local response norms, as AlexNet has
    act = activation(draw)
    for _ in range(draw.pick(1, 2, 3, 3, 4)):
        made = draw.width(max(channels // 2, 8), max(channels * 2, 16))
        kernel = draw.pick(3, 3, 3, 3, 1, 5, 7)
        stride = draw.pick(1, 1, 1, 2)
        dilation = 2 if stride == 1 and kernel == 3 and draw.chance(0.08) else 1
        groups = 2 if draw.chance(0.1) and channels % 2 == made % 2 == 0 else 1
        layers += convolution(
            *(draw, channels, made, kernel),
            stride=stride, groups=groups, dilation=dilation, act=act, normed=normed,
        )  # fmt: skip
        channels, height, width = made, -(-height // stride), -(-width // stride)
        if responses and draw.chance(0.7):
            layers.append(nn.LocalResponseNorm(draw.pick(3, 5, 5)))
        if draw.chance(0.5) and min(height, width) >= 6:
            pools = (nn.MaxPool2d(2, 2), nn.MaxPool2d(3, 2), nn.MaxPool2d(3, 2, 1))
            layers.append(draw.pick(*pools, nn.AvgPool2d(2, 2), nn.MaxPool2d(3, 2, ceil_mode=True)))
            height, width = height // 2, width // 2
    return Network(nn.Sequential(*layers, *_classifier(draw, channels)), (given,))


def _classifier(draw: Draw, channels: int) -> list[nn.Module]:
    if draw.chance(0.5):
        return head(draw, channels)
    side = draw.pick(1, 3, 6, 7)
    features = channels * side * side
    # VGG's first fully connected layer has 103 million weights: more than any cache holds.
    most = draw.pick(24_000_000, 24_000_000, 110_000_000)
    hidden = draw.size(64, max(65, min(4096, most // features)))
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(side), nn.Flatten()]
    layers += [nn.Linear(features, hidden), nn.ReLU(inplace=True), nn.Dropout(0.5)]
    if draw.chance(0.6):
        deeper = draw.size(64, max(65, min(4096, 24_000_000 // hidden)))
        layers += [nn.Linear(hidden, deeper), nn.ReLU(inplace=True)]
        hidden = deeper
    return [*layers, nn.Linear(hidden, draw.pick(10, 1000))]


def sentinel(draw: Draw) -> Network:
    """A small network of every main kind, the same always: what is timed again to see drift."""
    draw = Draw("sentinel")
    layers = [
        nn.Conv2d(32, 96, 3, padding=1),
        nn.BatchNorm2d(96),
        nn.ReLU(inplace=True),
        nn.Conv2d(96, 96, 3, padding=1, groups=96),
        nn.Conv2d(96, 128, 1),
        squeeze_excite(draw, 128),
        nn.MaxPool2d(2),
        nn.Flatten(2),
        nn.Linear(28 * 28, 512),
        nn.GELU(),
        nn.LayerNorm(512),
        nn.Softmax(-1),
    ]
    return Network(nn.Sequential(*layers), (torch.empty(1, 32, 56, 56),))


# -- Residual networks: basic and bottleneck blocks.


def residual(draw: Draw) -> Network:
    """ResNet's basic blocks (He et al., 2016), now and then a pool after the stem."""
    layers, given, (channels, height, _) = image_input(draw, draw.image())
    if layers and draw.chance(0.6) and height >= 12:
        layers.append(nn.MaxPool2d(3, 2, 1))
    for _ in range(draw.pick(1, 2, 2, 3)):
        stride = draw.pick(1, 1, 2)
        made = channels if stride == 1 and draw.chance(0.7) else draw.width(channels, 2 * channels)
        inner = convolution(draw, channels, made, 3, stride=stride, act=activation(draw))
        inner += convolution(draw, made, made, 3)
        layers.append(_block(draw, inner, channels, made, stride))
        channels = made
    return Network(nn.Sequential(*layers, *head(draw, channels)), (given,))


def bottleneck(draw: Draw) -> Network:
    """Bottlenecks of ResNet, ResNeXt (Xie et al., 2017) and SENet."""
    layers, given, (channels, _, _) = image_input(draw, draw.image())
    groups = draw.pick(1, 1, 1, 2, 4, 8, 16, 32, 32)
    excite = draw.chance(0.25)
    for _ in range(draw.pick(1, 2, 2, 3)):
        stride = draw.pick(1, 1, 1, 2)
        made = channels if stride == 1 and draw.chance(0.6) else draw.width(channels, 2 * channels)
        middle = max(draw.aligned(made / draw.pick(2, 4, 4)), 4)
        middle = max(middle // groups, 1) * groups
        strided_first = draw.chance(0.3)
        inner = convolution(
            *(draw, channels, middle, 1),
            stride=stride if strided_first else 1, act=activation(draw),
        )  # fmt: skip
        inner += convolution(
            *(draw, middle, middle, 3),
            stride=1 if strided_first else stride, groups=groups, act=activation(draw),
        )  # fmt: skip
        inner += convolution(draw, middle, made, 1)
        if excite:
            inner.append(squeeze_excite(draw, made))
        layers.append(_block(draw, inner, channels, made, stride))
        channels = made
    return Network(nn.Sequential(*layers, *head(draw, channels)), (given,))


def _block(draw: Draw, inner: list[nn.Module], channels: int, made: int, stride: int) -> nn.Module:
    skip: nn.Module = nn.Identity()
    if stride > 1 or channels != made:
        skip = nn.Sequential(*convolution(draw, channels, made, 1, stride=stride))
    return added(draw, nn.Sequential(*inner), skip, activation(draw), 0.5)


# -- Networks that join feature maps: dense, inception and squeeze blocks.


def dense(draw: Draw) -> Network:
    """DenseNet (Huang et al., 2017): norm and activation first, every layer sees all before."""
    layers, given, (channels, height, width) = image_input(draw, draw.image(most=2.0**23.5))
    growth = draw.width(8, 64)
    for _ in range(draw.pick(2, 3, 4, 5)):
        middle = growth * draw.pick(2, 4, 4)
        inner = [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        inner += convolution(draw, channels, middle, 1, act=nn.ReLU(inplace=True))
        inner.append(nn.Conv2d(middle, growth, 3, padding=1, bias=False))
        layers.append(joined(nn.Identity(), nn.Sequential(*inner)))
        channels += growth
        if draw.chance(0.25) and min(height, width) >= 4:
            halved = max(channels // 2, 4)
            layers += [nn.BatchNorm2d(channels), activation(draw)]
            layers += [nn.Conv2d(channels, halved, 1, bias=False), nn.AvgPool2d(2, 2)]
            channels, height, width = halved, height // 2, width // 2
    return Network(nn.Sequential(*layers, *head(draw, channels)), (given,))


def inception(draw: Draw) -> Network:
    """Inception modules (Szegedy et al., 2016): kernels of many shapes side by side."""
    layers, given, (channels, height, width) = image_input(draw, draw.image(most=2.0**23))
    act = nn.ReLU(inplace=True)
    for _ in range(draw.pick(1, 2, 2, 3)):
        branches = []
        made = 0
        for kind in draw.some(("1", "3", "5", "33", "17", "pool", "31"), draw.pick(2, 3, 4)):
            narrow = draw.aligned(max(channels / draw.pick(2, 4, 8), 8))
            wide = draw.aligned(max(channels / draw.pick(1, 2, 4), 8))
            made += wide
            branches.append(nn.Sequential(*_branch(draw, kind, (channels, narrow, wide), act)))
        layers.append(joined(*branches))
        channels = made
        if draw.chance(0.3) and min(height, width) >= 6:
            layers.append(draw.pick(nn.MaxPool2d(3, 2), nn.MaxPool2d(3, 2, 1, ceil_mode=True)))
            height, width = height // 2, width // 2
    return Network(nn.Sequential(*layers, *head(draw, channels)), (given,))


def _branch(draw: Draw, kind: str, widths: tuple[int, int, int], act: nn.Module) -> list[nn.Module]:
    channels, narrow, wide = widths
    if kind == "1":
        return convolution(draw, channels, wide, 1, act=act)
    if kind == "pool":
        pool = draw.pick(nn.AvgPool2d(3, 1, 1), nn.MaxPool2d(3, 1, 1))
        return [pool, *convolution(draw, channels, wide, 1, act=act)]
    parts = convolution(draw, channels, narrow, 1, act=act)
    if kind in ("3", "5"):
        return parts + convolution(draw, narrow, wide, int(kind), act=act)
    if kind == "33":
        parts += convolution(draw, narrow, narrow, 3, act=act)
        return parts + convolution(draw, narrow, wide, 3, act=act)
    across = draw.pick(5, 7) if kind == "17" else 3
    parts += convolution(draw, narrow, narrow, (1, across), act=act)
    return parts + convolution(draw, narrow, wide, (across, 1), act=act)


def squeeze(draw: Draw) -> Network:
    """SqueezeNet's fire modules (Iandola et al., 2016), without norms."""
    layers, given, (channels, height, width) = image_input(draw, draw.image(most=2.0**23))
    act = nn.ReLU(inplace=True)
    for _ in range(draw.pick(1, 2, 3)):
        narrow = draw.width(8, max(channels // 2, 16))
        wide = draw.width(2 * narrow, 6 * narrow)
        layers += convolution(draw, channels, narrow, 1, act=act, normed=False)
        branches = (convolution(draw, narrow, wide, k, act=act, normed=False) for k in (1, 3))
        layers.append(joined(*(nn.Sequential(*branch) for branch in branches)))
        channels = 2 * wide
        if draw.chance(0.4) and min(height, width) >= 6:
            layers.append(nn.MaxPool2d(3, 2, ceil_mode=draw.chance(0.5)))
            height, width = height // 2, width // 2
    return Network(nn.Sequential(*layers, *head(draw, channels)), (given,))


# -- Mobile networks: inverted residuals with squeeze and excitation, shuffled groups.


def inverted(draw: Draw) -> Network:
    """MobileNet v1 to v3, EfficientNet: depthwise convolutions, often after a wider one."""
    layers, given, (channels, _, _) = image_input(draw, draw.image(most=2.0**23.5))
    act = activation(draw)
    excite = draw.chance(0.4)
    for _ in range(draw.pick(1, 2, 3, 3)):
        stride = draw.pick(1, 1, 1, 2)
        made = channels if stride == 1 and draw.chance(0.6) else draw.width(channels, 2 * channels)
        ratio = draw.pick(1, 1, 2, 3, 4, 6, 6)
        wide = channels * ratio
        inner = convolution(draw, channels, wide, 1, act=act) if ratio > 1 else []
        kernel = draw.pick(3, 3, 3, 5, 5, 7)
        inner += convolution(draw, wide, wide, kernel, stride=stride, groups=wide, act=act)
        if excite:
            inner.append(squeeze_excite(draw, wide))
        inner += convolution(draw, wide, made, 1, act=act if ratio == 1 else None)
        block: nn.Module = nn.Sequential(*inner)
        if stride == 1 and made == channels and ratio > 1:
            block = added(draw, block, nn.Identity(), nn.Identity(), 0.3)
        layers.append(block)
        channels = made
    if draw.chance(0.5):
        wider = draw.width(channels, 4 * channels)
        layers += convolution(draw, channels, wider, 1, act=act)
        channels = wider
    return Network(nn.Sequential(*layers, *head(draw, channels)), (given,))


def _shuffle(groups: int) -> nn.Module:
    """Channels dealt out over the groups."""

    def forward(x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        split = x.view(batch, groups, channels // groups, height, width)
        return split.transpose(1, 2).contiguous().view(batch, channels, height, width)

    return Composed(forward)


def _half_kept(inner: nn.Module) -> nn.Module:
    """Half of the channels pass by (ShuffleNet v2, Ma et al., 2018)."""
    shuffle = _shuffle(2)

    def forward(x: Tensor) -> Tensor:
        kept, changed = torch.chunk(x, 2, 1)
        return shuffle(torch.cat((kept, inner(changed)), 1))  # type: ignore[no-any-return]

    return Composed(forward, inner, shuffle)


def shuffled(draw: Draw) -> Network:
    """ShuffleNet v1 and v2, CondenseNet's kind: grouped 1x1 convolutions."""
    layers, given, (channels, _, _) = image_input(draw, draw.image(most=2.0**23))
    second = draw.chance(0.5)
    groups = 2 if second else draw.pick(2, 3, 4, 8)
    divisible = max(channels // (4 * groups), 1) * 4 * groups
    if divisible != channels:
        layers += convolution(draw, channels, divisible, 1, act=nn.ReLU(inplace=True))
        channels = divisible
    for _ in range(draw.pick(2, 3, 4)):
        stride = draw.pick(1, 1, 1, 2)
        layers.append(
            _second_block(draw, channels, stride)
            if second
            else _first_block(draw, channels, stride, groups)
        )
        channels *= stride
    return Network(nn.Sequential(*layers, *head(draw, channels)), (given,))


def _second_block(draw: Draw, channels: int, stride: int) -> nn.Module:
    half = channels // 2
    taken = half if stride == 1 else channels
    inner = convolution(draw, taken, half * stride, 1, act=nn.ReLU(inplace=True))
    inner += convolution(
        draw, half * stride, half * stride, draw.pick(3, 3, 5), stride=stride, groups=half * stride
    )
    inner += convolution(draw, half * stride, half * stride, 1, act=nn.ReLU(inplace=True))
    if stride == 1:
        return _half_kept(nn.Sequential(*inner))
    other = convolution(draw, channels, channels, 3, stride=2, groups=channels)
    other += convolution(draw, channels, channels, 1, act=nn.ReLU(inplace=True))
    return nn.Sequential(joined(nn.Sequential(*other), nn.Sequential(*inner)), _shuffle(2))


def _first_block(draw: Draw, channels: int, stride: int, groups: int) -> nn.Module:
    middle = max(channels // (4 * groups), 1) * groups
    inner = convolution(draw, channels, middle, 1, groups=groups, act=nn.ReLU(inplace=True))
    inner.append(_shuffle(groups))
    inner += convolution(draw, middle, middle, 3, stride=stride, groups=middle)
    inner += convolution(draw, middle, channels, 1, groups=groups)
    body = nn.Sequential(*inner)
    if stride == 1:
        return added(draw, body, nn.Identity(), nn.ReLU(inplace=True), 0.3)
    return nn.Sequential(joined(body, nn.AvgPool2d(3, 2, 1)), activation(draw))


# -- Upsampling networks, for segmentation and images.


def _level(down: nn.Module, inner: nn.Module, up: nn.Module, *, joins: bool) -> nn.Module:
    """Down, inner levels, up again, and joined with what was there before (U-Net)."""

    def forward(x: Tensor) -> Tensor:
        above = up(inner(down(x)))[:, :, : x.shape[2], : x.shape[3]]
        return torch.cat((x, above), 1) if joins else x + above

    return Composed(forward, down, inner, up)


def upsampling(draw: Draw) -> Network:
    """U-Net's kind: pools or strides down, transposed convolutions or interpolation up."""
    batch, channels, height, width = draw.image(most=2.0**22.5)
    height, width = max(height // 4, 2) * 4, max(width // 4, 2) * 4
    layers, given, (channels, _, _) = image_input(draw, (batch, channels, height, width))
    joins = draw.chance(0.6)
    level: nn.Module = nn.Identity()
    depths = draw.pick(1, 2)
    for depth in reversed(range(depths)):
        outer = channels * 2**depth
        wide = 2 * outer
        act = activation(draw)
        if draw.chance(0.5):
            down = [nn.MaxPool2d(2), *convolution(draw, outer, wide, 3, act=act)]
        else:
            down = convolution(draw, outer, wide, 3, stride=2, act=act)
        inside = 2 * wide if joins and depth < depths - 1 else wide
        up = _up(draw, inside, outer)
        level = _level(nn.Sequential(*down), level, nn.Sequential(*up), joins=joins)
    last = nn.Conv2d(2 * channels if joins else channels, draw.pick(1, 3, 21), 1)
    return Network(nn.Sequential(*layers, level, last), (given,))


def _up(draw: Draw, cin: int, cout: int) -> list[nn.Module]:
    if draw.chance(0.5):
        kernel = draw.pick(2, 2, 4, 3)
        padding, further = {2: (0, 0), 4: (1, 0), 3: (1, 1)}[kernel]
        return [nn.ConvTranspose2d(cin, cout, kernel, 2, padding, further)]
    mode = draw.pick("nearest", "bilinear")
    upsample = nn.Upsample(scale_factor=2, mode=mode)
    return [upsample, *convolution(draw, cin, cout, draw.pick(1, 3), act=activation(draw))]
