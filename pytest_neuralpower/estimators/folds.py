"""Grouped folds: what is held out is held out whole."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from pytest_neuralpower.errors import FitError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Fewer groups than this cannot judge anything.
MIN_GROUPS: Final = 3


def grouped_folds(groups: Sequence[Hashable], folds: int) -> NDArray[np.intp]:
    """Fold of each row; all rows of one group share a fold, and folds are about equally large.

    Deterministic: groups go, largest first and then in order of appearance, to the fold that has
    fewest rows.
    """
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    if len(members) < MIN_GROUPS:
        raise FitError(
            f"{len(members)} different layer shapes, {MIN_GROUPS} are needed to hold any out: "
            "measure more configurations"
        )
    result = np.zeros(len(groups), dtype=np.intp)
    load = [0] * min(folds, len(members))
    for rows in sorted(members.values(), key=len, reverse=True):
        fold = load.index(min(load))
        load[fold] += len(rows)
        result[rows] = fold
    return result


def whole_groups(groups: Sequence[Hashable], most: int) -> NDArray[np.intp]:
    """Rows of whole groups, about ``most`` of them, evenly over the order of appearance.

    Choosing a hyper-parameter needs no more rows than that, and takes time with each. All rows
    where there are no more.
    """
    if len(groups) <= most:
        return np.arange(len(groups))
    order = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    step = len(groups) / most
    kept = {int(place) for place in np.arange(0.0, len(order), step)}
    return np.flatnonzero([order[group] in kept for group in groups])
