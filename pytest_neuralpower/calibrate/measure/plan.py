"""The plan of a calibration: the options of the user, and the seeded networks that follow."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

import msgspec

from pytest_neuralpower.calibrate.fit.rows import SENTINEL
from pytest_neuralpower.calibrate.measure.meters.base import METERS
from pytest_neuralpower.calibrate.measure.trial import MeasuredHardware, Trial
from pytest_neuralpower.errors import OptionError
from pytest_neuralpower.text import shell_word

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Layer, Trace

Preset = Literal["quick", "default", "thorough"]
Dtype = Literal["float32", "bfloat16", "float16"]
Mode = Literal["eager", "graph"]

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


class PlanRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a plan follows from: the plan itself in the head of a profile and in its recipe.

    Attributes
    ----------
    seed
        All that is random follows from it.
    device, dtype
        Of the bench.
    hardware
        Its ceilings say how long one network may take at least.
    memory_bytes
        Memory that the networks may use; no network needs more than half of it.
    preset
        How long to measure where ``minutes`` does not say, and in how many passes.
    minutes
        Time that the trials may take together.
    with_power
        Add isolated layers and whole networks for the meter.
    """

    seed: int
    device: str
    dtype: Dtype
    hardware: MeasuredHardware
    memory_bytes: int
    preset: Preset = "default"
    minutes: float | None = None
    with_power: bool = False

    def to_json(self) -> dict[str, object]:
        """In JSON's and YAML's types."""
        return msgspec.to_builtins(self)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class CalibrationPlan:
    """Trials in the order to run them.

    Attributes
    ----------
    trials
        Pass 1 over every network, then pass 2, ...; a sentinel first and every so many trials.
    closing
        Ten networks once more (``pass_`` 0): their rows against those of the last pass tell the
        repeatability.
    recipe
        What :func:`make_plan` makes this plan of again.
    expected_s
        Rough time of it all.
    """

    trials: tuple[Trial, ...]
    closing: tuple[Trial, ...]
    recipe: PlanRecipe
    expected_s: float


class _Network(NamedTuple):
    """One random network of a plan, the time that one run of it may take (s), and the most
    expensive layer of each kind, the most expensive first."""

    template: str
    seed: int
    run_s: float
    top_layers: tuple[int, ...]


def make_plan(recipe: PlanRecipe) -> CalibrationPlan:
    """The plan of a recipe: always the same."""
    seed, preset = recipe.seed, recipe.preset
    minutes = PRESET_MINUTES[preset] if recipe.minutes is None else recipe.minutes
    budget_s = 60 * minutes
    power_s = _POWER_SHARE * budget_s if recipe.with_power else 0.0
    budget_s -= power_s
    passes = _PASSES[preset]
    networks: dict[str, _Network] = {}
    spent = 0.0
    for network in _networks(recipe):
        cost = passes * (_RUNS * network.run_s + _MAKING_S)
        if len(networks) >= 2 and (spent + cost > budget_s or len(networks) == _MOST_NETWORKS):
            break
        networks[f"n{len(networks) + 1:03d}"] = network
        spent += cost
    metered = _metered(networks, int(power_s / _READING_S), seed)
    trials = tuple(_ordered(networks, passes, metered, seed))
    names = random.Random(f"closing {seed}").sample(sorted(networks), min(_CLOSING, len(networks)))
    closing = tuple(
        Trial(name, "network", networks[name].template, networks[name].seed, 0) for name in names
    )
    return CalibrationPlan(trials, closing, recipe, spent + _READING_S * len(metered))


def _networks(recipe: PlanRecipe) -> Iterator[_Network]:
    """Random networks without end: every template in its turn, each near a drawn time."""
    import torch  # noqa: PLC0415 - a plan is read without it

    from pytest_neuralpower.calibrate.measure.networks import TEMPLATES, sketch  # noqa: PLC0415
    from pytest_neuralpower.tracing import trace  # noqa: PLC0415

    dtype, hardware = getattr(torch, recipe.dtype), recipe.hardware
    source = random.Random(f"plan {recipe.seed}")
    turn = [name for name, (_, share) in TEMPLATES.items() for _ in range(share)]
    while True:
        source.shuffle(turn)
        for template in turn:
            wanted_s = _RUN_S[0] * (_RUN_S[1] / _RUN_S[0]) ** source.random()
            fitting: dict[float, _Network] = {}  # by their distance from the wanted time
            for _ in range(_TRIES):
                seed = source.randrange(2**31)
                model, inputs = sketch(template, seed, dtype=dtype)
                traced = trace(model, *inputs)
                run_s = _ideal_s(traced, hardware)
                if run_s <= _RUN_S[1] * 1.5 and _memory(traced) <= recipe.memory_bytes / 2:
                    off = abs(math.log(run_s / wanted_s))
                    fitting.setdefault(off, _Network(template, seed, run_s, _top(traced, hardware)))
                    if off < 0.4:
                        break
            if fitting:
                yield fitting[min(fitting)]


