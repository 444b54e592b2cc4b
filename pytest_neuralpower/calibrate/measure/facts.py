"""Facts of a device: what identifies it and its software, and the ceilings that a fit needs."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import torch

from pytest_neuralpower.calibrate.measure.meters.base import file_text
from pytest_neuralpower.calibrate.measure.meters.nvml import NvmlDevice, cuda_uuid
from pytest_neuralpower.calibrate.measure.trial import MeasuredHardware
from pytest_neuralpower.errors import MeterRefused, ReadingVoid


@dataclass(frozen=True, slots=True)
class Facts:
    """A device, its software and how it is measured: enough to tell when rows no longer hold.

    Attributes
    ----------
    lines
        Provenance lines of a profile, by name; what the device or driver does not tell is left out,
        not guessed.
    """

    lines: Mapping[str, str]

    @property
    def device(self) -> str:
        """Its model."""
        return self.lines["device"]

    @property
    def uuid(self) -> str:
        """Of this very device."""
        return self.lines["device_uuid"]

    def also(self, **lines: str | None) -> Facts:
        """With further lines; None where something is not known."""
        known = {name: text for name, text in lines.items() if text is not None}
        return Facts({**self.lines, **known})


def device_facts(device: str) -> Facts:
    """Facts of a torch device, of the software and its flags."""
    facts = _cuda_facts(device) if device.startswith("cuda") else cpu_facts()
    facts |= {
        "torch": torch.__version__,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "pytest_neuralpower": version("pytest-neuralpower"),
    }
    # A processor has no UUID: the machine's own stands in, hashed, since it is private.
    machine = file_text(Path("/etc/machine-id")) or platform.node()
    digest = hashlib.sha256(f"{machine} {facts['device']}".encode()).hexdigest()
    facts.setdefault("device_uuid", f"CPU-{digest[:12]}")
    return Facts(facts)


def cpu_facts(*, sysfs: Path = Path("/sys"), proc: Path = Path("/proc")) -> dict[str, str]:
    """Model, cores, clock governor and torch's threads of the processor."""
    model = re.search(r"^model name\s*:\s*(.+)$", file_text(proc / "cpuinfo"), re.MULTILINE)
    onednn = re.search(r"MKL-DNN v(\S+)", torch.__config__.show())
    facts = {
        "device": model[1] if model else platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "torch_threads": str(torch.get_num_threads()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "onednn": onednn[1] if onednn else "no",
    }
    governor = file_text(sysfs / "devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {**facts, "governor": governor} if governor else facts


def _cuda_facts(device: str) -> dict[str, str]:
    properties = torch.cuda.get_device_properties(torch.device(device))
    uuid = cuda_uuid(device)
    facts = {
        "device": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": str(properties.multi_processor_count),
        "memory_mib": str(properties.total_memory >> 20),
        "cuda": str(torch.version.cuda or torch.version.hip),
        "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        "cudnn_benchmark": str(torch.backends.cudnn.benchmark).lower(),
        "cudnn_tf32": str(torch.backends.cudnn.allow_tf32).lower(),
        "device_uuid": uuid,
    }
    try:
        nvml = NvmlDevice(uuid)
    except MeterRefused:
        return facts
    with closing(nvml):
        return {**facts, **nvml_facts(nvml)}


#: What NVML tells of a device now; its unit is in its name.
_NVML_FACTS: Final = (
    "power_limit_w", "default_power_limit_w", "sm_clock_mhz", "most_sm_clock_mhz",
    "memory_clock_mhz", "temperature_c",
)  # fmt: skip


def nvml_facts(device: NvmlDevice) -> dict[str, str]:
    """Driver, ECC, power limits, clocks and temperature as NVML gives them now."""
    facts = {"device_uuid": device.uuid}
    # Whatever ails one query, runtime can still be calibrated.
    with suppress(ReadingVoid):
        facts["driver"] = device.driver()
    for name in ("ecc", *_NVML_FACTS):
        with suppress(ReadingVoid):
            value = device.read(name)
            if value is not None:
                facts[name] = f"{value:g}" if name != "ecc" else "on" if value else "off"
    return facts


# -- Ceilings measured in about a second, and what the system tells of caches and vectors.

_CACHES: Final = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS: Final = {"K": 2**10, "M": 2**20, "G": 2**30, "": 1}

#: float32 numbers in one vector, by the instructions that torch says it uses.
_VECTOR_FLOATS: Final = {"AVX512": 16, "AVX2": 8, "DEFAULT": 4}

#: Rows and columns of the product whose rate is the ceiling; MB of the copy, beyond any cache.
_PRODUCT: Final = 1024
_COPY_MB: Final = 256


def measure_hardware(device: str, dtype: str) -> MeasuredHardware:
    """Ceilings of a torch device, by a large matrix product and a large copy; sizes as it tells."""
    ceilings = _ceilings(torch.device(device), getattr(torch, dtype))
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        return MeasuredHardware(
            *ceilings,
            multiprocessors=properties.multi_processor_count,
            l2_mb=properties.L2_cache_size / 1e6,
        )
    caches = {level: round(size / 1e6, 3) for level, size in _cache_bytes(_CACHES).items()}
    return MeasuredHardware(
        *ceilings,
        threads=1,
        vector_floats=_VECTOR_FLOATS.get(torch.backends.cpu.get_cpu_capability(), 4),
        l2_mb=caches.get(2),
        l3_mb=caches.get(3),
    )


def _cache_bytes(folder: Path) -> dict[int, int]:
    """Size of the data cache of each level; empty where the system does not tell."""
    sizes: dict[int, int] = {}
    for index in sorted(folder.glob("index*")):
        size = re.fullmatch(r"(\d+)([KMG]?)", file_text(index / "size"))
        level = file_text(index / "level")
        if size and level.isdigit() and file_text(index / "type") in ("Data", "Unified"):
            sizes[int(level)] = int(size[1]) * _UNITS[size[2]]
    return sizes


def _ceilings(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """GFLOP/s and GB/s."""
    side, megabytes = _PRODUCT, _COPY_MB
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        side, megabytes = 8 * _PRODUCT, min(8 * _COPY_MB, free // 8_000_000)
    left = torch.randn(side, side, device=device).to(dtype)
    count = megabytes * 250_000
    source = torch.zeros(count, device=device)
    target = torch.zeros_like(source)
    with torch.inference_mode():
        product_s = _least_s(lambda: left @ left, device)
        copy_s = _least_s(lambda: target.copy_(source), device)
    return (
        float(f"{2 * side**3 / product_s * 1e-9:.4g}"),
        float(f"{8 * count / copy_s * 1e-9:.4g}"),
    )


def _least_s(call: Callable[[], object], device: torch.device, *, repeats: int = 5) -> float:
    times = []
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    for _ in range(repeats + 1):
        begin = clock()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(clock() - begin)
    return min(times[1:])
