"""Energy of one layer by data type, in MAC units (Yang, Chen, Sze, CVPR 2017, section 3).

``E = E_computation + E_data``: computation is the executed multiply-accumulates; data is, for input
map, weights and output map, the sum over the memories of accesses x cost.
"""

from __future__ import annotations

from dataclasses import dataclass

from pytest_neuralpower.eyeriss.accesses import Accesses, LevelCounts
from pytest_neuralpower.eyeriss.errors import EyerissError
from pytest_neuralpower.eyeriss.hardware import (
    EYERISS,
    EYERISS_65NM,
    WORD_BITS,
    Bits,
    CostTable,
    Hardware,
)
from pytest_neuralpower.eyeriss.mapping import Mapping, best_mapping, movement_cost
from pytest_neuralpower.eyeriss.shapes import ConvShape, Zeros

__all__ = ["PARTS", "LayerEnergy", "layer_energy", "layer_mapping", "runtime_s"]

#: Where energy goes: moving each data type, and computing.
PARTS = ("input_map", "output_map", "weight", "computation")

DENSE = Bits()
NO_ZEROS = Zeros()


@dataclass(frozen=True, slots=True)
class LayerEnergy:
    """Energy of one layer for the whole batch, in units of one 16-bit multiply-accumulate.

    Attributes
    ----------
    input_map, output_map, weight
        Moving each data type through DRAM, buffer, array and register files. Partial sums count
        as output map.
    computation
        The multiply-accumulates themselves.
    pj_per_mac
        Picojoules of the unit, from the cost table.
    """

    input_map: float
    output_map: float
    weight: float
    computation: float
    pj_per_mac: float

    @property
    def total(self) -> float:
        return self.input_map + self.output_map + self.weight + self.computation

    @property
    def millijoules(self) -> float:
        return self.total * self.pj_per_mac * 1e-9

    @property
    def parts_mj(self) -> dict[str, float]:
        """Energy by data type, in mJ."""
        return {part: getattr(self, part) * self.pj_per_mac * 1e-9 for part in PARTS}

    def __add__(self, other: LayerEnergy) -> LayerEnergy:
        return LayerEnergy(
            self.input_map + other.input_map,
            self.output_map + other.output_map,
            self.weight + other.weight,
            self.computation + other.computation,
            self.pj_per_mac,
        )


def layer_mapping(
    shape: ConvShape,
    *,
    batch: int = 1,
    bits: Bits = DENSE,
    costs: CostTable = EYERISS_65NM,
    hardware: Hardware = EYERISS,
) -> Mapping:
    """The row-stationary mapping that :func:`layer_energy` prices; cached.

    Raises
    ------
    EyerissError
        ``batch`` or a bit width is below one, or the layer fits no tile of the buffer.
    """
    if batch < 1:
        raise EyerissError(f"batch is {batch}: it must be at least 1")
    if min(bits.input_map, bits.weight, bits.output_map) < 1:
        raise EyerissError(f"{bits}: every bit width must be at least 1")
    return best_mapping(shape, batch, bits, costs, hardware)


def layer_energy(
    shape: ConvShape,
    *,
    batch: int = 1,
    bits: Bits = DENSE,
    zeros: Zeros = NO_ZEROS,
    costs: CostTable = EYERISS_65NM,
    hardware: Hardware = EYERISS,
) -> LayerEnergy:
    """Energy of one convolution or fully connected layer for the whole batch.

    A product with a zero operand is skipped, with its register file accesses; zeros of the input
    map and the weights are compressed at every level, those of the output map in DRAM. Operands
    are taken as zero independently of each other. The energy of an access is linear in the bit
    width, that of a multiplication in the product of both operands' widths.

    Parameters
    ----------
    batch
        Samples that run together and share the weights.
    zeros
        Zero values: of both maps in the whole batch, of the weights in the layer.

    Raises
    ------
    EyerissError
        More zeros than values, or what :func:`layer_mapping` raises.
    """
    mapping = layer_mapping(shape, batch=batch, bits=bits, costs=costs, hardware=hardware)
    dense_input = 1 - _share("input_map", zeros.input_map, shape.inputs * batch)
    dense_weight = 1 - _share("weight", zeros.weight, shape.weights)
    outputs = shape.outputs * batch
    zero_output = _share("output_map", zeros.output_map, outputs) * outputs
    executed = dense_input * dense_weight

    dense = mapping.accesses
    moved = Accesses(
        _compressed(dense.input_map, dense_input, executed),
        _compressed(dense.weight, dense_weight, executed),
        # Partial sums are not zero before the last is added: only final values compress.
        LevelCounts(
            dense.output_map.dram - zero_output,
            dense.output_map.buffer,
            dense.output_map.array,
            dense.output_map.register_file * executed,
        ),
    )
    input_map, weight, output_map = movement_cost(moved, costs, bits)
    multiplier = bits.input_map * bits.weight / WORD_BITS**2
    return LayerEnergy(
        input_map=input_map,
        output_map=output_map,
        weight=weight,
        computation=shape.macs * batch * executed * costs.mac * multiplier,
        pj_per_mac=costs.pj_per_mac,
    )


def runtime_s(
    shape: ConvShape,
    *,
    batch: int = 1,
    bits: Bits = DENSE,
    costs: CostTable = EYERISS_65NM,
    hardware: Hardware = EYERISS,
) -> float:
    """Seconds of computation for the whole batch: MACs / (PEs in use x clock).

    Zeros save energy, not time: the chip gates a product, it does not skip its cycle (JSSC 2017,
    section V-C). Filling the array and waiting for DRAM are not included.
    """
    mapping = layer_mapping(shape, batch=batch, bits=bits, costs=costs, hardware=hardware)
    return shape.macs * batch / (mapping.utilisation * hardware.pes * hardware.clock_hz)


def _compressed(counts: LevelCounts, kept: float, executed: float) -> LevelCounts:
    return LevelCounts(
        counts.dram * kept,
        counts.buffer * kept,
        counts.array * kept,
        counts.register_file * executed,
    )


def _share(name: str, zeros: int, values: int) -> float:
    if not 0 <= zeros <= values:
        raise EyerissError(f"{name} has {zeros} zeros among {values} values: give 0 to {values}")
    return zeros / values
