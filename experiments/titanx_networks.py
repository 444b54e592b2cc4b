"""Print the paper's five networks, predicted on both Titan X platforms beside what was measured.

python experiments/titanx_networks.py
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from tabulate import tabulate

from pytest_neuralpower import load_platform, predict

sys.path.insert(0, str(Path(__file__).parents[1] / "budgets"))
from networks import NETWORKS, meta_call

HEADERS = ("network", "batch", "runtime ms", "measured", "off", "power W", "measured", "off",
           "energy J", "measured", "off")  # fmt: skip


def rmspe(pairs: list[tuple[float, float]]) -> str:
    """Root mean square of the relative error of (predicted, measured) pairs."""
    return f"{math.sqrt(sum((p / m - 1) ** 2 for p, m in pairs) / len(pairs)):.1%}"


def table(name: str, *, activations: bool) -> str:
    """All networks on one platform, with or without the activations that were not timed."""
    platform = load_platform(name)
    rows, pairs = [], []
    for network in NETWORKS:
        found = predict(*meta_call(network, activations=activations), platform=platform)
        assert found.energy_mj is not None
        assert found.power_w is not None
        measured = (network.paper_ms, network.paper_w, network.paper_j)
        predicted = (found.runtime_ms, found.power_w, found.energy_mj / 1e3)
        pairs.append(list(zip(predicted, measured, strict=True)))
        row = [network.name, network.input_shape[0]]
        for ours, theirs in pairs[-1]:
            row += [f"{ours:.2f}", f"{theirs:.2f}", f"{ours / theirs - 1:+.1%}"]
        rows.append(row)
    total: list[object] = ["RMSPE", ""]
    for quantity in zip(*pairs, strict=True):
        total += ["", "", rmspe(list(quantity))]
    return tabulate([*rows, total], HEADERS, tablefmt="plain", disable_numparse=True)


def main() -> None:
    for name in ("titanx-tf", "titanx"):
        print(f"{name}: {load_platform(name).mode}\n\n{table(name, activations=False)}\n")
    print("titanx-tf, with the biases and ReLUs that the paper's profiler left out\n")
    print(table("titanx-tf", activations=True))
    paleo = rmspe([(each.paleo_ms, each.paper_ms) for each in NETWORKS])
    paper = rmspe([(each.neuralpower_ms, each.paper_ms) for each in NETWORKS])
    print(f"\nruntime RMSPE beside: Paleo {paleo}, NeuralPower {paper} (in sample)")


if __name__ == "__main__":
    main()
