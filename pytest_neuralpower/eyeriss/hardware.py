"""The array that the Eyeriss model prices: its sizes, access costs and convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from pytest_neuralpower.errors import NeuralPowerError


class EyerissError(NeuralPowerError, ValueError):
    """A shape, a zero count or a row of the 25-column table describes no possible layer."""


# -- The array and the cost of each access.

#: Width (bits) of the words that the cost tables price.
WORD_BITS: Final = 16


@dataclass(frozen=True, slots=True)
class Hardware:
    """An Eyeriss-like array (Chen et al., JSSC 2017, Table IV; Yang et al., CVPR 2017, section 3).

    Attributes
    ----------
    rows, columns
        Processing elements (PEs) of the array: 12 x 14 = 168.
    buffer_bytes
        Global buffer. ``stream_bytes`` of it only pass weights through (JSSC 2017, section V-A:
        100 kB hold maps and partial sums, 8 kB hold weights on their way).
    register_bytes
        Register file of one PE, shared by the three data types.
    clock_hz
        Core clock; a PE does one multiply-accumulate a cycle.
    column_sums
        Partial sums pass only between PEs of one column, as the chip's local network connects them
        (JSSC 2017, section V-B): at most ``rows`` PEs share a sum. False lets any PEs share one.
    """

    rows: int = 12
    columns: int = 14
    buffer_bytes: int = 108 * 1024
    stream_bytes: int = 8 * 1024
    register_bytes: int = 512
    clock_hz: float = 200e6
    column_sums: bool = True

    @property
    def pes(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True, slots=True)
class TypeCosts:
    """Cost of one 16-bit access to one memory by data type, in MACs."""

    input_map: float
    weight: float
    output_map: float

    @classmethod
    def same(cls, cost: float) -> TypeCosts:
        return cls(cost, cost, cost)


@dataclass(frozen=True, slots=True)
class CostTable:
    """Energy of one 16-bit access at each level, in units of one 16-bit multiply-accumulate.

    Attributes
    ----------
    name, source
        What it is called and where its numbers were published.
    mac
        One 16-bit multiply-accumulate; 1 by definition of the unit.
    register_file, array, buffer, dram
        One access to the register file of a PE, one delivery from the buffer or from another PE
        over the array's network, one access to the global buffer, one access to DRAM.
    pj_per_mac
        Picojoules of the unit, so that joules follow.
    """

    name: str
    source: str
    register_file: TypeCosts
    array: TypeCosts
    buffer: TypeCosts
    dram: TypeCosts
    pj_per_mac: float
    mac: float = 1.0


@dataclass(frozen=True, slots=True)
class Bits:
    """Bit width of each data type. Partial sums have the width of the output map."""

    input_map: int = WORD_BITS
    weight: int = WORD_BITS
    output_map: int = WORD_BITS


EYERISS: Final = Hardware()

#: The papers publish costs relative to a MAC, not joules. 2.2 pJ is Accelergy's 16-bit MAC
#: (ACCELERGY_40NM below). It lies within what the 65 nm chip allows: the arithmetic takes under 10%
#: of 278 mW at 23.1 GMAC/s, of which 57.5% are gated by zeros (JSSC 2017, section VI-A): under
#: 1.2 pJ per scheduled MAC, under 2.8 pJ per executed one.
_PJ_PER_MAC: Final = 2.2

EYERISS_65NM: Final = CostTable(
    name="eyeriss-65nm",
    source="Chen, Emer, Sze, ISCA 2016, Table IV; Yang, Chen, Sze, CVPR 2017, section 3",
    register_file=TypeCosts.same(1.0),
    array=TypeCosts.same(2.0),
    buffer=TypeCosts.same(6.0),
    dram=TypeCosts.same(200.0),
    pj_per_mac=_PJ_PER_MAC,
)

#: pJ of random accesses: MAC 2.2; scratchpads 0.237 (maps), 1.586 (weights), 0.251 (partial sums);
#: network 0.72 a transfer; buffers 56.092 (shared) and 8.422 (weights) per 64-bit word of four;
#: DRAM 8 a bit (LPDDR4). The published table has no DRAM: that figure is the one its CACTI
#: plug-in charges.
ACCELERGY_40NM: Final = CostTable(
    name="accelergy-40nm",
    source=(
        "Accelergy-Project/timeloop-accelergy-exercises, exercises/accelergy/04_eyeriss_like/"
        "ref-output/ERT_summary.yaml (40 nm, max_energy); DRAM: "
        "Accelergy-Project/accelergy-cacti-plug-in, cacti_wrapper.py (LPDDR4)"
    ),
    register_file=TypeCosts(0.237 / 2.2, 1.586 / 2.2, 0.251 / 2.2),
    array=TypeCosts.same(0.72 / 2.2),
    buffer=TypeCosts(56.092 / 4 / 2.2, 8.422 / 4 / 2.2, 56.092 / 4 / 2.2),
    dram=TypeCosts.same(8.0 * WORD_BITS / 2.2),
    pj_per_mac=2.2,
)

#: Every cost table by its name.
COST_TABLES: Final[Mapping[str, CostTable]] = {
    table.name: table for table in (EYERISS_65NM, ACCELERGY_40NM)
}


# -- One convolution and its zeros.


@dataclass(frozen=True, slots=True)
class Zeros:
    """How many values of each data type are zero: maps over the whole batch, weights of a layer.

    Only the non-zero values are moved and only products of two of them are computed
    (Yang, Chen, Sze, CVPR 2017, section 3).
    """

    input_map: int = 0
    weight: int = 0
    output_map: int = 0


@dataclass(frozen=True, slots=True)
class ConvShape:
    """One convolution of one sample. A fully connected layer is one with ``kernel`` = map.

    Attributes
    ----------
    height, width, channels
        Input map, all groups together, without padding.
    filters
        Output channels, all groups together.
    kernel, stride, dilation
        Each ``(y, x)``.
    padding
        ``(top, bottom, left, right)``.
    groups
        Channels and filters are split into this many independent convolutions.

    Raises
    ------
    EyerissError
        The shape has no output, a size below one, or groups that do not divide the channels.
    """

    height: int
    width: int
    channels: int
    filters: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            least = 0 if each.name == "padding" else 1
            for number in value if isinstance(value, tuple) else (value,):
                if number < least:
                    raise EyerissError(f"{each.name} is {value}: it must be at least {least}")
        if self.channels % self.groups or self.filters % self.groups:
            raise EyerissError(
                f"groups = {self.groups} must divide channels = {self.channels} and "
                f"filters = {self.filters}"
            )
        if self.out_height < 1 or self.out_width < 1:
            raise EyerissError(
                f"kernel {self.kernel} with dilation {self.dilation} does not fit the padded "
                f"input map {self.height} x {self.width}: use a smaller kernel or more padding"
            )

    @property
    def out_height(self) -> int:
        reach = self.dilation[0] * (self.kernel[0] - 1) + 1
        return (self.height + self.padding[0] + self.padding[1] - reach) // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        reach = self.dilation[1] * (self.kernel[1] - 1) + 1
        return (self.width + self.padding[2] + self.padding[3] - reach) // self.stride[1] + 1

    @property
    def inputs(self) -> int:
        """Values of one sample's input map."""
        return self.height * self.width * self.channels

    @property
    def outputs(self) -> int:
        """Values of one sample's output map."""
        return self.out_height * self.out_width * self.filters

    @property
    def weights(self) -> int:
        """Weights, without bias."""
        return self.filters * (self.channels // self.groups) * self.kernel[0] * self.kernel[1]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample, those with padding included."""
        return self.out_height * self.out_width * self.weights
