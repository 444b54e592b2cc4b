"""The five networks of the NeuralPower paper, and what the paper measured of them.

Layer for layer the networks that were timed: tf-slim's VGG-16, AlexNet v2 and OverFeat, Network
in Network and a six-convolution CIFAR-10 network, as Paleo describes them
(github.com/TalwalkarLab/paleo, ``nets/``; the last one from github.com/enyac-group/NeuralPower,
``neuralpower_paleo/nets/``). Fully connected layers are convolutions over the whole map there, and
so they are here. The profiler that timed them built neither biases nor activations;
``activations=True`` adds a bias to every convolution and ReLU after it, as the networks were meant
to be trained and used.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import nn

__all__ = [
    "NETWORKS",
    "PAPER_TABLE",
    "Network",
    "alexnet_v2",
    "cifar10_6conv",
    "nin",
    "overfeat",
    "vgg16",
]


class Network(NamedTuple):
    """One network and its row of the paper's table (GTX Titan X Maxwell, TensorFlow).

    Attributes
    ----------
    name
        As the paper spells it.
    factory
        Builds the model in eval mode; cheap under ``torch.device("meta")``.
    input_shape
        ``(batch, channels, height, width)`` of the measured call.
    paper_ms, paper_w, paper_j
        Measured runtime, power and energy of one forward call of the batch.
    paleo_ms, neuralpower_ms, neuralpower_j
        Runtime that Paleo and NeuralPower predicted, and NeuralPower's energy.
    golden_ms
        ``FLOPs / 6144e9 + bytes / 2**30 / 336.5`` over the convolutions (bytes: padded input,
        weights, output), in ms: pins every layer of the network.
    """

    name: str
    factory: Callable[..., nn.Module]
    input_shape: tuple[int, int, int, int]
    paper_ms: float
    paper_w: float
    paper_j: float
    paleo_ms: float
    neuralpower_ms: float
    golden_ms: float
    neuralpower_j: float


_NAMES = {"Conv2d": "conv", "MaxPool2d": "pool", "AvgPool2d": "pool", "ReLU": "relu"}


def _network(name: str, layers: Iterable[nn.Module]) -> nn.Module:
    """The layers in a row under readable names: conv1, conv2, pool1, ..."""
    counts: Counter[str] = Counter()
    network = type(name, (nn.Sequential,), {})()
    for layer in layers:
        kind = type(layer).__name__
        stem = _NAMES.get(kind, kind.lower())
        counts[stem] += 1
        network.add_module(f"{stem}{counts[stem]}", layer)
    return network.eval()


def _conv(
    cin: int, cout: int, kernel: int, *, stride: int = 1, padding: int = 0, activations: bool
) -> list[nn.Module]:
    conv = nn.Conv2d(cin, cout, kernel, stride, padding, bias=activations)
    return [conv, nn.ReLU(inplace=True)] if activations else [conv]


def _dense(widths: tuple[int, ...], map_size: int, *, activations: bool) -> list[nn.Module]:
    """Fully connected layers as convolutions: the first sees the whole map, the rest one pixel."""
    layers: list[nn.Module] = []
    for index, (cin, cout) in enumerate(itertools.pairwise(widths)):
        last = index == len(widths) - 2
        layers += _conv(cin, cout, map_size if index == 0 else 1, activations=activations)
        if last and activations:
            layers.pop()  # logits
        if not last:
            layers.append(nn.Dropout())
    return layers


def vgg16(*, activations: bool = False) -> nn.Module:
    """VGG-16 (tf-slim), for inputs of ``(N, 3, 224, 224)``; returns ``(N, 1000, 1, 1)``."""
    layers: list[nn.Module] = []
    cin = 3
    for cout, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(repeats):
            layers += _conv(cin, cout, 3, padding=1, activations=activations)
            cin = cout
        layers.append(nn.MaxPool2d(2, 2))
    layers += _dense((512, 4096, 4096, 1000), 7, activations=activations)
    return _network("VGG16", layers)


def alexnet_v2(*, activations: bool = False) -> nn.Module:
    """AlexNet v2, "one weird trick" (tf-slim), for ``(N, 3, 224, 224)``; ``(N, 1000, 1, 1)``."""
    on = activations
    layers = [
        *_conv(3, 64, 11, stride=4, activations=on),
        nn.MaxPool2d(3, 2),
        *_conv(64, 192, 5, padding=2, activations=on),
        nn.MaxPool2d(3, 2),
        *_conv(192, 384, 3, padding=1, activations=on),
        *_conv(384, 384, 3, padding=1, activations=on),
        *_conv(384, 256, 3, padding=1, activations=on),
        nn.MaxPool2d(3, 2),
        *_dense((256, 4096, 4096, 1000), 5, activations=on),
    ]
    return _network("AlexNetV2", layers)


def nin(*, activations: bool = False) -> nn.Module:
    """Network in Network (ImageNet), for ``(N, 3, 224, 224)``; returns ``(N, 1000, 1, 1)``."""
    on = activations
    layers = [
        *_conv(3, 96, 11, stride=4, activations=on),
        *_conv(96, 96, 1, activations=on),
        *_conv(96, 96, 1, activations=on),
        nn.MaxPool2d(3, 2),
        *_conv(96, 256, 5, padding=2, activations=on),
        *_conv(256, 256, 1, activations=on),
        *_conv(256, 256, 1, activations=on),
        nn.MaxPool2d(3, 2),
        *_conv(256, 384, 3, padding=1, activations=on),
        *_conv(384, 384, 1, activations=on),
        *_conv(384, 384, 1, activations=on),
        nn.MaxPool2d(3, 2),
        nn.Dropout(),
        *_conv(384, 1024, 3, padding=1, activations=on),
        *_conv(1024, 1024, 1, activations=on),
        *_conv(1024, 1000, 1, activations=on),
        nn.AvgPool2d(5, 1),
    ]
    return _network("NIN", layers)


def overfeat(*, activations: bool = False) -> nn.Module:
    """OverFeat (tf-slim), for inputs of ``(N, 3, 231, 231)``; returns ``(N, 1000, 1, 1)``."""
    on = activations
    layers = [
        *_conv(3, 64, 11, stride=4, activations=on),
        nn.MaxPool2d(2, 2),
        *_conv(64, 256, 5, activations=on),
        nn.MaxPool2d(2, 2),
        *_conv(256, 512, 3, padding=1, activations=on),
        *_conv(512, 1024, 3, padding=1, activations=on),
        *_conv(1024, 1024, 3, padding=1, activations=on),
        nn.MaxPool2d(2, 2),
        *_dense((1024, 3072, 4096, 1000), 6, activations=on),
    ]
    return _network("Overfeat", layers)


def cifar10_6conv(*, activations: bool = False) -> nn.Module:
    """Six convolutions for CIFAR-10, for ``(N, 3, 32, 32)``; returns ``(N, 10, 1, 1)``."""
    layers: list[nn.Module] = []
    cin = 3
    for cout in (128, 256, 512):
        for _ in range(2):
            layers += _conv(cin, cout, 3, padding=1, activations=activations)
            cin = cout
        if cout != 512:
            layers.append(nn.MaxPool2d(2, 2))
    layers += _dense((512, 1024, 1024, 10), 8, activations=activations)
    return _network("Cifar10SixConv", layers)


#: Measured rows of the paper (ACML 2017, network level, GTX Titan X Maxwell, TensorFlow), next to
#: the predictions of Paleo and of NeuralPower itself. Energy is joules of one call of the batch.
NETWORKS: tuple[Network, ...] = (
    Network(
        "VGG-16", vgg16, (64, 3, 224, 224), 368.42, 204.80, 75.452, 345.83, 373.82, 340.27, 77.312
    ),
    Network(
        "AlexNet v2",
        alexnet_v2,
        (128, 3, 224, 224),
        39.02,
        194.62,
        7.594,
        33.16,
        43.41,
        32.50,
        7.565,
    ),
    Network("NIN", nin, (128, 3, 224, 224), 50.66, 226.34, 11.465, 45.68, 62.62, 44.69, 11.269),
    Network(
        "Overfeat",
        overfeat,
        (128, 3, 231, 231),
        197.99,
        172.30,
        34.113,
        114.71,
        195.21,
        113.79,
        33.616,
    ),
    # The paper's energy; its power times its runtime is 8.453 J.
    Network(
        "CIFAR10-6conv",
        cifar10_6conv,
        (128, 3, 32, 32),
        50.09,
        188.34,
        9.433,
        28.75,
        51.13,
        28.39,
        8.938,
    ),
)

#: The same by name.
PAPER_TABLE: dict[str, Network] = {network.name: network for network in NETWORKS}


def meta_call(network: Network, *, activations: bool = False) -> tuple[nn.Module, torch.Tensor]:
    """The network and its input on the meta device: shapes only, nothing allocated."""
    with torch.device("meta"):
        return network.factory(activations=activations), torch.empty(network.input_shape)
