"""The table of pruning experiments: `make prune-experiments`, or this file.

Each row is run for several seeds of the network's training; the table has the mean and the worst.
What is done is kept in `--cache`, so that a run that stopped goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pruning_networks import BATCH, NETWORKS, accuracy, calibration, digits, numbers, train
from tabulate import tabulate
from torch import nn

from pytest_neuralpower import load_platform, trace
from pytest_neuralpower.compress.channel_pruner import ChannelPruner
from pytest_neuralpower.compress.prune import calibration_calls, prune_to_budget
from pytest_neuralpower.compress.weight_pruner import GRID, WeightPruner, points
from pytest_neuralpower.model_source import as_call

if TYPE_CHECKING:
    from pytest_neuralpower.compress.prune import Pruned
    from pytest_neuralpower.estimators.features import FloatArray
    from pytest_neuralpower.layers import Layer

#: Epochs and rate of a network's training; of the others, as by default.
SCHEDULES = {"alexnet-like-wide": (5, 1e-3)}
DEFAULT_SCHEDULE = (10, 2e-3)
FINETUNE_EPOCHS = 4  # in each of two rounds
ARRAY = load_platform("eyeriss")

#: What one run of an experiment found, by column.
Found = dict[str, float]


def trained(network: str, seed: int, cache: Path) -> nn.Module:
    """The network, trained once for all experiments."""
    file = cache / f"{network}-{seed}.pt"
    torch.manual_seed(seed)
    model = NETWORKS[network]()
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
    else:
        data = digits()
        if network == "alexnet-like-100":  # from its own start it does not learn
            data = numbers()
            _start_from(model, trained("alexnet-like", seed, cache))
        epochs, rate = SCHEDULES.get(network, DEFAULT_SCHEDULE)
        train(model, epochs=epochs, rate=rate, seed=seed, data=data)
        torch.save(model.state_dict(), file)
    return model.eval()


def _start_from(model: nn.Module, other: nn.Module) -> None:
    """Take over all values that have the same shape."""
    own = model.state_dict()
    fitting = {name: v for name, v in other.state_dict().items() if v.shape == own[name].shape}
    model.load_state_dict(fitting, strict=False)


def _inputs(batch: int) -> torch.Tensor:
    return calibration()[:batch]


def _pruner(
    model: nn.Module, reference: nn.Module, images: torch.Tensor, batch: int = BATCH, **options: Any
) -> WeightPruner:
    """Of the weights of one model, for a call of the first images."""
    call = as_call(images[:batch])
    return WeightPruner(
        model=model, reference=reference, trace=trace(model, *call.args), platform=ARRAY,
        calls=calibration_calls(images, call), **options,
    )  # fmt: skip


def _energy(model: nn.Module, batch: int = BATCH) -> float:
    """Energy (mJ) of one call with the zeros that the model and its maps have."""
    return _pruner(model, model, calibration(), batch).cost()


def _lines(result: Pruned, model: nn.Module) -> Found:
    before, after = accuracy(model), accuracy(result.model)
    return {
        "dense %": before,
        "pruned %": after,
        "points lost": before - after,
        "energy ratio, batch 16": result.plan.before / result.plan.after,
        "energy ratio, batch 1": _energy(model, 1) / _energy(result.model, 1),
        "weights left %": 100 * _weights_left(result.model),
    }


def _weights_left(model: nn.Module) -> float:
    weights = [each for name, each in model.named_parameters() if name.endswith("weight")]
    return sum(int((each != 0).sum()) for each in weights) / sum(each.numel() for each in weights)


def untrained(model: nn.Module, seed: int, *, ratio: float, order: str = "greedy") -> Found:
    """Weights removed to `1 / ratio` of the energy by least squares alone."""
    limit = f"{_energy(model) / ratio} mJ"
    result = prune_to_budget(
        model, _inputs(BATCH), ARRAY, limit, calibration=calibration(), granularity="weight",
        order=order, seed=seed,
    )  # fmt: skip
    return _lines(result, model)


def finetuned(model: nn.Module, seed: int, *, ratio: float) -> Found:
    """Two rounds, each followed by back-propagation with the masks held."""

    def finetune(pruned: nn.Module, masks: dict[str, torch.Tensor], number: int) -> None:
        train(pruned, epochs=FINETUNE_EPOCHS, rate=1e-3, seed=100 + number, masks=masks)

    limit = f"{_energy(model) / ratio} mJ"
    result = prune_to_budget(
        model, _inputs(BATCH), ARRAY, limit, calibration=calibration(), granularity="weight",
        order="greedy", finetune=finetune, rounds=2, seed=seed,
    )  # fmt: skip
    return _lines(result, model)


def one_density(model: nn.Module, seed: int) -> Found:
    """Every layer at density 0.3, untrained: by magnitude as it is, and by least squares."""
    found: Found = {"dense %": accuracy(model)}
    for name, criterion, refit in (
        ("magnitude %", "magnitude", False),
        ("magnitude, refitted %", "magnitude", True),
        ("least squares %", "output_error", True),
    ):
        pruned = copy.deepcopy(model)
        pruner = _pruner(pruned, model, calibration(), criterion=criterion, refit=refit, seed=seed)
        _reduce_each_to(pruner, 0.3)
        found[name] = accuracy(pruned)
    found["points gained"] = found["least squares %"] - found["magnitude %"]
    return found


def _reduce_each_to(pruner: WeightPruner, density: float) -> None:
    """Remove weights until every layer has one density, whatever the call then costs."""
    steps = [*(step for step in GRID if step > density), density]
    for path, gram in pruner.grams(list(pruner.kept)).items():
        weights = pruner.weights(path, gram)
        *_, last = points(weights, pruner.kept[path], steps, pruner.criterion)
        pruner.apply(path, last.kept)


def parameters_of(layers: Iterable[Layer]) -> float:
    return sum(weight.numel for layer in layers for weight in layer.weights)


def sizes_of(sets: Iterable[Iterable[Layer]]) -> FloatArray:
    """Parameters of each set of layers: the resource of a pruner that is steered by size."""
    return np.array([parameters_of(layers) for layers in sets], dtype=float)


def channels(model: nn.Module, seed: int) -> Found:
    """Channels removed to 12% of the parameters, untrained, with and without least squares."""
    call = as_call(_inputs(BATCH))
    calls = calibration_calls(calibration(), call)
    found: Found = {"dense %": accuracy(model)}
    for name, criterion, refit in (
        ("least squares %", "output_error", True),
        ("magnitude, as it is %", "magnitude", False),
    ):
        pruned = copy.deepcopy(model)
        pruner = ChannelPruner(
            model=pruned, reference=model, call=call, layers_cost=sizes_of, calls=calls,
            criterion=criterion, order="greedy", refit=refit, seed=seed,
        )  # fmt: skip
        full = pruner.cost()
        pruner.reduce_to(0.12 * full)
        found[name] = accuracy(pruned)
        if refit:
            found["parameters left %"] = 100 * pruner.cost() / full
            bare = copy.deepcopy(model)
            same = ChannelPruner(
                model=bare, reference=model, call=call, layers_cost=sizes_of, calls=calls,
                refit=False,
            )  # fmt: skip
            same.keep(pruner.kept)
            found["same channels, as they are %"] = accuracy(bare)
    return found


#: Energy ratios that are tried one after the other, while at most one point is lost.
_RATIOS = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0)


def few_classes(model: nn.Module, seed: int) -> Found:
    """Ten instead of a hundred classes: outputs of the others are cut, then weights are removed."""
    found: Found = {}
    for name, classes in (("all", range(100)), ("ten", range(10))):
        data = numbers().only(classes)
        images = calibration(data)
        start = copy.deepcopy(model)
        _cut_outputs(start[-1], len(classes))
        pruned = copy.deepcopy(start)
        pruner = _pruner(pruned, start, images, order="greedy", seed=seed)
        dense, full = accuracy(start, data), pruner.cost()
        found[f"{name} classes: dense %"] = dense
        for ratio in _RATIOS:
            pruner.reduce_to(full / ratio)
            lost = dense - accuracy(pruned, data)
            if lost > 1.0:
                break
            found[f"{name} classes: points lost"] = lost
            found[f"{name} classes: energy ratio"] = full / pruner.cost()
            found[f"{name} classes: weights left %"] = 100 * _weights_left(pruned)
    return found


def _cut_outputs(last: nn.Linear, classes: int) -> None:
    last.weight = nn.Parameter(last.weight[:classes].detach().clone())
    last.bias = nn.Parameter(last.bias[:classes].detach().clone())
    last.out_features = classes


EXPERIMENTS: dict[str, tuple[str, Callable[[nn.Module, int], Found]]] = {
    "weights, no training, 3.0x": ("alexnet-like", lambda m, s: untrained(m, s, ratio=3.05)),
    "weights, no training, 3.0x, most expensive first": (
        "alexnet-like", lambda m, s: untrained(m, s, ratio=3.05, order="energy"),
    ),
    "weights, 8 epochs, 3.7x": ("alexnet-like", lambda m, s: finetuned(m, s, ratio=3.75)),
    "weights at density 0.3": ("alexnet-like", one_density),
    "channels at 12% of parameters": ("alexnet-like", channels),
    "inception modules, no training, 1.6x": (
        "googlenet-like", lambda m, s: untrained(m, s, ratio=1.65),
    ),
    "ten instead of all classes": ("alexnet-like-100", few_classes),
}  # fmt: skip


def run(name: str, seed: int, cache: Path) -> Found:
    """One experiment of one seed, from the cache if it was done before."""
    file = cache / f"{name.replace('%', 'pc').replace(' ', '-').replace(',', '')}-{seed}.json"
    if file.exists():
        return json.loads(file.read_text())
    network, experiment = EXPERIMENTS[name]
    model = trained(network, seed, cache)
    started = time.time()
    found = experiment(model, seed)
    file.write_text(json.dumps(found))
    print(f"{name}, seed {seed}: {time.time() - started:.0f} s {found}", file=sys.stderr)
    return found


def table(found: dict[str, Sequence[Found]]) -> str:
    """A line a quantity: mean, least and most over the seeds."""
    rows = [
        (name if first else "", column, *_spread([each[column] for each in runs]))
        for name, runs in found.items()
        for first, column in _columns(runs)
    ]
    return tabulate(rows, ("experiment", "", "mean", "least", "most"), floatfmt=".2f")


def _columns(runs: Sequence[Found]) -> list[tuple[bool, str]]:
    columns = [each for each in runs[0] if all(each in run for run in runs)]
    return [(not at, each) for at, each in enumerate(columns)]


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return mean(values), min(values), max(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--cache", type=Path, default=Path("build/pruning"))
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    done: dict[str, list[Found]] = {name: [] for name in args.only}
    for seed in args.seeds:
        for name in args.only:
            done[name].append(run(name, seed, args.cache))
    print(table(done))


if __name__ == "__main__":
    main()
