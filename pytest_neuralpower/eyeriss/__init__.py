"""Analytic energy model of an Eyeriss-like accelerator with the row-stationary dataflow.

Yang, Chen, Sze, "Designing Energy-Efficient Convolutional Neural Networks using Energy-Aware
Pruning", CVPR 2017, on the analysis of Chen, Emer, Sze, "Eyeriss: A Spatial Architecture for
Energy-Efficient Dataflow", ISCA 2016. Energies are in units of one 16-bit multiply-accumulate.
"""

from __future__ import annotations

from pytest_neuralpower.eyeriss.energy import (
    LayerEnergy,
    NetworkLayer,
    Work,
    layer_energy,
    layer_mapping,
    network_energy,
    runtime_s,
    works,
)
from pytest_neuralpower.eyeriss.hardware import (
    ACCELERGY_40NM,
    COST_TABLES,
    EYERISS,
    EYERISS_65NM,
    Bits,
    ConvShape,
    CostTable,
    EyerissError,
    Hardware,
    TypeCosts,
    Zeros,
)
from pytest_neuralpower.eyeriss.mapping import Mapping
from pytest_neuralpower.eyeriss.table import (
    TableRow,
    format_table,
    parse_table,
    read_table,
    rows_from_layers,
    table_energy,
    write_table,
)

__all__ = [
    "ACCELERGY_40NM",
    "COST_TABLES",
    "EYERISS",
    "EYERISS_65NM",
    "Bits",
    "ConvShape",
    "CostTable",
    "EyerissError",
    "Hardware",
    "LayerEnergy",
    "Mapping",
    "NetworkLayer",
    "TableRow",
    "TypeCosts",
    "Work",
    "Zeros",
    "format_table",
    "layer_energy",
    "layer_mapping",
    "network_energy",
    "parse_table",
    "read_table",
    "rows_from_layers",
    "runtime_s",
    "table_energy",
    "works",
    "write_table",
]
