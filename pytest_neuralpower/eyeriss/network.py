"""Energy and time of the layers of a network on the array."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pytest_neuralpower.eyeriss.convert import Work, works
from pytest_neuralpower.eyeriss.energy import (
    DENSE,
    NO_ZEROS,
    LayerEnergy,
    layer_energy,
    runtime_s,
)
from pytest_neuralpower.eyeriss.hardware import (
    EYERISS,
    EYERISS_65NM,
    WORD_BITS,
    Bits,
    CostTable,
    Hardware,
    TypeCosts,
)
from pytest_neuralpower.eyeriss.shapes import Zeros

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Layer

__all__ = ["NetworkEnergy", "NetworkLayer", "movement_energy", "network_energy"]

#: Kinds whose operation rides on the way of the preceding layer's output to DRAM, where the chip
#: has its ReLU and its compression (JSSC 2017, section IV-B): the maps do not leave and come back.
FUSED: Final = frozenset({"activation", "norm"})


@dataclass(frozen=True, slots=True)
class NetworkLayer:
    """One layer's energy (MAC units and mJ) and time for the whole batch.

    ``how`` says what was priced: ``row-stationary`` (a mapping was searched), ``movement`` (its
    tensors moved between DRAM and the array once, nothing computed), ``fused`` (its tensors pass
    the array's edge, not DRAM) or ``unmapped`` (multiply-accumulates without reuse: an upper end).
    """

    layer: Layer
    energy: LayerEnergy
    runtime_s: float
    how: str


@dataclass(frozen=True, slots=True)
class NetworkEnergy:
    """The layers of one call and their sums."""

    layers: tuple[NetworkLayer, ...]

    @property
    def total(self) -> float:
        """Energy of the call in multiply-accumulates."""
        return sum(each.energy.total for each in self.layers)

    @property
    def millijoules(self) -> float:
        return sum(each.energy.millijoules for each in self.layers)

    @property
    def runtime_s(self) -> float:
        return sum(each.runtime_s for each in self.layers)

    def share(self, data_type: str) -> float:
        """Share (0..1) of ``input_map``, ``output_map``, ``weight`` or ``computation``."""
        moved: float = sum(getattr(each.energy, data_type) for each in self.layers)
        return moved / self.total


def network_energy(
    layers: Iterable[Layer],
    *,
    bits: Bits = DENSE,
    zeros: Mapping[str, Zeros] | None = None,
    costs: CostTable = EYERISS_65NM,
    hardware: Hardware = EYERISS,
) -> NetworkEnergy:
    """Price every layer of one call, whole batch.

    Parameters
    ----------
    zeros
        Zero counts by layer path. They apply to convolutions and fully connected layers.

    Raises
    ------
    EyerissError
        A shape that cannot be mapped, or more zeros than values.
    """
    given = zeros or {}
    return NetworkEnergy(
        tuple(
            _price(layer, bits, given.get(layer.path, NO_ZEROS), costs, hardware)
            for layer in layers
        )
    )


def _price(
    layer: Layer, bits: Bits, zeros: Zeros, costs: CostTable, hardware: Hardware
) -> NetworkLayer:
    parts = works(layer)
    if parts:
        energy, seconds = LayerEnergy(0, 0, 0, 0, costs.pj_per_mac), 0.0
        for work in parts:
            counted = _zeros_of(work, zeros if len(parts) == 1 else NO_ZEROS)
            energy += layer_energy(
                work.shape, batch=work.batch, bits=bits, zeros=counted, costs=costs,
                hardware=hardware,
            )  # fmt: skip
            seconds += runtime_s(
                work.shape, batch=work.batch, bits=bits, costs=costs, hardware=hardware
            )
        return NetworkLayer(layer, energy, seconds, "row-stationary")
    fused = layer.kind in FUSED
    energy = movement_energy(layer, bits=bits, costs=costs, fused=fused)
    if not layer.macs:
        return NetworkLayer(layer, energy, 0.0, "fused" if fused else "movement")
    return NetworkLayer(
        layer,
        energy + _without_reuse(layer, bits, costs),
        layer.macs / (hardware.pes * hardware.clock_hz),
        "unmapped",
    )


def _zeros_of(work: Work, zeros: Zeros) -> Zeros:
    """Counted zeros of a layer; those that the work inserts are added to its input's."""
    if not work.input_zeros:
        return zeros
    return Zeros(
        min(work.input_zeros + zeros.input_map, work.shape.inputs * work.batch),
        zeros.weight,
        zeros.output_map,
    )


def movement_energy(
    layer: Layer, *, bits: Bits = DENSE, costs: CostTable = EYERISS_65NM, fused: bool = False
) -> LayerEnergy:
    """Energy of a layer without multiply-accumulates: its tensors move once, nothing computes.

    Every value crosses DRAM, buffer, array and one register file; a ``fused`` layer's map crosses
    only the register file, in and out.
    """

    levels = (costs.register_file,) if fused else _levels(costs)

    def word(name: str) -> float:
        each: float = sum(getattr(level, name) for level in levels)
        return each * float(getattr(bits, name)) / WORD_BITS

    cost = layer.cost
    itemsize = _itemsize(layer)
    return LayerEnergy(
        input_map=cost.bytes_in / itemsize * word("input_map"),
        output_map=cost.bytes_out / itemsize * word("output_map"),
        weight=cost.bytes_weight / itemsize * word("weight"),
        computation=0.0,
        pj_per_mac=costs.pj_per_mac,
    )


def _levels(costs: CostTable) -> tuple[TypeCosts, ...]:
    return costs.dram, costs.buffer, costs.array, costs.register_file


def _itemsize(layer: Layer) -> float:
    """Bytes of one value, so that byte counts become words whatever the model's dtype."""
    tensors = layer.outputs or layer.inputs
    return tensors[0].nbytes / tensors[0].numel if tensors and tensors[0].numel else 4


def _without_reuse(layer: Layer, bits: Bits, costs: CostTable) -> LayerEnergy:
    """Every product reads both operands from the buffer and keeps its sum in a register file."""
    macs = layer.macs
    return LayerEnergy(
        input_map=macs * costs.buffer.input_map * bits.input_map / WORD_BITS,
        output_map=2 * macs * costs.register_file.output_map * bits.output_map / WORD_BITS,
        weight=macs * costs.buffer.weight * bits.weight / WORD_BITS,
        computation=macs * costs.mac * bits.input_map * bits.weight / WORD_BITS**2,
        pj_per_mac=costs.pj_per_mac,
    )
