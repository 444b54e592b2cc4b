"""Energy of one layer by data type, in MAC units (Yang, Chen, Sze, CVPR 2017, section 3).

``E = E_computation + E_data``: computation is the executed multiply-accumulates; data is, for input
map, weights and output map, the sum over the memories of accesses x cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Mapping as MappingOf
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from pytest_neuralpower.eyeriss.hardware import (
    EYERISS,
    EYERISS_65NM,
    WORD_BITS,
    Bits,
    ConvShape,
    CostTable,
    EyerissError,
    Hardware,
    Zeros,
)
from pytest_neuralpower.eyeriss.mapping import (
    Accesses,
    LevelCounts,
    Mapping,
    best_mapping,
    movement_cost,
)

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Layer

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


# -- Layers as work for the row-stationary array: convolutions with their batch.


@dataclass(frozen=True, slots=True)
class Work:
    """One convolution of ``batch`` samples; ``input_zeros`` of the input map are zero by
    construction (the zeros that a transposed convolution inserts), over the whole batch.
    """

    shape: ConvShape
    batch: int
    input_zeros: int = 0


def works(layer: Layer) -> tuple[Work, ...]:
    """Convolutions that do a layer's multiply-accumulates; empty where there are none.

    * conv of one or two dimensions as it is; of three with the depth of the kernel as channels and
      the depth of the output as batch (overlapping slices of the input are read again);
    * transposed conv as the convolution of the zero-stuffed input;
    * linear as a 1 x 1 convolution; matmul likewise with the right operand as weights, one group
      per matrix of the batch; attention as its two products.

    Recurrent layers have no mapping here: their steps depend on each other. Nor have layers
    of an empty tensor: they compute nothing.
    """
    if not layer.macs:
        return ()
    if layer.kind == "conv":
        return (_transposed(layer) if layer.param("transposed", False) else _conv(layer),)
    if layer.kind == "linear":
        shape = layer.inputs[0].shape
        batch = shape[0] if len(shape) > 1 else 1
        outputs = layer.outputs[0].shape[-1]
        rows = math.prod(shape[1:-1])
        return (Work(ConvShape(rows, 1, shape[-1], outputs), batch),)
    if layer.kind == "matmul":
        reduced = int(layer.param("reduced") or layer.inputs[0].shape[-1])
        return (_product(layer.outputs[0].shape, reduced),)
    if layer.kind == "attention":
        query, key, value = (tensor.shape for tensor in layer.inputs[:3])
        scores = (*query[:-1], key[-2])
        return _product(scores, query[-1]), _product((*query[:-1], value[-1]), key[-2])
    return ()


def _product(output: tuple[int, ...], reduced: int) -> Work:
    """(rows x reduced) by (reduced x columns), once per leading index: weights are not shared."""
    rows, columns = (1, 1, *output)[-2:]
    matrices = math.prod(output[:-2])
    return Work(
        ConvShape(rows, 1, reduced * matrices, columns * matrices, groups=matrices), batch=1
    )


def _pair(values: tuple[int, ...], fill: int) -> tuple[int, int]:
    """The last two of one, two or three spatial values; a single one lies along x."""
    return (fill, *values)[-2:] if len(values) < 2 else values[-2:]  # type: ignore[return-value]


def _spatial(layer: Layer, name: str, default: int) -> tuple[int, ...]:
    count = len(layer.weights[0].shape) - 2
    values = layer.param(name, default)
    return tuple(values) if isinstance(values, tuple) else (int(values),) * count


def _conv(layer: Layer) -> Work:
    source, weight = layer.inputs[0].shape, layer.weights[0].shape
    kernel = weight[2:]
    dims = len(kernel)
    padding = _spatial(layer, "padding", 0)
    # One value a dimension, or (before, after) for each where they differ.
    sides = padding if len(padding) == 2 * dims else tuple(p for p in padding for _ in range(2))
    height, width = _pair(source[2:], 1)
    depth_out = layer.outputs[0].shape[2] if dims == 3 else 1
    depth_kernel = kernel[0] if dims == 3 else 1
    shape = ConvShape(
        height=height,
        width=width,
        channels=source[1] * depth_kernel,
        filters=weight[0],
        kernel=_pair(kernel, 1),
        stride=_pair(_spatial(layer, "stride", 1), 1),
        padding=(0, 0, *sides)[-4:],  # type: ignore[arg-type]
        dilation=_pair(_spatial(layer, "dilation", 1), 1),
        groups=int(layer.param("groups", 1)),
    )
    return Work(shape, source[0] * depth_out)


def _transposed(layer: Layer) -> Work:
    """The convolution of stride 1 over the input with stride - 1 zeros between its values."""
    source, weight, output = (
        layer.inputs[0].shape, layer.weights[0].shape, layer.outputs[0].shape
    )  # fmt: skip
    stride, dilation = _spatial(layer, "stride", 1), _spatial(layer, "dilation", 1)
    padding = _spatial(layer, "padding", 0)
    groups = int(layer.param("groups", 1))
    stuffed: list[int] = []
    sides: list[int] = []
    for axis, size in enumerate(source[2:]):
        length = (size - 1) * stride[axis] + 1
        reach = dilation[axis] * (weight[axis + 2] - 1)
        before = reach - padding[axis]
        after = output[axis + 2] + reach - length - before
        # A negative margin drops input values; they are then not read.
        stuffed.append(length + min(before, 0) + min(after, 0))
        sides += [max(before, 0), max(after, 0)]
    batch, depth_kernel = source[0], 1
    if len(stuffed) == 3:
        batch, depth_kernel = batch * output[2], weight[2]
    height, width = _pair(tuple(stuffed), 1)
    shape = ConvShape(
        height=height,
        width=width,
        channels=source[1] * depth_kernel,
        filters=weight[1] * groups,
        kernel=_pair(weight[2:], 1),
        padding=(0, 0, *sides)[-4:],  # type: ignore[arg-type]
        dilation=_pair(dilation, 1),
        groups=groups,
    )
    density = math.prod(source[2:]) / math.prod(stuffed)
    return Work(shape, batch, input_zeros=int(shape.inputs * batch * max(0.0, 1 - density)))


# -- Energy and time of the layers of a network on the array.

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


def network_energy(
    layers: Iterable[Layer],
    *,
    bits: Bits = DENSE,
    zeros: MappingOf[str, Zeros] | None = None,
    costs: CostTable = EYERISS_65NM,
    hardware: Hardware = EYERISS,
) -> tuple[NetworkLayer, ...]:
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
    return tuple(
        _price(layer, bits, given.get(layer.path, NO_ZEROS), costs, hardware) for layer in layers
    )


def _price(
    layer: Layer, bits: Bits, zeros: Zeros, costs: CostTable, hardware: Hardware
) -> NetworkLayer:
    parts = works(layer)
    if parts:
        energy, seconds = LayerEnergy(0, 0, 0, 0, costs.pj_per_mac), 0.0
        for work in parts:
            counted = zeros if len(parts) == 1 else NO_ZEROS
            if work.input_zeros:
                inserted = min(work.input_zeros + counted.input_map, work.shape.inputs * work.batch)
                counted = replace(counted, input_map=inserted)
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


def movement_energy(
    layer: Layer, *, bits: Bits = DENSE, costs: CostTable = EYERISS_65NM, fused: bool = False
) -> LayerEnergy:
    """Energy of a layer without multiply-accumulates: its tensors move once, nothing computes.

    Every value crosses DRAM, buffer, array and one register file; a ``fused`` layer's map crosses
    only the register file, in and out.
    """

    every = (costs.dram, costs.buffer, costs.array, costs.register_file)
    levels = (costs.register_file,) if fused else every

    def word(name: str) -> float:
        each: float = sum(getattr(level, name) for level in levels)
        return each * float(getattr(bits, name)) / WORD_BITS

    cost = layer.cost
    # Bytes of one value, so that byte counts become words whatever the model's dtype.
    tensors = layer.outputs or layer.inputs
    itemsize = tensors[0].nbytes / tensors[0].numel if tensors and tensors[0].numel else 4
    return LayerEnergy(
        input_map=cost.bytes_in / itemsize * word("input_map"),
        output_map=cost.bytes_out / itemsize * word("output_map"),
        weight=cost.bytes_weight / itemsize * word("weight"),
        computation=0.0,
        pj_per_mac=costs.pj_per_mac,
    )


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