def _ideal_s(layers: Iterable[Layer], hardware: MeasuredHardware) -> float:
    """About what layers take: operations and bytes at a good part of the ceilings."""
    ideal = 0.0
    for layer in layers:
        cost = layer.cost
        compute = cost.flops / (hardware.peak_gflops * 1e9)
        memory = cost.bytes_moved / (hardware.bandwidth_gbs * 1e9)
        ideal += (compute + memory) / _EFFICIENCY + _CALL_S
    return ideal


def _top(traced: Trace, hardware: MeasuredHardware) -> tuple[int, ...]:
    """Place of the most expensive layer of every kind, the most expensive first."""
    first: dict[str, tuple[float, int]] = {}
    for index, layer in enumerate(traced):
        cost_s = _ideal_s([layer], hardware)
        if cost_s > first.get(layer.kind, (0.0, 0))[0]:
            first[layer.kind] = (cost_s, index)
    return tuple(index for _, index in sorted(first.values(), reverse=True))


def _memory(traced: Trace) -> int:
    """Bytes of all weights and the largest activations: twice what most runs hold at once."""
    weights = sum(layer.cost.bytes_weight for layer in traced)
    largest = max(layer.cost.bytes_in + layer.cost.bytes_out for layer in traced)
    return weights + 4 * largest


def _metered(networks: Mapping[str, _Network], readings: int, seed: int) -> list[Trial]:
    """Trials under the meter: whole networks, and of each network layers of different kinds."""
    source = random.Random(f"power {seed}")
    names = sorted(networks)
    source.shuffle(names)
    wholes = [Trial(name, "whole", networks[name].template, networks[name].seed) for name in names][
        : round(_WHOLE_SHARE * readings)
    ]
    layers = [
        Trial(name, "layer", networks[name].template, networks[name].seed, index=index)
        for rank in range(_LAYERS_EACH)
        for name in names
        for index in networks[name].top_layers[rank : rank + 1]
    ][: readings - len(wholes)]
    metered = wholes + layers
    source.shuffle(metered)
    return metered


def _ordered(
    networks: Mapping[str, _Network], passes: int, metered: Sequence[Trial], seed: int
) -> Iterator[Trial]:
    """Every pass in an order of its own, the metered trials spread over all, sentinels between."""
    order: list[Trial] = []
    for number in range(1, passes + 1):
        part = list(metered[number - 1 :: passes])
        part += [
            Trial(name, "network", network.template, network.seed, number)
            for name, network in networks.items()
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


# -- Options of the user.

#: Engines that ``--backend`` takes.
BACKENDS: Final = ("loky", "dask", "ray")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DEVICE: Final = re.compile(r"(cpu|cuda(:\d+)?)?")

#: Trials after which a run is worth resuming take seconds; less time than this measures nothing.
LEAST_MINUTES: Final = 0.1


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """One calibration of one device, as the command's options ask for it.

    Attributes
    ----------
    name
        Of the platform.
    out
        Folder of its recipe, profile, platform and card; by default one of its name.
    device, dtype, mode
        As in ``Bench``; empty for those of the profile that is resumed, else the first GPU (or the
        CPU where there is none), float32 and eager.
    meter
        ``none`` where ``watts`` are given, which stand in for one.
    minutes
        None for the preset's own time.
    seed
        All that is random in the plan follows from it.

    Raises
    ------
    OptionError
        One of them is wrong, or two contradict each other; one line says which and what is allowed.
    """

    name: str
    _: KW_ONLY
    out: Path | None = None
    device: str = ""
    dtype: str = ""
    mode: str = ""
    meter: str = "auto"
    watts: float | None = None
    quick: bool = False
    thorough: bool = False
    minutes: float | None = None
    resume: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise OptionError(
                f"NAME {self.name!r}: letters, digits, '.', '_' and '-' only, such as my-gpu; a "
                "folder is given with --out"
            )
        if not _DEVICE.fullmatch(self.device):
            raise OptionError(f"--device {self.device}: it is cpu, cuda, cuda:N or cuda:all")
        for option, value, allowed in (
            ("--dtype", self.dtype or "float32", get_args(Dtype)),
            ("--mode", self.mode or "eager", get_args(Mode)),
            ("--meter", self.meter, METERS),
        ):
            if value not in allowed:
                raise OptionError(f"{option} {value}: it is one of {', '.join(allowed)}")
        if self.watts is not None and self.watts <= 0:
            raise OptionError(f"--watts {self.watts:g}: the power under load in watts, above 0")
        if self.watts is not None and self.meter not in ("auto", "none"):
            raise OptionError(
                f"--watts {self.watts:g} stands in for a meter: leave it out, or drop --meter "
                f"{self.meter}"
            )
        if self.watts is not None:
            object.__setattr__(self, "meter", "none")
        if self.quick and self.thorough:
            raise OptionError("--quick and --thorough: give one of them")
        if self.minutes is not None and not LEAST_MINUTES <= self.minutes <= 24 * 60:
            raise OptionError(f"--minutes {self.minutes:g}: from {LEAST_MINUTES:g} to {24 * 60}")

    @property
    def preset(self) -> Preset:
        return "quick" if self.quick else "thorough" if self.thorough else "default"

    @property
    def directory(self) -> Path:
        return self.out or Path(self.name)

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
        words = ["neuralpower", "calibrate", self.name, *out, "--resume"]
        return " ".join(map(shell_word, words))
