"""How many layers a second a platform predicts: one core, features included, every shipped one.

Usage: python tests/benchmarks/prediction_speed.py [--profile PLATFORM]

The layers are those of five networks at three batch sizes, as many distinct objects as are
predicted. Times are the thread's own CPU time, so that what else the machine runs counts less;
the best run stands beside each median.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import statistics
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from pytorchcv.model_provider import get_model
from tabulate import tabulate

from pytest_neuralpower import list_platforms, load_platform, trace

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Layer

NETWORKS = ("resnet50", "vgg16", "mobilenetv2_w1", "densenet121", "inceptionv3")
LAYERS = 40_000
RUNS = 7


def network_layers() -> list[Layer]:
    """Layers of several networks, one after the other, until there are enough."""
    found: list[Layer] = []
    for name in NETWORKS:
        with torch.device("meta"):
            model = get_model(name)
        size = 299 if name == "inceptionv3" else 224
        for batch in (1, 8, 64):
            found += trace(model, torch.empty(batch, 3, size, size, device="meta"))
    rounds = -(-LAYERS // len(found))
    return [replace(layer) for _ in range(rounds) for layer in found][:LAYERS]


def seconds(name: str, layers: list[Layer]) -> list[float]:
    """Time of one batched prediction, several times, after a first one."""
    platform = load_platform(name)
    platform.predict(layers)
    times = []
    for _ in range(RUNS):
        start = time.thread_time()
        platform.predict(layers)
        times.append(time.thread_time() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", metavar="PLATFORM", help="say where the time goes")
    asked = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core
    layers = network_layers()
    if asked.profile:
        platform = load_platform(asked.profile)
        with cProfile.Profile() as profile:
            platform.predict(layers)
        pstats.Stats(profile).sort_stats("tottime").print_stats(20)
        return
    rows = []
    for name in list_platforms():
        times = seconds(name, layers)
        median, best = (len(layers) / each for each in (statistics.median(times), min(times)))
        rows.append((name, f"{median:,.0f}", f"{best:,.0f}"))
    print(f"batched prediction of {len(layers):,} layers of {', '.join(NETWORKS)}\n")
    print(tabulate(rows, ("platform", "layers/s (median)", "best"), disable_numparse=True))


if __name__ == "__main__":
    main()
