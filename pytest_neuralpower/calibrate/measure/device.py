"""Before anything is measured: the device, its facts and ceilings, and a meter that is proven."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import torch

from pytest_neuralpower.calibrate.measure.conditions import NvmlWatch, Watch, watch_device
from pytest_neuralpower.calibrate.measure.facts import Facts, device_facts, measure_hardware
from pytest_neuralpower.calibrate.measure.meters.base import METERS, Meter, MeterName, Reading, Step
from pytest_neuralpower.calibrate.measure.meters.ina3221 import open_ina3221
from pytest_neuralpower.calibrate.measure.meters.nvml import cuda_uuid, open_nvml
from pytest_neuralpower.calibrate.measure.meters.probe import USUAL_PROBE, Probe
from pytest_neuralpower.calibrate.measure.meters.rapl import open_rapl
from pytest_neuralpower.calibrate.measure.meters.zeus import open_zeus
from pytest_neuralpower.calibrate.measure.trial import Bench
from pytest_neuralpower.errors import MeterRefused, MissingExtraError, OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

# -- Which meter measures a device: the one asked for, or the first that proves itself.


class NoMeter(Meter):
    """Runs the load and reads no energy: runtime alone, or the user's watts times a runtime.

    Parameters
    ----------
    watts
        Power of the device under load as the user knows it. Energy is then *estimated*;
        without it there is none, and no zero in its place.

    Raises
    ------
    OptionError
        ``watts`` is not a positive number.
    """

    name: MeterName = "none"

    def __init__(self, *, watts: float | None = None) -> None:
        if watts is not None and not (math.isfinite(watts) and watts > 0):
            raise OptionError(
                f"--watts {watts:g}: power must be a positive number of watts, such as 65"
            )
        self.notes = ()
        self.source = None if watts is None else "estimated"
        self.method = "runtime only" if watts is None else f"{watts:g} W given by the user"
        self._watts = watts

    def measure(self, step: Step, *, seconds: float, settle_s: float) -> Reading:
        settled = perf_counter() + settle_s
        while perf_counter() < settled:
            step()
        steps, start = 0, perf_counter()
        while (taken := perf_counter() - start) < seconds:
            step()
            steps += 1
        return Reading(seconds=taken, steps=steps, power_w=self._watts)

    def idle_w(self, seconds: float) -> None:
        """Nothing is known of idle power."""

    def close(self) -> None:
        """Nothing is held."""


# Kind of torch device -> the meters that read its energy, the finest first. The monitors of a
# Jetson read the whole board, whichever part works.
_FITTING: Final[Mapping[str, tuple[MeterName, ...]]] = {
    "cuda": ("nvml", "ina3221", "zeus"),
    "cpu": ("rapl", "ina3221", "zeus"),
    "mps": ("zeus",),
}


def choose_meter(
    name: str,
    device: str,
    *,
    load: Step,
    watts: float | None = None,
    probe: Probe = USUAL_PROBE,
    sysfs: Path = Path("/sys"),
) -> Meter:
    """Open the meter that measures ``device``, probed under ``load`` before it is returned.

    Parameters
    ----------
    name
        One of :data:`METERS`. ``auto`` tries what fits the device, then takes ``none``; the
        sentence of each refusal is in :attr:`Meter.notes`.
    device
        A torch device, such as ``cuda:0`` or ``cpu``.
    load
        A few milliseconds of work on the device that has ended when it returns.
    watts
        Power under load as the user knows it, for ``none``; energy is then *estimated*.
    probe
        How long to probe.
    sysfs
        Where the kernel's files are.

    Raises
    ------
    MeterRefused
        The meter asked for does not work here; the message says why and what to do.
    MissingExtraError
        ``zeus`` was asked for and is not installed.
    OptionError
        ``name`` is unknown, or ``watts`` is not positive or goes with a real meter.
    DeviceLost
        The device went away while it was probed.
    """
    if name not in METERS:
        raise OptionError(f"--meter {name}: it is one of {', '.join(METERS)}")
    none = NoMeter(watts=watts)
    if name == "none":
        return none
    if name != "auto" and watts is not None:
        raise OptionError(
            f"--watts {watts:g}: it stands in for a meter; leave it out, or use --meter none"
        )
    openers: Mapping[str, Callable[[], Meter]] = {
        "nvml": lambda: open_nvml(cuda_uuid(device), load=load, probe=probe),
        "rapl": lambda: open_rapl(load=load, probe=probe, sysfs=sysfs),
        "ina3221": lambda: open_ina3221(load=load, probe=probe, sysfs=sysfs),
        "zeus": lambda: open_zeus(device, load=load, probe=probe),
    }
    fitting = _FITTING.get(device.partition(":")[0], ())
    if name != "auto":
        if name not in fitting:
            raise MeterRefused(
                f"{name}: it does not measure {device!r}; meters of it: "
                f"{', '.join(fitting) or 'none'}"
            )
        return openers[name]()
    refusals: list[str] = []
    for candidate in fitting:
        try:
            meter = openers[candidate]()
        except (MeterRefused, MissingExtraError) as refusal:
            refusals.append(str(refusal))
            continue
        meter.notes = (*refusals, *meter.notes)
        return meter
    none.notes = tuple(refusals)
    return none


# -- Opening a device.

#: Share of the free memory that networks may use.
_MEMORY_SHARE: Final = 0.5
#: Seconds over which idle power is read.
_IDLE_S: Final = 2.0
#: Bytes, where the system does not tell.
_SOME_MEMORY: Final = 4 * 2**30
#: Rows and columns of the product that loads the device while a meter is probed.
_LOAD_SIZE: Final = {"cpu": 512, "cuda": 4096}


@dataclass(frozen=True, slots=True)
class Device:
    """A device that is ready to be measured; close it when done.

    Attributes
    ----------
    bench, meter
        As :func:`~pytest_neuralpower.calibrate.measure.run_trial.run_trial` takes them.
    facts
        Provenance lines of the profile: device, software, flags, meter.
    memory_bytes
        What networks may use.
    watch
        Watches it, trial by trial.
    """

    bench: Bench
    meter: Meter
    facts: Facts
    memory_bytes: int
    watch: Watch

    def close(self) -> None:
        """Release the drivers."""
        self.meter.close()
        self.watch.close()


def cuda_devices() -> list[str]:
    """The CUDA devices that torch sees here."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [f"cuda:{index}" for index in range(count)]


