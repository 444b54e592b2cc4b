"""Channel groups: which widths of a model must change together, and its layers at other widths.

A *unit* is the smallest set of channels that can be removed: one channel of a plain convolution,
the same position of each group of a grouped one. A *group* holds all units that run through the
same axes of the same modules; its width counts the channels of its first axis. Every size of a
traced layer is an affine function of the groups' widths, so that layers at other widths follow
from the traced ones by addition, without building a model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar

from pytest_neuralpower.errors import CompressError
from pytest_neuralpower.layers import Layer, ParamValue, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pytest_neuralpower.layers import Trace

Sizes: TypeAlias = tuple[int, ...]


def _is_sizes(value: Any) -> bool:
    return type(value) is tuple and all(type(each) is int for each in value)


def read_sizes(layer: Layer) -> Sizes:
    """Every dimension of every tensor and every whole number among the hyper-parameters."""
    sizes: list[int] = []
    for tensor in (*layer.inputs, *layer.weights, *layer.outputs):
        sizes += tensor.shape
    for _, value in layer.params:
        if type(value) is int:  # a bool is no size
            sizes.append(value)
        elif _is_sizes(value):
            sizes += value  # type: ignore[arg-type]
    return tuple(sizes)


def write_sizes(layer: Layer, sizes: Sizes) -> Layer:
    """``layer`` with other numbers, in the order of :func:`read_sizes`."""
    done = 0

    def take(count: int) -> Sizes:
        nonlocal done
        done += count
        return sizes[done - count : done]

    def tensors(old: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple([TensorSpec(take(len(shape)), dtype) for shape, dtype in old])

    def param(value: ParamValue) -> ParamValue:
        if type(value) is int:
            return take(1)[0]
        return take(len(value)) if _is_sizes(value) else value  # type: ignore[arg-type]

    inputs, weights, outputs = tensors(layer.inputs), tensors(layer.weights), tensors(layer.outputs)
    params = layer.params
    if done < len(sizes):
        params = tuple([(name, param(value)) for name, value in params])
    return Layer(layer.kind, layer.op, layer.path, inputs, weights, outputs, layer.dtype, params)


def form(layer: Layer) -> Layer:
    """What layers that differ in sizes alone have in common: the layer with every size 0."""
    return write_sizes(layer, (0,) * len(read_sizes(layer)))


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


#: Modules whose weights turn one width into another; the others only carry a width along.
_MIXERS: Final = ("conv", "linear", "embedding")


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
    gains
        What one more unit adds to the sizes of the layers that it reaches, by place in the trace.
    shape_gains
        What one more unit adds to the shapes of parameters, by name.
    """

    name: str
    slots: tuple[Slot, ...]
    units: int
    step: int = 1
    frozen: str = ""
    gains: Mapping[int, Sizes] = field(default_factory=dict, repr=False)
    shape_gains: Mapping[str, Sizes] = field(default_factory=dict, repr=False)

    @property
    def width(self) -> int:
        """Channels of the first axis."""
        return self.units * self.step

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
    shapes
        Shape of every parameter of the model, by name.
    """

    trace: Trace
    groups: tuple[ChannelGroup, ...]
    shapes: Mapping[str, Sizes] = field(repr=False)

    @property
    def changeable(self) -> tuple[ChannelGroup, ...]:
        """The groups whose width may change."""
        return tuple(group for group in self.groups if not group.frozen)

    @property
    def frozen(self) -> dict[str, str]:
        """Why each of the other groups may not change, by name."""
        return {group.name: group.frozen for group in self.groups if group.frozen}

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

    def layers_at(
        self, widths: Mapping[str, int], places: Iterable[int] | None = None
    ) -> tuple[Layer, ...]:
        """The layers with some groups at other widths; widths above the present ones too.

        Parameters
        ----------
        widths
            Channels by group's name; groups left out stay as they are.
        places
            Of these layers of the trace alone; by default of all.

        Raises
        ------
        CompressError
            For an unknown or frozen group, or a width that it cannot have.
        """
        added = _added((group.gains, more) for group, more in self._changes(widths))
        layers = []
        for place in range(len(self.trace)) if places is None else places:
            layer = self.trace.layers[place]
            if place in added:
                sizes = zip(read_sizes(layer), added[place], strict=True)
                layer = write_sizes(layer, tuple([size + more for size, more in sizes]))
            layers.append(layer)
        return tuple(layers)

    def trace_at(self, widths: Mapping[str, int]) -> Trace:
        """The whole call with some groups at other widths."""
        return replace(self.trace, layers=self.layers_at(widths))

    def parameters(self, widths: Mapping[str, int] | None = None) -> int:
        """Number of values in the model's parameters at the given widths."""
        added = _added((group.shape_gains, more) for group, more in self._changes(widths or {}))
        return sum(
            math.prod(map(sum, zip(shape, added.get(name, (0,) * len(shape)), strict=True)))
            for name, shape in self.shapes.items()
        )

    def _changes(self, widths: Mapping[str, int]) -> list[tuple[ChannelGroup, int]]:
        """The groups that change, each with the units it gets."""
        groups = [(self[name], width) for name, width in widths.items()]
        changes = [(group, group.units_at(width) - group.units) for group, width in groups]
        return [(group, more) for group, more in changes if more]


_Key = TypeVar("_Key", int, str)


def _added(changes: Iterable[tuple[Mapping[_Key, Sizes], int]]) -> dict[_Key, Sizes]:
    """What changes add to sizes, all together: each the gains of one unit and the units more."""
    added: dict[_Key, Sizes] = {}
    for gains, more in changes:
        for key, gain in gains.items():
            before = added.get(key, (0,) * len(gain))
            added[key] = tuple([old + more * each for old, each in zip(before, gain, strict=True)])
    return added
