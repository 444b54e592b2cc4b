"""Plans: which random networks are measured, in what order. Seeded, and made again by a recipe."""

from __future__ import annotations

import math
import random
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from pytest_neuralpower.calibrate.measure.meters.choose import METERS
from pytest_neuralpower.calibrate.measure.trial import SENTINEL, Trial
from pytest_neuralpower.errors import OptionError

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Layer, Trace

__all__ = ["PRESET_MINUTES", "CalibrationOptions", "Plan", "calibration_options", "make_plan"]


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

    from pytest_neuralpower.calibrate.measure.networks import TEMPLATES, sketch  # noqa: PLC0415
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


# -- What the user asked of a calibration, checked before anything touches the device.

DTYPES: Final = ("float32", "bfloat16", "float16")
MODES: Final = ("eager", "graph")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DEVICE: Final = re.compile(r"cpu|cuda(:\d+)?")

#: Trials after which a run is worth resuming take seconds; less time than this measures nothing.
LEAST_MINUTES: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationOptions:
    """One calibration of one device.

    Attributes
    ----------
    name
        Of the platform.
    directory
        Where its recipe, profile, platform and card go.
    device, dtype, mode
        As in ``Bench``; empty for those of the profile that
        is resumed, else the first GPU (or the CPU where there is none), float32 and eager.
    meter, watts, preset, minutes, resume
        As the command's options; ``minutes`` None for the preset's own time.
    seed
        All that is random in the plan follows from it.
    """

    name: str
    directory: Path
    device: str = ""
    dtype: str = ""
    mode: str = ""
    meter: str = "auto"
    watts: float | None = None
    preset: Preset = "default"
    minutes: float | None = None
    resume: bool = False
    seed: int = 0

    @property
    def profile(self) -> Path:
        return self.directory / "profile.csv"

    @property
    def platform(self) -> Path:
        return self.directory / f"{self.name}.json"

    @property
    def again(self) -> str:
        """The command that goes on where this one stops."""
        out = [] if self.directory == Path(self.name) else ["--out", str(self.directory)]
        return shlex.join(["neuralpower", "calibrate", self.name, *out, "--resume"])


def calibration_options(
    name: str,
    *,
    out: Path | None = None,
    device: str = "",
    dtype: str = "",
    mode: str = "",
    meter: str = "auto",
    watts: float | None = None,
    quick: bool = False,
    thorough: bool = False,
    minutes: float | None = None,
    resume: bool = False,
    seed: int = 0,
) -> CalibrationOptions:
    """Check the command's options.

    Raises
    ------
    OptionError
        One of them is wrong, or two contradict each other; one line says which and what is allowed.
    """
    if not _NAME.fullmatch(name):
        raise OptionError(
            f"NAME {name!r}: letters, digits, '.', '_' and '-' only, such as my-gpu; a folder is "
            "given with --out"
        )
    if device and not _DEVICE.fullmatch(device):
        raise OptionError(f"--device {device}: it is cpu, cuda, cuda:N or cuda:all")
    if dtype and dtype not in DTYPES:
        raise OptionError(f"--dtype {dtype}: it is one of {', '.join(DTYPES)}")
    if mode and mode not in MODES:
        raise OptionError(f"--mode {mode}: it is one of {', '.join(MODES)}")
    if meter not in METERS:
        raise OptionError(f"--meter {meter}: it is one of {', '.join(METERS)}")
    if watts is not None and watts <= 0:
        raise OptionError(f"--watts {watts:g}: the power under load in watts, above 0")
    if watts is not None and meter not in ("auto", "none"):
        raise OptionError(
            f"--watts {watts:g} stands in for a meter: leave it out, or drop --meter {meter}"
        )
    if quick and thorough:
        raise OptionError("--quick and --thorough: give one of them")
    if minutes is not None and not LEAST_MINUTES <= minutes <= 24 * 60:
        raise OptionError(f"--minutes {minutes:g}: from {LEAST_MINUTES:g} to {24 * 60}")
    return CalibrationOptions(
        name=name,
        directory=out or Path(name),
        device=device,
        dtype=dtype,
        mode=mode,
        meter="none" if watts is not None else meter,
        watts=watts,
        preset="quick" if quick else "thorough" if thorough else "default",
        minutes=minutes,
        resume=resume,
        seed=seed,
    )
