"""How far each part of a model is pruned: dearest parts first, or greedy.

A part is a layer with its density, or a channel group with its width; each has a curve of points
from what it is now to what is least, with the error of the outputs at each.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

__all__ = ["Choice", "Order", "choose_dearest_first", "choose_greedy", "choosers"]

Order = Literal["energy", "greedy"]

#: Errors along each part's curve, by name: 0 for what it is now, then of less and less.
Errors = Mapping[str, Sequence[float]]
#: Index of each part's chosen point.
Choice = Mapping[str, int]
#: Cost of the call (mJ or ms) with a choice.
Cost = Callable[[Choice], float]


def choose_dearest_first(
    errors: Errors, cost: Cost, limit: float, dearest: Sequence[str]
) -> dict[str, int]:
    """The paper's order: parts by their cost, each as far as one common tolerance allows.

    The tolerance bounds the relative squared error of a part's outputs; it is the least one at
    which the call costs at most ``limit``. Parts are visited in the order of ``dearest``, and those
    after the limit is met stay at the tolerance before. All are at their least where even that
    costs more.
    """
    tolerances = sorted({error for curve in errors.values() for error in curve})

    def allowed(tolerance: float) -> dict[str, int]:
        return {
            name: max(at for at, error in enumerate(curve) if not at or error <= tolerance)
            for name, curve in errors.items()
        }

    found = bisect_left(tolerances, True, key=lambda each: cost(allowed(each)) <= limit)
    if found == len(tolerances):
        return {name: len(curve) - 1 for name, curve in errors.items()}
    choice = allowed(tolerances[found - 1]) if found else dict.fromkeys(errors, 0)
    wanted = allowed(tolerances[found])
    for name in dearest:
        while choice[name] < wanted[name] and cost(choice) > limit:
            choice[name] += 1
    return choice


def choose_greedy(
    errors: Errors, cost: Cost, limit: float, dearest: Sequence[str]
) -> dict[str, int]:
    """One step at a time of the part whose outputs suffer least for what the step saves.

    A step goes to the next point that saves anything, so that a flat stretch is stepped over.
    ``dearest`` breaks ties.
    """
    choice = dict.fromkeys(dearest, 0)
    now = cost(choice)
    while now > limit:
        steps = []
        for rank, name in enumerate(dearest):
            for at in range(choice[name] + 1, len(errors[name])):
                saved = now - cost({**choice, name: at})
                if saved > 0:
                    harm = errors[name][at] - errors[name][choice[name]]
                    steps.append((harm / saved, rank, name, at))
                    break
        if not steps:
            break
        _, _, name, at = min(steps)
        choice[name] = at
        now = cost(choice)
    return choice


choosers: Final[Mapping[Order, Callable[[Errors, Cost, float, Sequence[str]], dict[str, int]]]] = {
    "energy": choose_dearest_first,
    "greedy": choose_greedy,
}
