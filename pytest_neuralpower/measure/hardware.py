"""Facts of the device that a fit needs: ceilings, caches, widths."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Final

import torch

__all__ = ["cpu_model", "hardware_facts"]

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
