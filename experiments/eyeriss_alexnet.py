"""Print the Eyeriss model beside an independent mapper, the pruning paper and the chip.

python experiments/eyeriss_alexnet.py
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parent))

import itertools

from eyeriss_networks import (
    ALEXNET,
    ALEXNET_ACTIVE_HAN,
    ALEXNET_INPUT_ZEROS_JSSC,
    ALEXNET_PAPER,
    ALEXNET_PAPER_PRUNED,
    ALEXNET_REMOVED,
    GOOGLENET,
    SQUEEZENET,
)

from pytest_neuralpower.eyeriss import (
    ACCELERGY_40NM,
    EYERISS,
    EYERISS_65NM,
    Bits,
    ConvShape,
    Hardware,
    LayerEnergy,
    Zeros,
    layer_energy,
    layer_mapping,
    runtime_s,
)
from pytest_neuralpower.eyeriss.mapping import (
    Accesses,
    Geometry,
    PassSizes,
    TileSizes,
    count_accesses,
    count_cycles,
    movement_cost,
)

BATCH = 16
UNIT = 1e8

#: Independent row-stationary mapper, dense, batch 16, per image, 1e8 MAC units.
MAPPER = {"conv2": 12.5, "conv3": 8.8, "conv4": 6.65, "conv5": 4.43}

#: nn-dataflow 2.1 (Gao et al.), the same costs and sizes, data may bypass the buffer, no
#: forwarding between layers; its AlexNet has the same layers in two groups.
NN_DATAFLOW = (6.625, 12.490, 8.569, 6.460, 4.254, 6.743, 2.988, 0.732)

#: Chen et al., JSSC 2017, Tables III and V, batch 4: n, m, e, p, q, r, t; buffer MB; active
#: PEs; processing latency (ms).
CHIP = {
    "conv1": ((1, 96, 7, 16, 1, 1, 2), 18.5, 154, 16.5),
    "conv2": ((1, 64, 27, 16, 2, 1, 1), 77.6, 135, 39.2),
    "conv3": ((4, 64, 13, 16, 4, 1, 4), 50.2, 156, 21.3),
    "conv4": ((4, 64, 13, 16, 3, 2, 2), 37.4, 156, 16.0),
    "conv5": ((4, 64, 13, 16, 3, 2, 2), 24.9, 156, 10.0),
}


def zero_counts(
    shape: ConvShape, batch: int, inputs: float, weights: float, outputs: float
) -> Zeros:
    return Zeros(
        int(inputs * shape.inputs * batch),
        int(weights * shape.weights),
        int(outputs * shape.outputs * batch),
    )


def alexnet_zeros(source: str, removed: Sequence[float] = (0.0,) * 8) -> list[Zeros]:
    """Zeros of AlexNet's layers: a layer's output zeros are the next layer's input zeros."""
    if source == "dense":
        shares = [(0.0, 0.0)] * 8
    elif source == "han":
        active = (1.0, *ALEXNET_ACTIVE_HAN)
        shares = [(1 - a, 1 - b) for a, b in itertools.pairwise(active)]
    else:
        inputs = (*ALEXNET_INPUT_ZEROS_JSSC, 0.0)
        shares = list(itertools.pairwise(inputs))
    return [
        zero_counts(shape, BATCH, a, w, b)
        for shape, (a, b), w in zip(ALEXNET.values(), shares, removed, strict=True)
    ]


def energies(zeros: list[Zeros], **options: object) -> list[LayerEnergy]:
    return [
        layer_energy(shape, batch=BATCH, zeros=each, **options)
        for shape, each in zip(ALEXNET.values(), zeros, strict=True)
    ]


def per_image(found: Sequence[LayerEnergy]) -> list[float]:
    return [energy.total / BATCH / UNIT for energy in found]


def spearman(left: Sequence[float], right: Sequence[float]) -> float:
    ranks = [np.argsort(np.argsort(values)) for values in (left, right)]
    return float(np.corrcoef(*ranks)[0, 1])


