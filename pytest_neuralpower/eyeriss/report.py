"""Layers of the array by data type, for people and for machines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from pytest_neuralpower.eyeriss.energy import PARTS
from pytest_neuralpower.units import show, show_percent

if TYPE_CHECKING:
    from pytest_neuralpower.eyeriss.energy import LayerEnergy
    from pytest_neuralpower.eyeriss.platform import EyerissPlatform
    from pytest_neuralpower.eyeriss.table import TableRow

__all__ = ["energy_records", "energy_text"]

_PATH_WIDTH = 22


def energy_records(
    rows: Iterable[TableRow], energies: Iterable[LayerEnergy]
) -> list[dict[str, Any]]:
    """Energy of each layer's whole batch: by data type and in total (MACs), and in mJ."""
    return [
        {
            "index": row.index,
            "path": row.path,
            "batch": row.batch,
            **{f"{part}_macs": getattr(energy, part) for part in PARTS},
            "total_macs": energy.total,
            "energy_mj": energy.millijoules,
        }
        for row, energy in zip(rows, energies, strict=True)
    ]


def _end(path: str) -> str:
    """A path's end, where layers differ."""
    return path if len(path) <= _PATH_WIDTH else "…" + path[1 - _PATH_WIDTH :]


def energy_text(records: Sequence[Mapping[str, Any]], platform: EyerissPlatform) -> str:
    """A line a layer and their sum, in units of 10^6 multiply-accumulates."""
    columns = [f"{part}_macs" for part in PARTS] + ["total_macs"]
    sums = {name: sum(each[name] for each in records) for name in [*columns, "energy_mj"]}
    rows = [
        [each["index"], *(f"{each[name] / 1e6:,.1f}" for name in columns),
         show_percent(each["total_macs"] / sums["total_macs"]), show("energy", each["energy_mj"]),
         _end(each["path"])]
        for each in records
    ]  # fmt: skip
    total = [f"{sums[name] / 1e6:,.1f}" for name in columns]
    rows.append(["sum", *total, "", show("energy", sums["energy_mj"]), ""])
    shares = [show_percent(sums[name] / sums["total_macs"]) for name in columns[:-1]]
    rows.append(["share", *shares, *[""] * 4])
    headers = ("", "input", "output", "weight", "compute", "total", "share", "energy", "")
    batches = sorted({each["batch"] for each in records})
    return "\n".join(
        [
            platform.device,
            f"10^6 MACs of {platform.costs.pj_per_mac:g} pJ, whole batch of "
            f"{', '.join(map(str, batches))}",
            "",
            tabulate(
                rows, headers, tablefmt="plain", disable_numparse=True,
                colalign=("right",) * 8 + ("left",),
            ),
        ]
    )  # fmt: skip
