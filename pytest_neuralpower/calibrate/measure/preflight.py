"""Bring a device to its working temperature: a warm chip leaks more, and may run slower."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import torch

from pytest_neuralpower import __version__
from pytest_neuralpower.calibrate.measure.conditions import watch_device
from pytest_neuralpower.calibrate.measure.meters.choose import choose_meter
from pytest_neuralpower.calibrate.measure.meters.nvml import NvmlDevice, cuda_uuid
from pytest_neuralpower.calibrate.measure.meters.rapl import text
from pytest_neuralpower.calibrate.measure.profile_writer import Circumstances
from pytest_neuralpower.calibrate.measure.trial import Bench
from pytest_neuralpower.errors import MeterRefused, OptionError, ReadingVoid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_neuralpower.calibrate.measure.conditions import Watch
    from pytest_neuralpower.calibrate.measure.meters.base import Meter, Step
    from pytest_neuralpower.calibrate.measure.trial import MeasuredRow

__all__ = [
    "Place",
    "Preheated",
    "cpu_facts",
    "cpu_model",
    "device_facts",
    "hardware_facts",
    "nvml_facts",
    "open_place",
    "preheat",
    "resolve_device",
]


_MOST_RISE_C: Final = 1.0


@dataclass(frozen=True, slots=True)
class Preheated:
    """How it ended: after how long, at what temperature, and whether that held still."""

    seconds: float
    temperature_c: float | None
    steady: bool


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


# -- Facts of the device that a fit needs: ceilings, caches, widths.

_CACHES: Final = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS: Final = {"K": 2**10, "M": 2**20, "G": 2**30, "": 1}

#: float32 numbers in one vector, by the instructions that torch says it uses.
_VECTOR_FLOATS: Final = {"AVX512": 16, "AVX2": 8, "DEFAULT": 4}

#: Rows and columns of the product whose rate is the ceiling; MB of the copy, beyond any cache.
_PRODUCT: Final = 1024
_COPY_MB: Final = 256


def hardware_facts(device: str, dtype: str, *, threads: int = 1) -> dict[str, float]:
    """Ceilings measured in about a second, and what the system tells of the device.

    Returns
    -------
    dict
        ``peak_gflops`` and ``bandwidth_gbs``: of a large matrix product and a large copy.
        A CPU adds ``threads``, ``vector_floats`` and, where the system tells, ``l2_mb`` and
        ``l3_mb``; a CUDA device adds ``multiprocessors`` and ``l2_mb``.
    """
    facts = _ceilings(torch.device(device), getattr(torch, dtype))
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        facts["multiprocessors"] = properties.multi_processor_count
        facts["l2_mb"] = properties.L2_cache_size / 1e6
        return facts
    facts["threads"] = threads
    facts["vector_floats"] = _VECTOR_FLOATS.get(torch.backends.cpu.get_cpu_capability(), 4)
    for level, size in cache_bytes(_CACHES).items():
        if level > 1:
            facts[f"l{level}_mb"] = round(size / 1e6, 3)
    return facts


def cpu_model(path: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name as the system gives it; ``CPU`` where it gives none."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", path.read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else "CPU"


def cache_bytes(folder: Path) -> dict[int, int]:
    """Size of the data cache of each level; empty where the system does not tell."""
    found: dict[int, int] = {}
    for index in sorted(folder.glob("index*")):
        try:
            kind = (index / "type").read_text().strip()
            level = int((index / "level").read_text())
            size = re.fullmatch(r"(\d+)([KMG]?)", (index / "size").read_text().strip())
        except (OSError, ValueError):
            continue
        if size and kind in ("Data", "Unified"):
            found[level] = int(size[1]) * _UNITS[size[2]]
    return found


def _ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    side, megabytes = _PRODUCT, _COPY_MB
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        side, megabytes = 8 * _PRODUCT, min(8 * _COPY_MB, free // 8_000_000)
    left = torch.randn(side, side, device=device).to(dtype)
    count = megabytes * 250_000
    source = torch.zeros(count, device=device)
    target = torch.zeros_like(source)
    with torch.inference_mode():
        product = _least_s(lambda: left @ left, device)
        copy = _least_s(lambda: target.copy_(source), device)
    return {
        "peak_gflops": float(f"{2 * side**3 / product * 1e-9:.4g}"),
        "bandwidth_gbs": float(f"{8 * count / copy * 1e-9:.4g}"),
    }


def _least_s(call: object, device: torch.device, *, repeats: int = 5) -> float:
    assert callable(call)
    times = []
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    for _ in range(repeats + 1):
        begin = clock()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(clock() - begin)
    return min(times[1:])


# -- What is recorded of a device beside its measurements: enough to tell when they hold no more.


def device_facts(device: str) -> dict[str, str]:
    """Facts of a torch device, software and flags, as the provenance lines of a profile.

    Facts that the device or driver does not give are left out, not guessed. ``device`` is
    always there; ``device_uuid`` where there is one.
    """
    facts = _cuda_facts(device) if device.startswith("cuda") else cpu_facts()
    return {**facts, **_software_facts()}


def cpu_facts(*, sysfs: Path = Path("/sys"), proc: Path = Path("/proc")) -> dict[str, str]:
    """Model, cores, clock governor and torch's threads of the processor."""
    import torch  # noqa: PLC0415 - heavy

    model = re.search(r"^model name\s*:\s*(.+)$", text(proc / "cpuinfo"), re.MULTILINE)
    onednn = re.search(r"MKL-DNN v(\S+)", torch.__config__.show())
    facts = {
        "device": model[1] if model else platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "torch_threads": str(torch.get_num_threads()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "onednn": onednn[1] if onednn else "no",
    }
    governor = text(sysfs / "devices" / "system" / "cpu" / "cpu0" / "cpufreq" / "scaling_governor")
    return {**facts, "governor": governor} if governor else facts


def _cuda_facts(device: str) -> dict[str, str]:
    import torch  # noqa: PLC0415 - heavy

    properties = torch.cuda.get_device_properties(torch.device(device))
    facts = {
        "device": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": str(properties.multi_processor_count),
        "memory_mib": str(properties.total_memory >> 20),
        "cuda": str(torch.version.cuda or torch.version.hip),
        "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        "cudnn_benchmark": str(torch.backends.cudnn.benchmark).lower(),
        "cudnn_tf32": str(torch.backends.cudnn.allow_tf32).lower(),
    }
    uuid = cuda_uuid(device)
    facts["device_uuid"] = uuid
    try:
        nvml = NvmlDevice(uuid)
    except MeterRefused:
        return facts
    try:
        return {**facts, **nvml_facts(nvml)}
    finally:
        nvml.close()


def nvml_facts(device: NvmlDevice) -> dict[str, str]:
    """Driver, ECC, power limits, clocks and temperature as NVML gives them now."""
    asked: dict[str, Callable[[], object]] = {
        "driver": device.driver,
        "ecc": device.ecc,
        "power_limit_w": device.power_limit_w,
        "default_power_limit_w": device.default_power_limit_w,
        "sm_clock_mhz": device.sm_clock_mhz,
        "most_sm_clock_mhz": device.most_sm_clock_mhz,
        "memory_clock_mhz": device.memory_clock_mhz,
        "temperature_c": device.temperature_c,
    }
    facts = {}
    for key, ask in asked.items():
        with suppress(ReadingVoid):  # whatever ails one query, runtime can still be calibrated
            value = ask()
            if value is not None:
                facts[key] = _shown(value)
    return {**facts, "device_uuid": device.uuid}


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _software_facts() -> dict[str, str]:
    import torch  # noqa: PLC0415 - heavy

    return {
        "torch": torch.__version__,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "pytest_neuralpower": __version__,
    }


# -- Before anything is measured: the device, its facts and ceilings, and a meter that is proven.

#: Share of the free memory that networks may use.
_MEMORY_SHARE: Final = 0.5
#: Seconds over which idle power is read.
_IDLE_S: Final = 2.0
#: Bytes, where the system does not tell.
_SOME_MEMORY: Final = 4 * 2**30
#: Rows and columns of the product that loads the device while a meter is probed.
_LOAD_SIZE: Final = {"cpu": 512, "cuda": 4096}


@dataclass(frozen=True, slots=True)
class Place:
    """Where it is measured, ready to measure; close it when done.

    Attributes
    ----------
    bench, meter
        As :func:`~pytest_neuralpower.calibrate.measure.run_trial.run_trial` takes them.
    facts
        Provenance lines of the profile: device, software, flags, meter.
    memory_bytes
        What networks may use.
    """

    bench: Bench
    meter: Meter
    facts: Mapping[str, str]
    memory_bytes: int
    _watch: Watch

    @property
    def uuid(self) -> str:
        return self.facts["device_uuid"]

    def watch(
        self,
        measure: Callable[[Callable[[float], None]], list[MeasuredRow]],
        *,
        steady: bool = False,
    ) -> tuple[list[MeasuredRow], Circumstances]:
        """Measure while the device is watched.

        ``measure`` is given what it calls when its load begins (:meth:`Watched.loaded`).
        ``steady`` says that the device is under one load from then on, so that its clock must
        hold; between small layers it idles, and its clock moves by itself.
        """
        with self._watch.during() as watched:
            rows = measure(watched.loaded)
        seen = watched.conditions
        flaw = seen.void if steady or seen.throttles else None
        return rows, Circumstances(self.uuid, seen.temperature_c, seen.clock_mhz, flaw or "")

    def close(self) -> None:
        """Release the drivers."""
        self.meter.close()
        self._watch.close()


def resolve_device(device: str) -> str:
    """The device that was asked for, checked; by default the first GPU, else the CPU.

    Raises
    ------
    OptionError
        There is no such device.
    """
    import torch  # noqa: PLC0415 - heavy

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not device:
        return "cuda:0" if count else "cpu"
    if device == "cpu":
        return device
    index = int(device.partition(":")[2] or 0)
    if index >= count:
        there = ", ".join(["cpu", *(f"cuda:{number}" for number in range(count))])
        raise OptionError(f"--device {device}: torch sees no such device here; there is {there}")
    return f"cuda:{index}"


def open_place(
    device: str,
    dtype: str,
    *,
    mode: str = "eager",
    meter: str = "none",
    watts: float | None = None,
    warm_up_s: tuple[float, float] | None = None,
    sysfs: Path = Path("/sys"),
) -> Place:
    """Check the device, read its facts and ceilings, and choose a meter under load.

    Parameters
    ----------
    warm_up_s
        Run a GPU under load for at least, and at most, so long, until its temperature holds still;
        its idle power is read before.
    sysfs
        Where the kernel's files are.

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
    _set_flags()
    facts = device_facts(device)
    facts.setdefault("device_uuid", _own_uuid(facts["device"]))
    bench = Bench(
        device,
        dtype,
        hardware_facts(device, dtype),
        mode="graph" if mode == "graph" else "eager",
    )
    load = _load(device, dtype)
    chosen = choose_meter(meter, device, load=load, watts=watts, sysfs=sysfs)
    if warm_up_s is not None and chosen.source == "measured":
        idle_w = chosen.idle_w(_IDLE_S)
        facts |= {} if idle_w is None else {"idle_w": f"{idle_w:.4g}"}
    if warm_up_s is not None and bench.is_cuda:
        facts |= _warmed_up(device, load, *warm_up_s)
    facts |= {"dtype": dtype, "mode": bench.mode, "threads": str(bench.threads)}
    facts |= {"meter": chosen.name, "meter_method": chosen.method}
    return Place(bench, chosen, facts, _memory_bytes(device), watch_device(device))


def _warmed_up(
    device: str, load: Callable[[], None], least_s: float, most_s: float
) -> dict[str, str]:
    """Bring a GPU to its working temperature; what that took, for the profile's head."""
    try:
        sensor = NvmlDevice(cuda_uuid(device))
    except MeterRefused:
        return {}
    try:
        found = preheat(load, sensor.temperature_c, least_s=least_s, most_s=most_s)
    finally:
        sensor.close()
    celsius = "unknown" if found.temperature_c is None else f"{found.temperature_c:g} C"
    state = "steady" if found.steady else "not steady"
    return {"preheated": f"{found.seconds:.0f} s, {celsius}, {state}"}


def _set_flags() -> None:
    """Algorithms that do not change from run to run."""
    import torch  # noqa: PLC0415 - heavy

    torch.backends.cudnn.benchmark = False


def _own_uuid(device: str) -> str:
    """A processor has no UUID: the machine's own stands in, hashed, since it is private."""
    try:
        machine = Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except OSError:
        machine = platform.node()
    return f"CPU-{hashlib.sha256(f'{machine} {device}'.encode()).hexdigest()[:12]}"


def _load(device: str, dtype: str) -> Callable[[], None]:
    """A few milliseconds of work that has ended when it returns."""
    import torch  # noqa: PLC0415 - heavy

    side = _LOAD_SIZE[torch.device(device).type]
    left: Any = torch.randn(side, side, device=device, dtype=getattr(torch, dtype))

    def load() -> None:
        with torch.inference_mode():
            torch.mm(left, left)
        if device != "cpu":
            torch.cuda.synchronize(device)

    return load


def _memory_bytes(device: str) -> int:
    import torch  # noqa: PLC0415 - heavy

    if device != "cpu":
        torch.cuda.empty_cache()  # what the ceilings were measured with is free, too
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * _MEMORY_SHARE)
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        free = _SOME_MEMORY
    return int(free * _MEMORY_SHARE)