def gated_only(shape: ConvShape, zeros: Zeros) -> float:
    """The alternative: the chip as built. Zeros compress in DRAM only, and a zero input gates the
    weight read, the sum and the product, but is itself read; a zero weight gates nothing.
    """
    dense = layer_mapping(shape, batch=BATCH).accesses
    keep = 1 - zeros.input_map / (shape.inputs * BATCH)
    moved = Accesses(
        dense.input_map._replace(dram=dense.input_map.dram * keep),
        dense.weight._replace(register_file=dense.weight.register_file * keep),
        dense.output_map._replace(
            dram=dense.output_map.dram - zeros.output_map,
            register_file=dense.output_map.register_file * keep,
        ),
    )
    total = sum(movement_cost(moved, EYERISS_65NM, Bits())) + shape.macs * BATCH * keep
    return total / BATCH / UNIT


def dense_table() -> None:
    start = time.perf_counter()
    chosen = energies(alexnet_zeros("dense"))
    seconds = time.perf_counter() - start
    free = energies(alexnet_zeros("dense"), hardware=Hardware(column_sums=False))
    rows = []
    for name, shape, mine, alternative, other in zip(
        ALEXNET, ALEXNET.values(), per_image(chosen), per_image(free), NN_DATAFLOW, strict=True
    ):
        mapping = layer_mapping(shape, batch=BATCH)
        peer = MAPPER.get(name)
        rows.append(
            [
                name, mine, peer, f"{100 * (mine / peer - 1):+.1f}%" if peer else "",
                other, f"{100 * (mine / other - 1):+.1f}%",
                alternative, f"{mapping.utilisation:.0%}",
                f"{mapping.e} {mapping.p} {mapping.q} {mapping.r} {mapping.t}",
                f"{mapping.n} {mapping.m} {mapping.c} {mapping.strip} {mapping.order}",
                1e3 * runtime_s(shape, batch=BATCH) / BATCH,
            ]
        )  # fmt: skip
    print(f"\nAlexNet, dense, batch {BATCH}, 1e8 MAC units per image ({seconds:.2f} s uncached)")
    print(tabulate(
        rows, floatfmt=".3f",
        headers=["layer", "model", "mapper", "", "nn-dataflow", "", "sums anywhere", "PEs",
                 "e p q r t", "n m c strip order", "ms"],
    ))  # fmt: skip


def sparse_table() -> None:
    columns = {
        "dense": per_image(energies(alexnet_zeros("dense"))),
        "Han zeros": per_image(energies(alexnet_zeros("han"))),
        "JSSC zeros": per_image(energies(alexnet_zeros("jssc"))),
        "Han, gated only": [
            gated_only(shape, zeros)
            for shape, zeros in zip(ALEXNET.values(), alexnet_zeros("han"), strict=True)
        ],
        "paper": list(ALEXNET_PAPER),
        "pruned": per_image(energies(alexnet_zeros("han", ALEXNET_REMOVED))),
        "paper pruned": list(ALEXNET_PAPER_PRUNED),
    }
    rows = [[name, *values] for name, *values in zip(ALEXNET, *columns.values(), strict=True)]
    totals = {name: sum(values) for name, values in columns.items()}
    rows.append(["total", *totals.values()])
    rows.append(["conv share %", *(100 * sum(v[:5]) / sum(v) for v in columns.values())])
    against = {
        name: ALEXNET_PAPER_PRUNED if "pruned" in name else ALEXNET_PAPER for name in columns
    }
    rows.append(["Spearman", *(spearman(v, against[name]) for name, v in columns.items())])
    print(f"\nAlexNet with zeros, batch {BATCH}, 1e8 MAC units per image")
    print(tabulate(rows, headers=["layer", *columns], floatfmt=".3f"))
    ratio = totals["Han zeros"] / totals["pruned"]
    print(f"energy-aware pruning saves {ratio:.1f} x (paper: 3.7 x)")


