"""Pruned networks measured on the processor that their platform was calibrated on.

    python tests/accuracy/pruning_measured.py my-cpu/my-cpu.json

For batches of 1 and 8: time-steered channel pruning, and beside it the network that is steered by
size to the same number of parameters; predicted and measured time of each, on one thread. Nothing
else may run meanwhile.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pruning_experiments import parameters_of, sizes_of, trained
from pruning_networks import accuracy, calibration, train
from scipy.stats import kendalltau
from tabulate import tabulate
from torch import nn
from torch.utils.benchmark import Timer

from pytest_neuralpower import load_platform, predict, prune_to_budget, trace
from pytest_neuralpower.remedy.calls import as_call, calibration_calls
from pytest_neuralpower.remedy.channel_pruner import ChannelPruner

if TYPE_CHECKING:
    from pytest_neuralpower.platform import AnyPlatform

#: Share of the dense network's time that is aimed at.
SHARES = (0.5, 0.3)
EPOCHS = 8

Row = dict[str, float | str]


def measured_ms(model: nn.Module, batch: int) -> float:
    """Median time of one call in ms, on one thread."""
    with torch.inference_mode():
        timer = Timer("model(x)", globals={"model": model, "x": calibration()[:batch]})
        return 1e3 * timer.blocked_autorange(min_run_time=2).median


def steered_by_time(model: nn.Module, platform: AnyPlatform, batch: int, share: float) -> nn.Module:
    inputs = calibration()[:batch]
    limit = f"{share * predict(model, inputs, platform=platform).runtime_ms} ms"
    return prune_to_budget(
        model, inputs, platform, limit, calibration=calibration(), order="greedy"
    ).model


def steered_by_size(model: nn.Module, batch: int, parameters: float) -> nn.Module:
    """The same planner with parameters as the resource."""
    call = as_call(calibration()[:batch])
    pruned = copy.deepcopy(model)
    calls = calibration_calls(calibration(), call)
    ChannelPruner(pruned, model, call, sizes_of, calls, order="greedy").reduce_to(parameters)
    return pruned


def rows(seed: int, platform: AnyPlatform, batch: int, cache: Path) -> list[Row]:
    dense = trained("alexnet-like", seed, cache)
    inputs = calibration()[:batch]
    found = [_row("dense", dense, platform, batch)]
    for share in SHARES:
        steered = steered_by_time(dense, platform, batch, share)
        size = parameters_of(trace(steered, inputs).layers)
        makers: dict[str, Callable[[], nn.Module]] = {
            f"by time, {share:.0%}": lambda steered=steered: steered,
            "by size, as many parameters": lambda size=size: steered_by_size(dense, batch, size),
        }
        for name, make in makers.items():
            model = make()
            train(model, epochs=EPOCHS, rate=1e-3, seed=100 + seed)
            found.append(_row(name, model, platform, batch))
    return found


def _row(name: str, model: nn.Module, platform: AnyPlatform, batch: int) -> Row:
    inputs = calibration()[:batch]
    return {
        "network": name,
        "batch": batch,
        "right %": accuracy(model),
        "parameters": parameters_of(trace(model, inputs).layers),
        "predicted ms": predict(model, inputs, platform=platform).runtime_ms or float("nan"),
        "measured ms": measured_ms(model, batch),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("platform", help="name or path of this processor's platform")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cache", type=Path, default=Path("build/pruning"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    platform = load_platform(args.platform)
    args.cache.mkdir(parents=True, exist_ok=True)
    found = [
        {"seed": seed, **row}
        for seed in args.seeds
        for batch in (1, 8)
        for row in rows(seed, platform, batch, args.cache)
    ]
    print(tabulate(found, "keys", floatfmt=".3f"))
    predicted, measured = (
        [row[f"{name} ms"] for row in found] for name in ("predicted", "measured")
    )
    print(f"Kendall's tau of predicted and measured time: {kendalltau(predicted, measured)[0]:.2f}")


if __name__ == "__main__":
    main()
