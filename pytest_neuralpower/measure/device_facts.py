"""What is recorded of a device beside its measurements: enough to tell when they hold no more."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pytest_neuralpower import __version__
from pytest_neuralpower.errors import MeterRefused, ReadingVoid
from pytest_neuralpower.measure.nvml_device import NvmlDevice, cuda_uuid
from pytest_neuralpower.measure.sysfs import text

__all__ = ["cpu_facts", "device_facts", "nvml_facts"]


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
