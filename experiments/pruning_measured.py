"""Pruned networks measured on the processor that their platform was calibrated on.

    python experiments/pruning_measured.py my-cpu/my-cpu.json --prepare
    python experiments/pruning_measured.py my-cpu/my-cpu.json

The first prunes and trains, which may take an hour on a busy machine; the second measures, for a
few minutes in which nothing else may run. For batches of 1 and 8: time-steered channel pruning, and
networks that are steered by size, one of as many parameters, and the smallest that is as
accurate. Predicted and measured thread time of each.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, NamedTuple

import torch
from measured_advice import times_ms
from pruning_experiments import parameters_of, sizes_of, trained
from pruning_networks import accuracy, calibration, train
from scipy.stats import kendalltau
from tabulate import tabulate
from torch import nn

from pytest_neuralpower import load_platform, predict, prune_to_budget, trace
from pytest_neuralpower.compress.channel_pruner import ChannelPruner
from pytest_neuralpower.compress.prune import calibration_calls, run_rounds
from pytest_neuralpower.model_source import as_call

if TYPE_CHECKING:
    from pytest_neuralpower.platform.protocol import Platform

NETWORK = "alexnet-like-wide"
BATCHES = (1, 8)
#: Shares of the dense network's time that are aimed at.
SHARES = (0.5, 0.3)
EPOCHS = 3
#: Points by which a network that counts as equally accurate may be worse.
EQUAL = 0.1

REACH = (
    "reach: at least 48% less time at no more than 1.0 point lost; within 20%, Kendall's tau at "
    "least 0.8"
)


class Row(NamedTuple):
    """One network at one batch."""

    seed: int
    batch: int
    network: str
    right: float
    parameters: float
    predicted_ms: float
    measured_ms: float


class Bench:
    """Networks of one seed, made once and kept in a folder."""

    def __init__(self, seed: int, platform: Platform, cache: Path) -> None:
        self.seed, self.platform, self.cache = seed, platform, cache
        self.dense = trained(NETWORK, seed, cache)

    def trained_on(self) -> nn.Module:
        """The dense network after as much training as the pruned ones have."""
        return self._made("dense", lambda: self._finetuned(copy.deepcopy(self.dense)))

    def _finetuned(self, model: nn.Module) -> nn.Module:
        self._finetune(model, {}, 0)
        return model

    def by_time(self, batch: int, share: float) -> nn.Module:
        """Pruned to a share of the predicted time."""
        inputs = calibration()[:batch]
        full = predict(self.dense, inputs, platform=self.platform).runtime_ms
        name = f"time-{share:g}-batch-{batch}-{self.platform.sha256[:8]}"
        return self._made(name, lambda: self._steered_by_time(inputs, f"{share * full} ms"))

    def _steered_by_time(self, inputs: torch.Tensor, limit: str) -> nn.Module:
        return prune_to_budget(
            self.dense, inputs, self.platform, limit, calibration=calibration(), order="greedy",
            finetune=self._finetune,
        ).model  # fmt: skip

    def by_size(self, parameters: float) -> nn.Module:
        """Pruned to a number of parameters, otherwise in the same way."""
        return self._made(f"size-{parameters:.0f}", lambda: self._steered_by_size(parameters))

    def _steered_by_size(self, parameters: float) -> nn.Module:
        call = as_call(calibration()[:1])
        calls = calibration_calls(calibration(), call)
        pruner = ChannelPruner(
            model=copy.deepcopy(self.dense), reference=self.dense, call=call, layers_cost=sizes_of,
            calls=calls, order="greedy",
        )  # fmt: skip
        run_rounds(pruner, parameters, finetune=self._finetune)
        return pruner.model

    def _finetune(self, model: nn.Module, masks: Mapping[str, torch.Tensor], number: int) -> None:
        train(model, epochs=EPOCHS, rate=1e-3, seed=100 + number, masks=masks)

    def _made(self, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        file = self.cache / f"{NETWORK}-{self.seed}-{name}.pt"
        if not file.exists():
            torch.save(make(), file)
        return torch.load(file, weights_only=False).eval()

    def networks(self, batch: int) -> dict[str, nn.Module]:
        """The networks to measure at one batch, by name; the last word says which share's."""
        found = {(each, share): self.by_time(each, share) for each in BATCHES for share in SHARES}
        by_size = [self.by_size(_parameters(each)) for each in found.values()]
        networks = {"dense": self.trained_on()}
        for share in SHARES:
            steered = found[batch, share]
            networks[f"time to {share:.0%}"] = steered
            networks[f"as many parameters, {share:.0%}"] = self.by_size(_parameters(steered))
            equal = [each for each in by_size if accuracy(each) >= accuracy(steered) - EQUAL]
            if equal:
                networks[f"as accurate, {share:.0%}"] = min(equal, key=_parameters)
        return networks


def _parameters(model: nn.Module) -> float:
    return parameters_of(trace(model, calibration()[:1]).layers)


def measured(bench: Bench, batch: int) -> list[Row]:
    """All networks of one seed at one batch, timed in turns."""
    inputs = calibration()[:batch]
    networks = bench.networks(batch)
    times = times_ms(inputs, *networks.values())
    rows = []
    for (name, model), found in zip(networks.items(), times, strict=True):
        predicted = predict(model, inputs, platform=bench.platform).runtime_ms or float("nan")
        size = _parameters(model)
        rows.append(Row(bench.seed, batch, name, accuracy(model), size, predicted, found))
    return rows


def report(rows: Sequence[Row]) -> str:
    """Every network, then the figures with their reach: mean over seeds, and the worst."""
    lines = [tabulate(rows, [*Row._fields], floatfmt=".3f")]
    dense = {(row.seed, row.batch): row for row in rows if row.network == "dense"}
    summary = []
    for batch in BATCHES:
        for share in SHARES:
            steered = [r for r in rows if (r.batch, r.network) == (batch, f"time to {share:.0%}")]
            pairs = [(dense[row.seed, batch], row) for row in steered]
            saved = [100 * (1 - row.measured_ms / full.measured_ms) for full, row in pairs]
            lost = [full.right - row.right for full, row in pairs]
            summary.append((batch, f"{share:.0%}", mean(saved), min(saved), mean(lost), max(lost)))
    names = ["batch", "time to", "% less time", "worst", "points lost", "worst"]
    errors = [100 * (row.predicted_ms / row.measured_ms - 1) for row in rows]
    within = sum(abs(error) <= 20 for error in errors) / len(rows)
    tau = kendalltau([r.predicted_ms for r in rows], [r.measured_ms for r in rows])[0]
    return "\n\n".join(
        [
            *lines,
            tabulate(summary, names, floatfmt=".1f"),
            f"predicted against measured time: {within:.0%} of {len(rows)} within 20%, median "
            f"{median(map(abs, errors)):.1f}%, from {min(errors):+.1f}% to {max(errors):+.1f}%; "
            f"Kendall's tau {tau:.2f}\n{REACH}",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("platform", help="name or path of this processor's platform")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cache", type=Path, default=Path("build/pruning"))
    parser.add_argument("--prepare", action="store_true", help="make the networks, measure nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    platform = load_platform(args.platform)
    args.cache.mkdir(parents=True, exist_ok=True)
    benches = [Bench(seed, platform, args.cache) for seed in args.seeds]
    if args.prepare:
        count = sum(len(bench.networks(batch)) for bench in benches for batch in BATCHES)
        print(f"{count} networks are in {args.cache}")
    else:
        found = [measured(bench, batch) for bench in benches for batch in BATCHES]
        print(report([row for rows in found for row in rows]))


if __name__ == "__main__":
    main()
