"""Networks of NAS-Bench-201 from the strings that name their cells.

X. Dong and Y. Yang, "NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture
Search", ICLR 2020: a stem, three stages of five equal cells, and blocks of stride 2 between them.
Layers are those of the authors' code, which runs what leads nowhere and multiplies by zero.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from torch import Tensor, nn

#: Channels of the three stages, cells in each, and classes of CIFAR-10.
_CHANNELS: Final = (16, 32, 64)
_CELLS: Final = 5
_CLASSES: Final = 10

_EDGE: Final = re.compile(r"(\w+)~(\d)")


def create(cell: str) -> nn.Module:
    """A network with random weights.

    Parameters
    ----------
    cell
        Such as ``|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|none~1|skip_connect~2|``:
        by node the operations on the nodes before it, of which it is the sum.

    Raises
    ------
    KeyError
        An operation is none of the five.
    """
    nodes = cell.split("+")
    return _Network([[(name, int(node)) for name, node in _EDGE.findall(edges)] for edges in nodes])


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


class _Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul(0.0)


_OPERATIONS: Final[dict[str, Callable[[int], nn.Module]]] = {
    "none": lambda _: _Zero(),
    "skip_connect": lambda _: nn.Identity(),
    "nor_conv_1x1": lambda channels: _convolution(channels, channels, 1),
    "nor_conv_3x3": lambda channels: _convolution(channels, channels, 3),
    "avg_pool_3x3": lambda _: nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
}


class _Cell(nn.Module):
    def __init__(self, nodes: list[list[tuple[str, int]]], channels: int) -> None:
        super().__init__()
        self.sources = [[node for _, node in edges] for edges in nodes]
        self.nodes = nn.ModuleList(
            nn.ModuleList(_OPERATIONS[name](channels) for name, _ in edges) for edges in nodes
        )

    def forward(self, x: Tensor) -> Tensor:
        known = [x]
        for operations, sources in zip(self.nodes, self.sources, strict=True):
            edges = zip(operations, sources, strict=True)
            known.append(sum(run(known[node]) for run, node in edges))  # as theirs, from 0
        return known[-1]


class _Reduction(nn.Module):
    """A residual block of stride 2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = _convolution(inputs, outputs, 3, stride=2)
        self.second = _convolution(outputs, outputs, 3)
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, stride=2), nn.Conv2d(inputs, outputs, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.second(self.first(x))


class _Network(nn.Module):
    def __init__(self, nodes: list[list[tuple[str, int]]]) -> None:
        super().__init__()
        width = _CHANNELS[0]
        stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(width))
        body: list[nn.Module] = []
        for channels in _CHANNELS:
            if channels != width:
                body.append(_Reduction(width, channels))
            width = channels
            body += [_Cell(nodes, channels) for _ in range(_CELLS)]
        self.body = nn.Sequential(*body)
        self.last = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.last(self.body(self.stem(x))))
        return self.classifier(x.view(x.size(0), -1))
