"""Pairs of channels that belong together, to channel groups: a union-find over single channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pytest_neuralpower.remedy.channels import ChannelGroup, Slot

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.remedy.torch_pruning import Axis, Coupling

__all__ = ["groups_of"]

#: Kind of module -> why a width that it shares may not change.
_LEFT_ALONE = {
    "attention": "attention heads are left alone",
    "rnn": "recurrent widths are left alone",
}


def groups_of(couplings: Sequence[Coupling], order: dict[str, int]) -> list[ChannelGroup]:
    """Channel groups in order of execution.

    Parameters
    ----------
    couplings
        As :func:`~pytest_neuralpower.remedy.torch_pruning.follow` found them.
    order
        Path of a module -> its place in the order of execution.
    """
    axes = list(dict.fromkeys(axis for pair in couplings for axis in (pair.root, pair.axis)))
    starts = dict(zip(axes, np.cumsum([0, *(axis.size for axis in axes)]), strict=False))
    labels = _components(couplings, axes, starts)
    frozen = _frozen(couplings, starts, labels)
    members: dict[int, dict[Axis, list[int]]] = {}
    for axis in axes:
        start = int(starts[axis])
        for channel, label in enumerate(labels[start : start + axis.size].tolist()):
            members.setdefault(label, {}).setdefault(axis, []).append(channel)
    last = len(order)
    alike: dict[tuple[tuple[Axis, int], ...], list[int]] = {}
    for label, unit in members.items():
        key = sorted(
            ((axis, len(channels)) for axis, channels in unit.items()),
            key=lambda each: (order.get(each[0].path, last), each[0].path, each[0].axis == "in"),
        )
        alike.setdefault(tuple(key), []).append(label)
    found = []
    for key, units in alike.items():
        producers = [place for place, (axis, _) in enumerate(key) if axis.axis == "out"]
        if not any(key[place][0].kind in ("conv", "linear") for place in producers):
            continue
        # Units in the order of the channels that the width counts.
        first = next(p for p in producers if key[p][0].kind in ("conv", "linear"))
        ordered = [key[first], *key[:first], *key[first + 1 :]]
        units.sort(key=lambda label: members[label][ordered[0][0]])
        slots = tuple(
            Slot(
                axis.path,
                axis.axis,
                axis.kind,
                np.array([members[label][axis] for label in units], dtype=np.intp),
                axis.dim,
            )
            for axis, _ in ordered
        )
        reasons = [frozen[label] for label in units if label in frozen]
        reasons += [_LEFT_ALONE[axis.kind] for axis, _ in key if axis.kind in _LEFT_ALONE]
        found.append(
            ChannelGroup(
                _name(ordered[0][0], slots[0].indices),
                slots,
                units=len(units),
                step=ordered[0][1],
                frozen=reasons[0] if reasons else "",
            )
        )
    return sorted(found, key=lambda group: order.get(group.slots[0].path, last))


def _components(
    couplings: Sequence[Coupling], axes: Sequence[Axis], starts: dict[Axis, int]
) -> NDArray[np.intp]:
    """Label of every channel of every axis; equal labels belong together."""
    parents = np.arange(sum(axis.size for axis in axes))
    for pair in couplings:
        known = pair.root_channels >= 0
        _join(
            parents,
            starts[pair.root] + pair.root_channels[known],
            starts[pair.axis] + pair.channels[known],
        )
    for axis in axes:
        if axis.groups > 1 and axis.size % axis.groups == 0:
            # Each group of a grouped convolution must keep equally many: the same positions.
            places = starts[axis] + np.arange(axis.size).reshape(axis.groups, -1)
            for later in places[1:]:
                _join(parents, places[0], later)
    return _roots(parents, np.arange(len(parents)))


def _join(parents: NDArray[np.intp], first: NDArray[np.intp], second: NDArray[np.intp]) -> None:
    """Unite pairs, all at once; repeated until every pair has one root."""
    while True:
        left, right = _roots(parents, first), _roots(parents, second)
        apart = left != right
        if not apart.any():
            return
        low, high = np.minimum(left, right)[apart], np.maximum(left, right)[apart]
        parents[high] = low  # of several, one wins; the others are joined in the next round


def _roots(parents: NDArray[np.intp], where: NDArray[np.intp]) -> NDArray[np.intp]:
    found = parents[where]
    while True:
        above = parents[found]
        if (above == found).all():
            return found
        found = above


def _frozen(
    couplings: Sequence[Coupling], starts: dict[Axis, int], labels: NDArray[np.intp]
) -> dict[int, str]:
    """Label -> why its channels may not change."""
    found: dict[int, str] = {}
    for pair in couplings:
        reason = pair.through and f"{pair.through} moves its channels"
        if (pair.root_channels < 0).any():
            reason = "its channels are repeated for several attention heads"
        if reason:
            for label in labels[starts[pair.root] + np.arange(pair.root.size)].tolist():
                found.setdefault(label, reason)
    return found


def _name(axis: Axis, indices: NDArray[np.intp]) -> str:
    if indices.size == axis.size:
        return axis.path
    return f"{axis.path}[{indices.min()}:{indices.max() + 1}]"
