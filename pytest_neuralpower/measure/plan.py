"""Plans: which random networks are measured, in what order. Seeded, and made again by a recipe."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from pytest_neuralpower.measure.trial import SENTINEL, Trial

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Layer, Trace

__all__ = ["PRESET_MINUTES", "Plan", "make_plan"]

Preset = Literal["quick", "default", "thorough"]

#: Minutes that the trials may take, without power.
PRESET_MINUTES: Final[Mapping[str, float]] = {"quick": 1.0, "default": 3.5, "thorough": 15.0}

#: Networks of a calibration: more than this add passes, not accuracy.
_MOST_NETWORKS: Final = 400

#: Times every network is measured, spread over the session.
_PASSES: Final = {"quick": 2, "default": 3, "thorough": 4}

#: A network is timed so often in one pass that this many of its runs are paid for; and making and
#: tracing it takes so long (s).
_RUNS: Final = 5
_MAKING_S: Final = 0.2

#: Ideal time of one run of a network (s): log-uniform between these, so that the large end of
#: every kind of layer is there.
_RUN_S: Final = (0.0004, 0.16)

#: Ideal time is what no network reaches; a call adds its own.
_EFFICIENCY: Final = 0.6
_CALL_S: Final = 40e-6

#: Sketches looked at for each place in the plan.
_TRIES: Final = 4

#: With a meter: the share of the time that it gets, what one reading takes (s), the share of
#: readings that are of whole networks, and layers metered of one network at most.
_POWER_SHARE: Final = 0.6
_READING_S: Final = 4.0
_WHOLE_SHARE: Final = 0.2
_LAYERS_EACH: Final = 3

#: Trials between two sentinels.
_SENTINEL_EVERY: Final = 25
_CLOSING: Final = 10


@dataclass(frozen=True, slots=True)
class Plan:
    """Trials in the order to run them.

    Attributes
    ----------
    trials
        Pass 1 over every network, then pass 2, ...; a sentinel first and every so many trials.
    closing
        Ten networks once more (``pass_`` 0): their rows against those of the last pass tell the
        repeatability.
    recipe
        Arguments of :func:`make_plan` that give this plan again, in JSON types.
    expected_s
        Rough time of it all.
    """

    trials: tuple[Trial, ...]
    closing: tuple[Trial, ...]
    recipe: Mapping[str, Any]
    expected_s: float


class _Chosen(NamedTuple):
    """One random network of a plan, the time that one run of it may take (s), and its layers that
    take the most of it."""

    template: str
    seed: int
    run_s: float
    dearest: tuple[int, ...]


def make_plan(
    *,
    seed: int,
    device: str,
    dtype: str,
    hardware: Mapping[str, float],
    memory_bytes: int,
    preset: Preset = "default",
    minutes: float | None = None,
    with_power: bool = False,
) -> Plan:
    """A plan for one device.

    Parameters
    ----------
    seed
        All that is random follows from it.
    device, dtype
        Of the bench.
    hardware
        ``peak_gflops`` and ``bandwidth_gbs`` say how long one network may take at least.
    memory_bytes
        Memory that the networks may use; no network needs more than half of it.
    preset
        How long to measure where ``minutes`` does not say, and in how many passes.
    minutes
        Time that the trials may take together.
    with_power
        Add isolated layers and whole networks for the meter.
    """
    budget_s = 60 * (minutes if minutes is not None else PRESET_MINUTES[preset])
    power_s = _POWER_SHARE * budget_s if with_power else 0.0
    budget_s -= power_s
    passes = _PASSES[preset]
    networks: dict[str, _Chosen] = {}
    spent = 0.0
    for chosen in _networks(seed, dtype, hardware, memory_bytes):
        cost = passes * (_RUNS * chosen.run_s + _MAKING_S)
        if len(networks) >= 2 and (spent + cost > budget_s or len(networks) == _MOST_NETWORKS):
            break
        networks[f"n{len(networks) + 1:03d}"] = chosen
        spent += cost
    metered = _metered(networks, int(power_s / _READING_S), seed)
    trials = tuple(_ordered(networks, passes, metered, seed))
    names = random.Random(f"closing {seed}").sample(sorted(networks), min(_CLOSING, len(networks)))
    closing = tuple(
        Trial(name, "network", networks[name].template, networks[name].seed, 0) for name in names
    )
    recipe = {
        "seed": seed, "device": device, "dtype": dtype, "hardware": dict(hardware),
        "memory_bytes": memory_bytes, "preset": preset, "minutes": minutes,
        "with_power": with_power,
    }  # fmt: skip
    return Plan(trials, closing, recipe, spent + _READING_S * len(metered))


def _networks(
    seed: int, dtype: str, hardware: Mapping[str, float], memory_bytes: int
) -> Iterator[_Chosen]:
    """Random networks without end: every template in its turn, each near a drawn time."""
    import torch  # noqa: PLC0415 - a plan is read without it

    from pytest_neuralpower.measure.networks import TEMPLATES, sketch  # noqa: PLC0415
    from pytest_neuralpower.tracing import trace  # noqa: PLC0415

    source = random.Random(f"plan {seed}")
    turn = [name for name, (_, share) in TEMPLATES.items() for _ in range(share)]
    while True:
        source.shuffle(turn)
        for template in turn:
            wanted = _RUN_S[0] * (_RUN_S[1] / _RUN_S[0]) ** source.random()
            found: list[_Chosen] = []
            for _ in range(_TRIES):
                number = source.randrange(2**31)
                model, inputs = sketch(template, number, dtype=getattr(torch, dtype))
                traced = trace(model, *inputs)
                run_s = _ideal_s(traced, hardware)
                if run_s <= _RUN_S[1] * 1.5 and _memory(traced) <= memory_bytes / 2:
                    found.append(_Chosen(template, number, run_s, _dearest(traced, hardware)))
                    if abs(math.log(run_s / wanted)) < 0.4:
                        break
            if found:
                yield min(found, key=lambda each: abs(math.log(each.run_s / wanted)))


def _ideal_s(traced: Iterable[Layer], hardware: Mapping[str, float]) -> float:
    """About what layers take: operations and bytes at a good part of the ceilings."""
    ideal = 0.0
    for layer in traced:
        cost = layer.cost
        compute = cost.flops / (hardware["peak_gflops"] * 1e9)
        memory = cost.bytes_moved / (hardware["bandwidth_gbs"] * 1e9)
        ideal += (compute + memory) / _EFFICIENCY + _CALL_S
    return ideal


def _dearest(traced: Trace, hardware: Mapping[str, float]) -> tuple[int, ...]:
    """Places of the layers of every kind that take longest, the dearest first."""
    first: dict[str, tuple[float, int]] = {}
    for place, layer in enumerate(traced):
        cost = _ideal_s([layer], hardware)
        if cost > first.get(layer.kind, (0.0, 0))[0]:
            first[layer.kind] = (cost, place)
    return tuple(place for _, place in sorted(first.values(), reverse=True))


def _memory(traced: Trace) -> int:
    """Bytes of all weights and the largest activations: twice what most runs hold at once."""
    weights = sum(layer.cost.bytes_weight for layer in traced)
    largest = max(layer.cost.bytes_in + layer.cost.bytes_out for layer in traced)
    return weights + 4 * largest


def _metered(networks: Mapping[str, _Chosen], readings: int, seed: int) -> list[Trial]:
    """Trials under the meter: whole networks, and of each network layers of different kinds."""
    source = random.Random(f"power {seed}")
    names = sorted(networks)
    source.shuffle(names)
    wholes = [Trial(name, "whole", networks[name].template, networks[name].seed) for name in names][
        : round(_WHOLE_SHARE * readings)
    ]
    layers = [
        Trial(name, "layer", networks[name].template, networks[name].seed, index=place)
        for rank in range(_LAYERS_EACH)
        for name in names
        for place in networks[name].dearest[rank : rank + 1]
    ][: readings - len(wholes)]
    found = wholes + layers
    source.shuffle(found)
    return found


def _ordered(
    networks: Mapping[str, _Chosen], passes: int, metered: Sequence[Trial], seed: int
) -> Iterator[Trial]:
    """Every pass in an order of its own, the metered trials spread over all, sentinels between."""
    order: list[Trial] = []
    for number in range(1, passes + 1):
        part = list(metered[number - 1 :: passes])
        part += [
            Trial(name, "network", chosen.template, chosen.seed, number)
            for name, chosen in networks.items()
        ]
        random.Random(f"pass {number} {seed}").shuffle(part)
        order += part
    sentinels = 0
    for place, trial in enumerate(order):
        if place % _SENTINEL_EVERY == 0:
            sentinels += 1
            yield Trial(SENTINEL, "network", SENTINEL, 0, sentinels)
        yield trial
    yield Trial(SENTINEL, "network", SENTINEL, 0, sentinels + 1)