def network_table() -> None:
    rows = []
    alexnet = {
        label: sum(per_image(energies(alexnet_zeros(source))))
        for label, source in (("dense", "dense"), ("zeros", "han"))
    }
    for name, shapes in (("GoogLeNet", GOOGLENET), ("SqueezeNet", SQUEEZENET)):
        for label, share in (("dense", 0.0), ("zeros", 0.5)):
            total = LayerEnergy(0, 0, 0, 0, EYERISS_65NM.pj_per_mac)
            for index, shape in enumerate(shapes):
                zeros = zero_counts(shape, BATCH, share if index else 0.0, 0.0, share)
                total += layer_energy(shape, batch=BATCH, zeros=zeros)
            parts = (total.output_map, total.input_map, total.weight, total.computation)
            rows.append(
                [f"{name}, {label}", total.total / BATCH / UNIT]
                + [100 * part / total.total for part in parts]
                + [total.total / BATCH / UNIT / alexnet[label]]
            )
    rows.append(["paper: GoogLeNet", None, 43, 25, 22, 10, None])
    rows.append(["paper: SqueezeNet", None, None, None, None, None, 1.3])
    print(f"\nOther networks, batch {BATCH}; zeros: half of every map but the image")
    print(tabulate(
        rows, floatfmt=".1f",
        headers=["network", "1e8 MACs", "out %", "in %", "weight %", "MAC %", "x AlexNet"],
    ))  # fmt: skip


def chip_table() -> None:
    rows = []
    for name, ((n, m, e, p, q, r, t), megabytes, active, ms) in CHIP.items():
        shape = ALEXNET[name]
        geometry = Geometry(shape, 4, EYERISS, 256)
        read = geometry.rows_read(e)
        # The chip goes through the channels innermost: sums stay, maps and weights come again.
        strips = -(-shape.out_height // e) * -(-4 // n)
        tile = TileSizes(
            n, e, min(m, geometry.filters), q * r, read, -(-geometry.filters // m), strips, 1
        )  # fmt: skip
        passes = PassSizes(e, p, q, r, t, read)
        counted = count_accesses(geometry, tile, passes)
        maps = 2e-6 * (counted.input_map.buffer + counted.output_map.buffer)
        # The chip also writes finished sums to the buffer and reads them out to DRAM.
        maps += 2e-6 * 2 * shape.outputs * 4
        cost = sum(movement_cost(counted, EYERISS_65NM, Bits())) + 4 * shape.macs
        best = layer_energy(shape, batch=4).total
        cycles = count_cycles(geometry, tile, passes)
        rows.append(
            [name, float(maps), megabytes, f"{100 * (maps / megabytes - 1):+.0f}%",
             shape.macs * 4 / cycles, active, cycles / 2e5, ms, 1e3 * runtime_s(shape, batch=4),
             cost / 4 / UNIT, best / 4 / UNIT]
        )  # fmt: skip
    print("\nThe chip's own mappings (JSSC 2017, Table III, batch 4) priced by the model")
    print(tabulate(
        rows, floatfmt=".2f",
        headers=["layer", "buffer MB", "measured", "", "PEs", "measured", "ms", "measured",
                 "ms, own mapping", "1e8", "1e8, own mapping"],
    ))  # fmt: skip


def cost_table() -> None:
    rows = []
    for costs in (EYERISS_65NM, ACCELERGY_40NM):
        found = energies(alexnet_zeros("han"), costs=costs)
        total = sum(energy.total for energy in found) / BATCH / UNIT
        joules = sum(energy.millijoules for energy in found) / BATCH
        rows.append([costs.name, total, costs.pj_per_mac, joules])
    print("\nCost tables, AlexNet with Han's zeros, per image")
    print(tabulate(rows, headers=["costs", "1e8 MACs", "pJ/MAC", "mJ"], floatfmt=".2f"))


if __name__ == "__main__":
    dense_table()
    sparse_table()
    network_table()
    chip_table()
    cost_table()
