"""Draws: sizes of a random network, log-uniform, some aligned and some odd."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Draw", "Network"]

T = TypeVar("T")


class Network(NamedTuple):
    """A model and the inputs of one call."""

    model: nn.Module
    inputs: tuple[Tensor, ...]


class Draw:
    """A seeded source of sizes.

    Python's own generator: its numbers for a seed are the same on every machine and version.
    """

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def log(self, low: float, high: float) -> float:
        """Log-uniform number."""
        return float(low * (high / low) ** self._random.random())

    def size(self, low: int, high: int) -> int:
        """Log-uniform whole number, both ends included."""
        return min(max(round(self.log(low, high)), low), high)

    def chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def pick(self, *choices: T) -> T:
        return self._random.choice(choices)

    def some(self, choices: Sequence[T], count: int) -> list[T]:
        return self._random.sample(list(choices), count)

    def width(self, low: int, high: int) -> int:
        """A number of channels or features: in three of four draws a multiple of 32, 16, 8 or 4,
        as libraries' vectors and most architectures are; otherwise any."""
        found = self.size(low, high)
        step = self.pick(32, 16, 8, 8, 4, 1, 1, 32)
        return max(step, round(found / step) * step) if found > step else found

    def batch(self) -> int:
        return self.pick(1, 1, 1, 1, 2, 3, 4, 4, 5, 8, 16)

    def image(self, *, most: float = 2.0**24.5) -> tuple[int, int, int, int]:
        """Shape of a feature map: how large it is first, then how that is spread over the axes.

        ``most`` bounds its elements; the large end is some tens of megabytes on purpose, where
        caches end and allocators change their ways.
        """
        batch = self.batch()
        # Drawn as the square of a uniform share: more large maps than small ones.
        share = 1.0 - (1.0 - self._random.random()) ** 1.5
        elements = 2.0**11 * (most / 2.0**11) ** share
        across = self.size(5, 240)
        channels = elements / (batch * across * across)
        if channels < 3:
            across = max(int(math.sqrt(elements / (batch * 3))), 3)
            channels = 3.0
        return batch, self.aligned(min(channels, 1536.0)), across, self._beside(across)

    def aligned(self, width: float) -> int:
        """A drawn width, put on a multiple as :meth:`width` does."""
        step = self.pick(32, 16, 8, 8, 4, 1, 1, 32)
        return max(step, round(width / step) * step) if width > step else max(round(width), 1)

    def _beside(self, across: int) -> int:
        """The map's other side: mostly the same."""
        return across if self.chance(0.85) else max(3, round(across * self.log(0.5, 2.0)))
