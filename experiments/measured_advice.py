"""Is shrink advice true? Time random networks before and after it, on the platform's processor.

    python experiments/measured_advice.py PLATFORM [--networks 24] [--channels 4]

``PLATFORM`` is a platform file of this machine's processor, calibrated with one thread. Widths are
chosen as people do, any number first and then the same or twice as much (``--widths doubled``), or
each on its own (``--widths any``); none of the networks was calibrated on. Each is narrowed for
real by what ``advise`` shrinks together, at most ``--channels`` channels a layer, and both are
timed in turns, so that a slow phase of the machine meets both alike. Networks are drawn until there
is advice for ``--networks`` of them; those that ``advise`` leaves alone are counted only.
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import time
from typing import TYPE_CHECKING, NamedTuple

import torch
from tabulate import tabulate
from torch import nn

from pytest_neuralpower.compress.advice import advise_groups
from pytest_neuralpower.compress.find_groups import find_channel_groups, remove_units
from pytest_neuralpower.guard.budget import Budget
from pytest_neuralpower.platform.catalog import load_platform

if TYPE_CHECKING:
    from pytest_neuralpower.platform.protocol import Platform

REACH = "reach: median at least 10% less time, never more than 5% slower, sign right at least 80%"

#: Rounds of timing, and the time that one round of one network takes.
ROUNDS, ROUND_S = 12, 0.05


class Residual(nn.Module):
    """Two convolutions around a sum."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, inner, 3, padding=1)
        self.norm = nn.BatchNorm2d(inner)
        self.second = nn.Conv2d(inner, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(torch.relu(self.norm(self.first(x))))


class Timed(NamedTuple):
    """One network: change of its time as predicted and as measured, shares of the time before."""

    seed: int
    widths: str
    before_ms: float
    predicted: float
    measured: float


def draw(seed: int, how: str) -> tuple[nn.Module, torch.Tensor]:
    """A network of three to five stages and its input."""
    chance = random.Random(f"measured advice {seed}")
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    wide, side = 3, chance.choice((24, 32, 48, 64))
    inputs = torch.randn(chance.choice((1, 1, 4, 8)), 3, side, side)
    width = chance.randint(12, 72)
    for _ in range(chance.randint(3, 5)):
        if how == "any":
            width = _any_width(chance)
        kernel = chance.choice((1, 3, 3, 5))
        layers += [nn.Conv2d(wide, width, kernel, padding="same"), nn.BatchNorm2d(width), nn.ReLU()]
        for _ in range(chance.randint(0, 2)):
            inner = _any_width(chance) if how == "any" else width // chance.choice((1, 1, 2))
            layers.append(Residual(width, inner))
        if side >= 12 and chance.random() < 0.6:
            layers.append(nn.MaxPool2d(2))
            side //= 2
        wide = width
        if width < 128:
            width *= chance.choice((1, 2))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, 10))
    return nn.Sequential(*layers, *head).eval(), inputs


def _any_width(chance: random.Random) -> int:
    """From 10 to 160, evenly on a logarithmic scale."""
    return round(10 * 16 ** chance.random())


def judge(seed: int, platform: Platform, channels: int, how: str) -> Timed | None:
    """Narrow one network as advised, and time it beside itself; None where there is no advice."""
    model, inputs = draw(seed, how)
    groups = find_channel_groups(model, (inputs,))
    # Any budget on runtime: the advice is then on time, as it is what can be measured here.
    advised = advise_groups(groups, platform, Budget("runtime", 1e-3, "us"), channels=channels)
    if not advised.widths:
        return None
    narrow = copy.deepcopy(model)
    remove_units(
        narrow,
        [
            (group, range(group.units_at(width), group.units))
            for name, width in advised.widths.items()
            for group in (groups[name],)
        ],
    )
    before_ms, after_ms = times_ms(inputs, model, narrow)
    known = advised.before.runtime_ms, advised.after.runtime_ms
    assert known[0] is not None
    assert known[1] is not None
    changed = ", ".join(f"{groups[name].width}>{width}" for name, width in advised.widths.items())
    return Timed(seed, changed, before_ms, known[1] / known[0] - 1, after_ms / before_ms - 1)


def times_ms(inputs: torch.Tensor, *models: nn.Module) -> list[float]:
    """Thread time of one call of each: the median over rounds of each round's least."""
    with torch.inference_mode():
        rounds: list[list[float]] = [[] for _ in models]
        calls = [max(int(ROUND_S / _call_s(model, inputs)), 1) for model in models]
        for number in range(ROUNDS):
            order = list(range(len(models)))[:: 1 if number % 2 else -1]
            for place in order:
                rounds[place].append(
                    min(_call_s(models[place], inputs) for _ in range(calls[place]))
                )
    return [1e3 * statistics.median(times) for times in rounds]


def _call_s(model: nn.Module, inputs: torch.Tensor) -> float:
    start = time.thread_time_ns()
    model(inputs)
    return (time.thread_time_ns() - start) * 1e-9


def report(timed: list[Timed], drawn: int, channels: int) -> str:
    """The table, and the figures beside their reach."""
    rows = [
        (each.seed, f"{each.before_ms:.2f}", *map(_percent, each[3:]), each.widths)
        for each in timed
    ]
    table = tabulate(
        rows, ["network", "ms before", "predicted", "measured", "channels"], disable_numparse=True
    )
    measured = [each.measured for each in timed]
    right = sum((each.predicted < 0) == (each.measured < 0) for each in timed)
    return (
        f"{table}\n\n{len(timed)} of {drawn} networks have advice of at most {channels} channels a "
        f"layer; measured: median {_percent(statistics.median(measured))}, worst "
        f"{_percent(max(measured))}, sign right {right / len(timed):.0%}\n{REACH}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:+.1f}%"


def main() -> None:
    parser = argparse.ArgumentParser(description="time random networks before and after advice")
    parser.add_argument("platform", help="name or path")
    parser.add_argument("--networks", type=int, default=24)
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--widths", choices=("doubled", "any"), default="doubled")
    given = parser.parse_args()
    torch.set_num_threads(1)
    platform = load_platform(given.platform)
    timed: list[Timed] = []
    seed = 0
    while len(timed) < given.networks:
        found = judge(seed, platform, given.channels, given.widths)
        timed += [found] if found else []
        seed += 1
    print(report(timed, seed, given.channels))


if __name__ == "__main__":
    main()
