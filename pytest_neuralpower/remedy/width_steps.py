"""Widths that a planner steps between: the upper edges of a platform's plateaus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

__all__ = ["candidate_widths", "expanded"]

#: Widths within this share of a cost are on one plateau.
PLATEAU: Final = 0.01
#: Widths fall by at least this factor from one candidate to the next.
_FALL: Final = 0.9


def candidate_widths(
    width: int,
    step: int,
    cost: Callable[[int], float],
    *,
    widths: Literal["plateau"] | int = "plateau",
) -> list[int]:
    """Widths below ``width`` to step to, falling.

    Parameters
    ----------
    step
        Widths are multiples of it.
    cost
        Cost of the call with this one width changed.
    widths
        ``plateau``: the widest width on each plateau of ``cost``, as a step inside one saves
        nothing. A number: its multiples.
    """
    if widths != "plateau":
        every = [each for each in range(step, width, step) if each % widths == 0]
        return every[::-1]
    found: list[int] = []
    target = width * _FALL
    dearest = cost(width)
    while target >= step:
        narrow = max(step, int(target) // step * step)
        edge = expanded(narrow, width, step, cost)
        last = found[-1] if found else width
        if edge < last and cost(edge) < dearest:
            found.append(edge)
        target = min(narrow, edge) * _FALL if edge < last else narrow * _FALL
        if narrow == step:
            break
    return found


def expanded(
    width: int, most: int, step: int, cost: Callable[[int], float], *, slack: float = PLATEAU
) -> int:
    """The widest width from ``width`` to ``most`` that costs about as much as ``width``, or less.

    More channels can even run faster (Yao et al., SenSys 2018).
    """
    allowed = cost(width) * (1 + slack)
    best = width
    for each in range(width + step, most + 1, step):
        if cost(each) <= allowed:
            best = each
    return best
