"""Random layers far beyond any table: whether a price can be, and grows with the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from pytest_neuralpower.calibrate.fit.rows import (
    conv_layer,
    linear_layer,
    matmul_layer,
    pool_layer,
    streaming_layer,
)
from pytest_neuralpower.estimators.features import FLOAT8, columns, family
from pytest_neuralpower.estimators.physics import Ceilings, least_ms, roofline_ms
from pytest_neuralpower.layers import Layer, TensorSpec

if TYPE_CHECKING:
    from pytest_neuralpower.platform.price import FittedPlatform

#: A price above so many times the roofline is no price of a library. Estimators are capped lower.
_TOO_MANY_ROOFLINES: Final = 20.0

#: Twice the batch may seem this much cheaper, relative, before it counts.
_CHEAPER: Final = 0.05

_Random = np.random.Generator


class Sweep(msgspec.Struct, frozen=True):
    """How many of the layers have a price that cannot be.

    Attributes
    ----------
    layers
        How many were drawn; each was priced at a batch and at twice that.
    too_fast
        Below what the device's ceilings allow.
    too_slow
        Above 20 times the roofline, launches included.
    cheaper
        Over 5% cheaper at twice the batch.
    """

    layers: int
    too_fast: int
    too_slow: int
    cheaper: int

    @property
    def impossible(self) -> int:
        return self.too_fast + self.too_slow + self.cheaper


def sweep(platform: FittedPlatform, *, layers: int) -> Sweep:
    """Price random layers at a batch and at twice the batch.

    Parameters
    ----------
    platform
        Whose dtype the layers have.
    layers
        How many, of all kinds: the same ones at each call. Where the platform has rows in 8-bit
        floats, as many of their kinds again.
    """
    float8 = [name.removesuffix(FLOAT8) for name in platform.families if name.endswith(FLOAT8)]
    drawn = {platform.dtype: tuple(_MAKERS)}
    if float8:
        drawn["float8_e4m3fn"] = tuple(float8)
    count = fast = slow = cheaper = 0
    for dtype, kinds in drawn.items():
        ceilings = Ceilings.of(platform.hardware).at(platform.peak_gflops(dtype))
        batches = random_layers(layers, dtype, kinds)
        before, after = (_runtime_ms(platform, each) for each in batches)
        for some, runtime in zip(batches, (before, after), strict=True):
            least, roofline = _limits(some, ceilings)
            fast += int((runtime < 0.999 * least).sum())
            slow += int((runtime > _TOO_MANY_ROOFLINES * roofline).sum())
        cheaper += int((after < (1 - _CHEAPER) * before).sum())
        count += layers
    return Sweep(count, fast, slow, cheaper)


def _runtime_ms(platform: FittedPlatform, layers: Sequence[Layer]) -> np.ndarray:
    return np.array([each.runtime_ms for each in platform.predict(layers).layers])


def _limits(layers: Sequence[Layer], ceilings: Ceilings) -> tuple[np.ndarray, np.ndarray]:
    least, roofline = np.empty(len(layers)), np.empty(len(layers))
    members: dict[str, list[int]] = {}
    for place, layer in enumerate(layers):
        members.setdefault(family(layer), []).append(place)
    for name, places in members.items():
        values = columns(name, [layers[place] for place in places])
        least[places] = least_ms(name, values, ceilings)
        roofline[places] = roofline_ms(name, values, ceilings)
    return least, roofline


@lru_cache(maxsize=2)  # drawing takes as long as pricing, and platforms are judged by the same
def random_layers(
    count: int, dtype: str, kinds: tuple[str, ...]
) -> tuple[list[Layer], list[Layer]]:
    """Layers of these kinds with sizes drawn log-uniformly, and the same at twice the batch."""
    random = np.random.default_rng(0)
    makers = [_MAKERS[kind] for kind in kinds]
    once, twice = [], []
    for number in range(count):
        make = makers[number % len(makers)](random, dtype)
        batch = _draw(random, 1, 256)
        once.append(make(batch))
        twice.append(make(2 * batch))
    return once, twice


def _draw(random: _Random, low: int, high: int) -> int:
    return int(np.exp(random.uniform(np.log(low), np.log(high + 1))))


_Make = Callable[[int], Layer]


def _conv(random: _Random, dtype: str, *, depthwise: bool = False) -> _Make:
    kernel = int(random.choice([1, 1, 3, 3, 3, 5, 7, 11]))
    size = max(_draw(random, 1, 512), kernel)
    step = int(random.choice([1, 1, 1, 2, 4]))
    channels, made = _draw(random, 1, 8192), _draw(random, 1, 8192)
    groups = 1
    if depthwise:
        made = groups = channels
    elif random.random() < 0.15:
        groups = int(random.choice([2, 4, 8, 32]))
        channels, made = (max(each // groups, 1) * groups for each in (channels, made))
    # No tensor of more elements than a board holds.
    while channels * size * size > 2e8 and size > kernel:
        size = max(size // 2, kernel)
    return lambda batch: conv_layer(
        (batch, channels, size, size),
        cout=made,
        kernel=(kernel, kernel),
        stride=(step, step),
        padding=(kernel // 2, kernel // 2),
        groups=groups,
        dtype=dtype,
    )


def _depthwise(random: _Random, dtype: str) -> _Make:
    return _conv(random, dtype, depthwise=True)


def _linear(random: _Random, dtype: str) -> _Make:
    rows, depth, width = (_draw(random, 1, most) for most in (4096, 65_536, 65_536))
    return lambda batch: linear_layer(batch * rows, depth, width, dtype=dtype)


def _matmul(random: _Random, dtype: str) -> _Make:
    heads, m, k, n = (_draw(random, 1, most) for most in (64, 8192, 8192, 8192))
    return lambda batch: matmul_layer((batch * heads, m, k), (batch * heads, k, n), dtype=dtype)


def _pool(random: _Random, dtype: str) -> _Make:
    channels, size = _draw(random, 1, 4096), _draw(random, 2, 512)
    kernel = min(int(random.choice([2, 3, 5, 7, size])), size)
    step = max(1, int(random.choice([1, 2, kernel])))
    made = (size - kernel) // step + 1
    op = str(random.choice(["max_pool2d", "avg_pool2d"]))
    return lambda batch: pool_layer(
        (batch, channels, size, size),
        (batch, channels, made, made),
        op=op,
        kernel=(kernel, kernel),
        stride=(step, step),
        padding=(0, 0),
        dtype=dtype,
    )


def _adaptive(random: _Random, dtype: str) -> _Make:
    channels, size = _draw(random, 1, 4096), _draw(random, 2, 512)
    return lambda batch: streaming_layer(
        "pool",
        "adaptive_avg_pool2d",
        [(batch, channels, size, size)],
        (batch, channels, 1, 1),
        dtype=dtype,
    )


def _rows(kind: str, op: str) -> Callable[[_Random, str], _Make]:
    def make(random: _Random, dtype: str) -> _Make:
        rows, width = _draw(random, 1, 16_384), _draw(random, 2, 32_768)

        def layer(batch: int) -> Layer:
            shape = (batch, rows, width)
            made = streaming_layer(kind, op, [shape], shape, dtype=dtype)
            if op != "layer_norm":
                return made
            weight = TensorSpec((width,), dtype)
            params = (("normalized_shape", (width,)),)
            return msgspec.structs.replace(made, weights=(weight, weight), params=params)

        return layer

    return make


def _batch_norm(random: _Random, dtype: str) -> _Make:
    channels, size = _draw(random, 1, 8192), _draw(random, 1, 256)
    training = bool(random.random() < 0.5)
    weight = TensorSpec((channels,), dtype)

    def layer(batch: int) -> Layer:
        shape = (batch + 1, channels, size, size)
        made = streaming_layer("norm", "batch_norm", [shape], shape, dtype=dtype)
        params = (("training", training),)
        return msgspec.structs.replace(made, weights=(weight,) * 4, params=params)

    return layer


def _stream(kind: str, *ops: str) -> Callable[[_Random, str], _Make]:
    def make(random: _Random, dtype: str) -> _Make:
        size, op = _draw(random, 1, 2**24), str(random.choice(ops))
        many = 2 if kind == "elementwise" and random.random() < 0.5 else 1
        return lambda batch: streaming_layer(
            kind, op, [(batch, size)] * many, (batch, size), dtype=dtype
        )

    return make


def _reduction(random: _Random, dtype: str) -> _Make:
    rows, width = _draw(random, 1, 4096), _draw(random, 2, 16_384)
    return lambda batch: streaming_layer(
        "reduction", "mean", [(batch, rows, width)], (batch, rows), dtype=dtype
    )


def _embedding(random: _Random, dtype: str) -> _Make:
    length, width = _draw(random, 1, 8192), _draw(random, 8, 16_384)
    table = TensorSpec((50_000, width), dtype)

    def layer(batch: int) -> Layer:
        result = TensorSpec((batch, length, width), dtype)
        given = TensorSpec((batch, length), "int64")
        return Layer("embedding", "embedding", "", (given,), (table,), (result,), dtype)

    return layer


def _attention(random: _Random, dtype: str) -> _Make:
    heads, queries, keys, width = (_draw(random, 1, most) for most in (64, 4096, 4096, 256))
    causal = bool(queries == keys)
    params = (("causal", causal), ("dropout", 0.0), ("masked", False))

    def layer(batch: int) -> Layer:
        query = TensorSpec((batch, heads, queries, width), dtype)
        key = TensorSpec((batch, heads, keys, width), dtype)
        op = "scaled_dot_product_attention"
        return Layer("attention", op, "", (query, key, key), (), (query,), dtype, params)

    return layer


def _decode(random: _Random, dtype: str) -> _Make:
    shared, sharing, width = (_draw(random, 1, most) for most in (32, 32, 512))
    queries = int(random.choice([1, 1, 1, 4]))
    keys = queries + _draw(random, 1, 2**27 // (shared * width))

    def layer(batch: int) -> Layer:
        query = TensorSpec((batch, shared * sharing, queries, width), dtype)
        key = TensorSpec((batch, shared, keys, width), dtype)
        op = "scaled_dot_product_attention"
        return Layer("attention", op, "", (query, key, key), (), (query,), dtype)

    return layer


def _experts(random: _Random, dtype: str) -> _Make:
    experts, depth, width = (_draw(random, 2, most) for most in (256, 8192, 8192))
    chosen, tokens = _draw(random, 1, min(experts, 16)), _draw(random, 1, 256)

    def layer(batch: int) -> Layer:
        rows = batch * tokens * chosen
        shapes = ((rows, depth), (experts, depth, width), (rows, width))
        given, weights, result = (TensorSpec(shape, dtype) for shape in shapes)
        params = (("chosen", chosen),)
        return Layer("matmul", "grouped_mm", "", (given, weights), (), (result,), dtype, params)

    return layer


def _recurrent(random: _Random, dtype: str) -> _Make:
    steps, width, hidden = (_draw(random, 1, most) for most in (512, 2048, 2048))
    layers = int(random.choice([1, 2, 3]))
    weights = [
        TensorSpec((3 * hidden, size), dtype)
        for number in range(layers)
        for size in (hidden if number else width, hidden)
    ]

    def layer(batch: int) -> Layer:
        given, state = (batch, steps, width), (layers, batch, hidden)
        params = (
            ("bidirectional", False),
            ("hidden_size", hidden),
            ("mode", "GRU"),
            ("num_layers", layers),
            ("steps", batch * steps),
        )
        made = (TensorSpec((batch, steps, hidden), dtype), TensorSpec(state, dtype))
        inputs = (TensorSpec(given, dtype),)
        return Layer("rnn", "gru", "", inputs, tuple(weights), made, dtype, params)

    return layer


#: What draws one layer of each kind.
_MAKERS: Final[dict[str, Callable[[_Random, str], _Make]]] = {
    "conv": _conv,
    "conv.depthwise": _depthwise,
    "linear": _linear,
    "matmul": _matmul,
    "matmul.grouped": _experts,
    "attention": _attention,
    "attention.decode": _decode,
    "rnn": _recurrent,
    "pool": _pool,
    "pool, adaptive": _adaptive,
    "layer norm": _rows("norm", "layer_norm"),
    "batch norm": _batch_norm,
    "softmax": _rows("softmax", "softmax"),
    "activation": _stream("activation", "relu", "gelu", "silu", "tanh"),
    "elementwise": _stream("elementwise", "add", "mul", "div", "pow"),
    "reduction": _reduction,
    "embedding": _embedding,
    "memory": _stream("memory", "contiguous", "cat"),
}
