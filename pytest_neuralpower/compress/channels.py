"""The whole numbers of a layer as one tuple, and a layer with other numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from pytest_neuralpower.errors import CompressError
from pytest_neuralpower.layers import Layer, Params, ParamValue, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pytest_neuralpower.layers import Trace

__all__ = [
    "ChannelGroup",
    "ChannelGroups",
    "Gains",
    "Slot",
    "form",
    "read_sizes",
    "write_sizes",
]


def _is_size(value: Any) -> bool:
    return type(value) is int  # a bool is no size


def _is_sizes(value: Any) -> bool:
    return type(value) is tuple and all(type(each) is int for each in value)


def read_sizes(layer: Layer) -> tuple[int, ...]:
    """Every dimension of every tensor and every whole number among the hyper-parameters."""
    sizes: list[int] = []
    for tensors in (layer.inputs, layer.weights, layer.outputs):
        for tensor in tensors:
            sizes += tensor.shape
    for _, value in layer.params:
        if _is_size(value):
            sizes.append(value)  # type: ignore[arg-type]
        elif _is_sizes(value):
            sizes += value  # type: ignore[arg-type]
    return tuple(sizes)


def write_sizes(layer: Layer, sizes: tuple[int, ...]) -> Layer:
    """``layer`` with other numbers, in the order of :func:`read_sizes`."""
    inputs, done = _tensors(layer.inputs, sizes, 0)
    weights, done = _tensors(layer.weights, sizes, done)
    outputs, done = _tensors(layer.outputs, sizes, done)
    params = layer.params
    if done < len(sizes):
        params = _params(params, sizes, done)
    return Layer(layer.kind, layer.op, layer.path, inputs, weights, outputs, layer.dtype, params)


def _tensors(
    tensors: tuple[TensorSpec, ...], sizes: tuple[int, ...], done: int
) -> tuple[tuple[TensorSpec, ...], int]:
    """The tensors with the sizes from place ``done`` on, and the place after them."""
    found = []
    for shape, dtype in tensors:
        end = done + len(shape)
        found.append(TensorSpec(sizes[done:end], dtype))
        done = end
    return tuple(found), done


def _params(params: Params, sizes: tuple[int, ...], done: int) -> Params:
    found: list[tuple[str, ParamValue]] = []
    for name, value in params:
        if _is_size(value):
            found.append((name, sizes[done]))
            done += 1
        elif _is_sizes(value):
            end = done + len(value)  # type: ignore[arg-type]
            found.append((name, sizes[done:end]))
            done = end
        else:
            found.append((name, value))
    return tuple(found)


def form(layer: Layer) -> Layer:
    """What layers that differ in sizes alone have in common: the layer with every size 0."""
    return write_sizes(layer, (0,) * len(read_sizes(layer)))


# -- Channel groups: which widths of a model must change together, and its layers at other widths.
#
# A *unit* is the smallest set of channels that can be removed: one channel of a plain convolution,
# the same position of each group of a grouped one. A *group* holds all units that run through the
# same axes of the same modules; its width counts the channels of its first axis. Every size of a
# traced layer is an affine function of the groups' widths, so that layers at other widths follow
# from the traced ones by addition, without building a model.

#: Modules whose weights turn one width into another; the others only carry a width along.
_MIXERS: Final = ("conv", "linear", "embedding")

#: What each size of a layer (by place in the trace) or dimension of a parameter (by name) gains
#: with one more unit; those that gain nothing are left out.
Gains: TypeAlias = Mapping[int | str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """One axis of one module's weights that a group runs through.

    Attributes
    ----------
    path
        Dotted path of the module; of the parameter itself where ``kind`` is ``parameter``.
    axis
        ``out`` for what the module writes (norms and depthwise convolutions have no other),
        ``in`` for what it reads.
    kind
        ``conv``, ``depthwise``, ``linear``, ``norm``, ``embedding``, ``prelu`` or ``parameter``.
    indices
        ``(units, k)``: channels of this axis that belong to each unit, units ascending.
    dim
        Dimension of the tensor, for a ``parameter``; 0 otherwise.
    """

    path: str
    axis: Literal["out", "in"]
    kind: str
    indices: NDArray[np.intp]
    dim: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class ChannelGroup:
    """Channels that are kept or removed together, unit by unit.

    Attributes
    ----------
    name
        Path of the first module that writes them; with ``[start:stop]`` where the group is only a
        part of that module's channels.
    slots
        Every axis that the group runs through; the first is the one that ``width`` counts.
    units
        How many units there are.
    step
        Channels of the first axis in one unit: widths are multiples of it.
    frozen
        Why its width may not change, in words; empty where it may.
    """

    name: str
    slots: tuple[Slot, ...]
    units: int
    step: int = 1
    frozen: str = ""

    @property
    def width(self) -> int:
        """Channels of the first axis."""
        return self.units * self.step

    @property
    def producers(self) -> tuple[str, ...]:
        """Paths of the modules whose weights write these channels."""
        return tuple(s.path for s in self.slots if s.axis == "out" and s.kind in _MIXERS)

    @property
    def consumers(self) -> tuple[str, ...]:
        """Paths of the modules whose weights read these channels."""
        return tuple(s.path for s in self.slots if s.axis == "in" and s.kind in _MIXERS)

    def units_at(self, width: int) -> int:
        """How many units make up ``width`` channels.

        Raises
        ------
        CompressError
            For another width of a frozen group, or one that is no positive multiple of ``step``.
        """
        if self.frozen and width != self.width:
            raise CompressError(f"{self.name}: its width may not change: {self.frozen}")
        if width < self.step or width % self.step:
            raise CompressError(
                f"{self.name}: it cannot have {width} channels; give a multiple of {self.step} "
                f"from {self.step} (it has {self.width})"
            )
        return width // self.step


@dataclass(frozen=True)
class ChannelGroups:
    """All channel groups of one model with one set of inputs.

    Attributes
    ----------
    trace
        The layers at the present widths.
    groups
        Those that may change and those that may not, in order of execution.
    gains
        Of each group that may change, by name: what one more unit adds to its layers' sizes.
    shapes
        Shape of every parameter of the model, by name.
    shape_gains
        Of each group that may change, by name: what one more unit adds to those shapes.
    """

    trace: Trace
    groups: tuple[ChannelGroup, ...]
    gains: Mapping[str, Gains] = field(repr=False)
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    shape_gains: Mapping[str, Gains] = field(repr=False)

    @property
    def changeable(self) -> tuple[ChannelGroup, ...]:
        """The groups whose width may change."""
        return tuple(group for group in self.groups if not group.frozen)

    @property
    def frozen(self) -> dict[str, str]:
        """Why each of the other groups may not change, by name."""
        return {group.name: group.frozen for group in self.groups if group.frozen}

    @property
    def widths(self) -> dict[str, int]:
        """Present width of every group that may change."""
        return {group.name: group.width for group in self.changeable}

    def __getitem__(self, name: str) -> ChannelGroup:
        """The group of that name; raises CompressError where there is none."""
        if name not in self._by_name:
            raise CompressError(
                f"no channel group {name!r}; there are {', '.join(self._by_name) or 'none'}"
            )
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, ChannelGroup]:
        return {group.name: group for group in self.groups}

    def reached(self, name: str) -> tuple[int, ...]:
        """Places in the trace of the layers whose sizes depend on one group's width."""
        return tuple(int(place) for place in self.gains.get(name, ()))

    def with_widths(self, layers: Sequence[Layer], widths: Mapping[str, int]) -> tuple[Layer, ...]:
        """The layers with some groups at other widths; widths above the present ones too.

        Parameters
        ----------
        layers
            Those of ``trace``, in its order.
        widths
            Channels by group's name; groups left out stay as they are.

        Raises
        ------
        CompressError
            For an unknown or frozen group, or a width that it cannot have.
        """
        changed = list(layers)
        for place, added in self._added(self.gains, widths).items():
            sizes = read_sizes(layers[place])  # type: ignore[index]
            changed[place] = write_sizes(  # type: ignore[index]
                layers[place],  # type: ignore[index]
                tuple([size + more for size, more in zip(sizes, added, strict=True)]),
            )
        return tuple(changed)

    def layers_at(self, places: Sequence[int], widths: Mapping[str, int]) -> list[Layer]:
        """Only the layers at ``places`` of the trace, at the given widths."""
        added = self._added(self.gains, widths)
        found = []
        for place in places:
            layer = self.trace.layers[place]
            if place in added:
                sizes = zip(read_sizes(layer), added[place], strict=True)
                layer = write_sizes(layer, tuple([size + more for size, more in sizes]))
            found.append(layer)
        return found

    def parameters(self, widths: Mapping[str, int] | None = None) -> int:
        """Number of values in the model's parameters at the given widths."""
        added = self._added(self.shape_gains, widths or {})
        return sum(
            math.prod(map(sum, zip(shape, added[name], strict=True)))
            if name in added
            else math.prod(shape)
            for name, shape in self.shapes.items()
        )

    def _added(
        self, gains: Mapping[str, Gains], widths: Mapping[str, int]
    ) -> dict[int | str, tuple[int, ...]]:
        """What the widths add to sizes, all groups together."""
        added: dict[int | str, tuple[int, ...]] = {}
        for name, width in widths.items():
            group = self[name]
            more = group.units_at(width) - group.units
            if not more:
                continue
            for place, gain in gains[name].items():
                before = added.get(place)
                added[place] = (
                    tuple([more * each for each in gain])
                    if before is None
                    else tuple([old + more * each for old, each in zip(before, gain, strict=True)])
                )
        return added
