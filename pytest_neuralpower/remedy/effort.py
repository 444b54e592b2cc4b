"""How much advice may do: counted, not timed, so that it is the same on a busy machine."""

from __future__ import annotations

__all__ = ["Effort"]


class Effort:
    """Layers that may still be traced or priced; a processor does some 20,000 in a second."""

    def __init__(self, layers: float) -> None:
        self._left = layers

    @property
    def is_left(self) -> bool:
        return self._left > 0

    def spend(self, layers: int) -> None:
        self._left -= layers