def resolve_device(device: str) -> str:
    """The device that was asked for, checked; by default the first GPU, else the CPU.

    Raises
    ------
    OptionError
        There is no such device.
    """
    cuda = cuda_devices()
    if not device:
        return cuda[0] if cuda else "cpu"
    name = "cpu" if device == "cpu" else f"cuda:{int(device.partition(':')[2] or 0)}"
    if name not in ("cpu", *cuda):
        there = ", ".join(["cpu", *cuda])
        raise OptionError(f"--device {device}: torch sees no such device here; there is {there}")
    return name


def open_device(
    device: str,
    dtype: str,
    *,
    mode: str = "eager",
    meter: str = "none",
    watts: float | None = None,
    warm_up_s: tuple[float, float] | None = None,
) -> Device:
    """Check the device, read its facts and ceilings, and choose a meter under load.

    Parameters
    ----------
    warm_up_s
        Run a GPU under load for at least, and at most, so long, until its temperature holds still;
        its idle power is read before.

    Raises
    ------
    OptionError
        There is no such device, or it cannot run in that mode.
    MeterRefused
        The meter that was asked for does not work here.
    """
    device = resolve_device(device)
    if mode == "graph" and not device.startswith("cuda"):
        raise OptionError(
            f"--mode graph: {device} replays no CUDA graphs; leave it out, or use --device cuda:0"
        )
    torch.backends.cudnn.benchmark = False  # algorithms that do not change from run to run
    facts = device_facts(device)
    hardware = measure_hardware(device, dtype)
    bench = Bench(device, dtype, hardware, mode="graph" if mode == "graph" else "eager")
    load = _load(device, dtype)
    chosen = choose_meter(meter, device, load=load, watts=watts)
    watch = watch_device(device)
    idle_w = preheated = None
    if warm_up_s is not None and chosen.source == "measured":
        idle_w = chosen.idle_w(_IDLE_S)
    if warm_up_s is not None and isinstance(watch, NvmlWatch):
        least_s, most_s = warm_up_s
        preheated = str(preheat(load, watch.temperature_c, least_s=least_s, most_s=most_s))
    facts = facts.also(
        idle_w=None if idle_w is None else f"{idle_w:.4g}",
        preheated=preheated,
        dtype=dtype,
        mode=bench.mode,
        threads="1",
        meter=chosen.name,
        meter_method=chosen.method,
    )
    return Device(bench, chosen, facts, _memory_bytes(device), watch)


def _load(device: str, dtype: str) -> Step:
    """A few milliseconds of work that has ended when it returns."""
    side = _LOAD_SIZE[torch.device(device).type]
    left: Any = torch.randn(side, side, device=device, dtype=getattr(torch, dtype))

    def load() -> None:
        with torch.inference_mode():
            torch.mm(left, left)
        if device != "cpu":
            torch.cuda.synchronize(device)

    return load


def _memory_bytes(device: str) -> int:
    if device != "cpu":
        torch.cuda.empty_cache()  # what the ceilings were measured with is free, too
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * _MEMORY_SHARE)
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        free = _SOME_MEMORY
    return int(free * _MEMORY_SHARE)


# -- Warm-up: a warm chip leaks more, and may run slower.

_MOST_RISE_C: Final = 1.0


@dataclass(frozen=True, slots=True)
class Preheated:
    """How it ended: after how long, at what temperature, and whether that held still."""

    seconds: float
    temperature_c: float | None
    steady: bool

    def __str__(self) -> str:
        """``41 s, 63 C, steady``."""
        celsius = "unknown" if self.temperature_c is None else f"{self.temperature_c:g} C"
        return f"{self.seconds:.0f} s, {celsius}, {'steady' if self.steady else 'not steady'}"


def preheat(
    step: Step,
    temperature_c: Callable[[], float | None],
    *,
    least_s: float = 30.0,
    most_s: float = 60.0,
    over_s: float = 10.0,
) -> Preheated:
    """Run ``step`` until the temperature moved by less than 1 degree over the last ``over_s``.

    Runs for ``least_s`` at least and gives up after ``most_s``. A device that tells no
    temperature is run for ``least_s``.

    Raises
    ------
    DeviceLost
        The device went away meanwhile.
    """
    start = perf_counter()
    seen: list[tuple[float, float]] = []
    while True:
        step()
        now = perf_counter() - start
        celsius = temperature_c()
        if celsius is not None:
            seen.append((now, celsius))
        steady = _is_steady(seen, now - over_s)
        if (now >= least_s and (steady or celsius is None)) or now >= most_s:
            return Preheated(now, celsius, steady)


def _is_steady(seen: list[tuple[float, float]], since_s: float) -> bool:
    """Whether the temperatures since then, of which there is one as old, lie close together."""
    if not seen or seen[0][0] > since_s:
        return False
    recent = [celsius for at_s, celsius in seen if at_s >= since_s]
    return max(recent) - min(recent) < _MOST_RISE_C
