"""Pairs of channels that belong together, to channel groups: a union-find over single channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from pytest_neuralpower.remedy.channels import ChannelGroup, Slot

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.remedy.torch_pruning import Axis, Coupling

__all__ = ["groups_of"]

#: Modules whose channels a group's width counts.
_WRITERS: Final = ("conv", "linear")

#: Kind of module -> why a width that it shares may not change.
_LEFT_ALONE: Final = {
    "attention": "attention heads are left alone",
    "rnn": "recurrent widths are left alone",
}


def groups_of(couplings: Sequence[Coupling], order: Mapping[str, int]) -> list[ChannelGroup]:
    """Channel groups in order of execution.

    Parameters
    ----------
    couplings
        As :func:`~pytest_neuralpower.remedy.torch_pruning.follow` found them.
    order
        Path of a module -> its place in the order of execution.
    """
    last = len(order)
    axes = sorted(
        dict.fromkeys(axis for pair in couplings for axis in (pair.root, pair.axis)),
        key=lambda axis: (order.get(axis.path, last), axis.path, axis.axis == "in"),
    )
    ends = np.cumsum([axis.size for axis in axes]).tolist()
    starts = dict(zip(axes, [0, *ends], strict=False))
    labels = _components(couplings, axes, starts)
    reasons = _reasons(couplings, starts, labels)
    found = []
    for through, units in _alike(axes, labels):
        written = [axis for axis in through if axis.axis == "out" and axis.kind in _WRITERS]
        if not written:
            continue
        shared = [_LEFT_ALONE[axis.kind] for axis in through if axis.kind in _LEFT_ALONE]
        shared += [reasons[unit] for unit in units.tolist() if unit in reasons]
        found.append(
            _group(
                [written[0], *(axis for axis in through if axis is not written[0])],
                {axis: labels[starts[axis] : starts[axis] + axis.size] for axis in through},
                units,
                frozen=shared[0] if shared else "",
            )
        )
    return sorted(found, key=lambda group: order.get(group.slots[0].path, last))


def _components(
    couplings: Sequence[Coupling], axes: Sequence[Axis], starts: Mapping[Axis, int]
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
    """Unite pairs, all at once, until every pair has one root."""
    while True:
        left, right = _roots(parents, first), _roots(parents, second)
        apart = left != right
        if not apart.any():
            return
        # Of several that would get one root's place, one wins; the next round joins the others.
        parents[np.maximum(left, right)[apart]] = np.minimum(left, right)[apart]


def _roots(parents: NDArray[np.intp], where: NDArray[np.intp]) -> NDArray[np.intp]:
    found = parents[where]
    while True:
        above = parents[found]
        if (above == found).all():
            return found
        found = above


def _reasons(
    couplings: Sequence[Coupling], starts: Mapping[Axis, int], labels: NDArray[np.intp]
) -> dict[int, str]:
    """Label -> why its channels may not change, as far as the operations on their way tell."""
    found: dict[int, str] = {}
    for pair in couplings:
        reason = pair.through and f"{pair.through} moves its channels"
        if (pair.root_channels < 0).any():
            reason = "its channels are repeated for several attention heads"
        if reason:
            for label in labels[starts[pair.root] + np.arange(pair.root.size)].tolist():
                found.setdefault(label, reason)
    return found


def _alike(
    axes: Sequence[Axis], labels: NDArray[np.intp]
) -> list[tuple[list[Axis], NDArray[np.intp]]]:
    """Axes in order, with the labels that run through just these with equally many channels."""
    owners = np.repeat(np.arange(len(axes)), [axis.size for axis in axes])
    cells, counts = np.unique(np.stack([labels, owners]), axis=1, return_counts=True)
    through: dict[int, list[tuple[int, int]]] = {}
    for label, owner, count in zip(*cells.tolist(), counts.tolist(), strict=True):
        through.setdefault(label, []).append((owner, count))
    alike: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for label, key in through.items():
        alike.setdefault(tuple(key), []).append(label)
    return [
        ([axes[owner] for owner, _ in key], np.array(units, dtype=np.intp))
        for key, units in alike.items()
    ]


def _group(
    through: Sequence[Axis],
    labels: Mapping[Axis, NDArray[np.intp]],
    units: NDArray[np.intp],
    *,
    frozen: str,
) -> ChannelGroup:
    """The group of these units; its width counts the channels of the first axis."""
    first = labels[through[0]]
    ordered = first[np.isin(first, units)]  # units in the order of the channels that are counted
    _, places = np.unique(ordered, return_index=True)
    ordered = ordered[np.sort(places)]
    rank = np.full(int(units.max()) + 1, -1, dtype=np.intp)
    rank[ordered] = np.arange(len(ordered))
    slots = []
    for axis in through:
        mine = np.flatnonzero(np.isin(labels[axis], units))
        indices = mine[np.argsort(rank[labels[axis][mine]], kind="stable")]
        slots.append(
            Slot(axis.path, axis.axis, axis.kind, indices.reshape(len(units), -1), axis.dim)
        )
    counted = slots[0].indices
    name = through[0].path
    if counted.size != through[0].size:
        name += f"[{counted.min()}:{counted.max() + 1}]"
    return ChannelGroup(name, tuple(slots), len(units), counted.shape[1], frozen)
