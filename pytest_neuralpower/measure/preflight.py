"""Before anything is measured: the device, its facts and ceilings, and a meter that is proven."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_neuralpower.errors import MeterRefused, OptionError
from pytest_neuralpower.measure.bench import Bench
from pytest_neuralpower.measure.conditions import watch_device
from pytest_neuralpower.measure.device_facts import device_facts
from pytest_neuralpower.measure.hardware import hardware_facts
from pytest_neuralpower.measure.meters.choose import choose_meter
from pytest_neuralpower.measure.nvml_device import NvmlDevice, cuda_uuid
from pytest_neuralpower.measure.preheat import preheat
from pytest_neuralpower.measure.profile_writer import Circumstances

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_neuralpower.measure.conditions import Watch
    from pytest_neuralpower.measure.meters.base import Meter
    from pytest_neuralpower.measure.trial import MeasuredRow

__all__ = ["Place", "open_place", "resolve_device"]

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
        As :func:`~pytest_neuralpower.measure.run_trial.run_trial` takes them.
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
