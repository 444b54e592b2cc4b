"""How many layers a second a platform predicts: one core, features included, every shipped one.

Usage: python benchmarks/prediction_speed.py [--profile PLATFORM] [PLATFORM ...]

The layers are those of networks at several batch sizes in one call, repeated as the networks repeat
their blocks and no further; beside them the different configurations alone, each once. Times are
the thread's own CPU time, so that what else the machine runs counts less; the best run stands
beside each median.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import statistics
import time
from typing import TYPE_CHECKING

import torch
import transformers
from pytorchcv.model_provider import get_model
from tabulate import tabulate

from pytest_neuralpower import list_platforms, load_platform, trace

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Layer

NETWORKS = ("resnet50", "vgg16", "mobilenetv2_w1", "densenet121", "inceptionv3")
TRANSFORMERS = ("Bert", "ViT")
BATCHES = (1, 2, 4, 8, 16, 32, 64)
RUNS = 9


def network_layers() -> list[Layer]:
    """Layers of several networks at each batch size, one call after the other."""
    found: list[Layer] = []
    for name in NETWORKS:
        with torch.device("meta"):
            model = get_model(name)
        size = 299 if name == "inceptionv3" else 224
        for batch in BATCHES:
            found += trace(model, torch.empty(batch, 3, size, size, device="meta"))
    for name in TRANSFORMERS:
        with torch.device("meta"):
            model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")())
        for batch in BATCHES:
            given = torch.full((batch, 128), 5)
            found += trace(
                model.eval(), torch.empty(batch, 3, 224, 224) if name == "ViT" else given
            )
    return found


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
    parser.add_argument("platforms", nargs="*", help="names; every shipped one by default")
    parser.add_argument("--profile", metavar="PLATFORM", help="say where the time goes")
    asked = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core
    layers = network_layers()
    distinct = list({layer.configuration: layer for layer in layers}.values())
    if asked.profile:
        platform = load_platform(asked.profile)
        with cProfile.Profile() as profile:
            platform.predict(layers)
        pstats.Stats(profile).sort_stats("tottime").print_stats(20)
        return
    rows = []
    for name in asked.platforms or list_platforms():
        rates = [name]
        for some in (layers, distinct):
            times = seconds(name, some)
            rates += [f"{len(some) / each:,.0f}" for each in (statistics.median(times), min(times))]
        rows.append(rates)
    print(
        f"batched prediction of {len(layers):,} layers of {', '.join(NETWORKS + TRANSFORMERS)}, "
        f"{len(distinct):,} of them different\n"
    )
    heads = ("platform", "layers/s (median)", "best", "different ones (median)", "best")
    print(tabulate(rows, heads, disable_numparse=True))


if __name__ == "__main__":
    main()
