"""The array that the model prices: its size, its memories and the cost of each access."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = [
    "ACCELERGY_40NM",
    "COST_TABLES",
    "EYERISS",
    "EYERISS_65NM",
    "Bits",
    "CostTable",
    "Hardware",
    "TypeCosts",
]

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
