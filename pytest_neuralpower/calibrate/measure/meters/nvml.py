"""One NVIDIA device as NVML shows it: every query, with the driver's errors told apart.

``pynvml`` is the module of ``nvidia-ml-py`` (extra ``calibrate``) and is loaded on first use.
A query that this device or driver does not know gives None; a device that went away raises
:class:`DeviceLost`; any other error makes the reading void.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from pytest_neuralpower.calibrate.measure.meters.base import MeterRefused, ReadingVoid
from pytest_neuralpower.calibrate.measure.meters.counter import CounterMeter, PowerMeter
from pytest_neuralpower.calibrate.measure.meters.probe import (
    Probe,
    check_against_power,
    check_idle,
    check_rises,
    check_under_load,
)
from pytest_neuralpower.errors import DeviceLost

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.measure.meters.base import Meter, Step

__all__ = ["THROTTLES", "NvmlDevice", "cuda_uuid", "open_nvml"]


# NVML_ERROR_*: uninitialized, driver not loaded, irq issue, lost, reset required, not found.
_LOST: Final = frozenset({1, 9, 11, 15, 16, 28})
# NVML_ERROR_*: invalid argument, not supported, no permission, function not found, corrupted
# infoROM (where ECC's state is kept), no data, vGPU without ECC, argument version mismatch,
# deprecated.
_UNKNOWN_HERE: Final = frozenset({2, 3, 4, 13, 14, 21, 22, 25, 26})
# NVML_GPU_VIRTUALIZATION_MODE_*: in a guest, on the host of guests, shared graphics.
_SHARED: Final = frozenset({2, 3, 4})

_FIELD_POWER_INSTANT: Final = 186
_CLOCK_SM: Final = 1
_CLOCK_MEM: Final = 2
_SENSOR_GPU: Final = 0

#: nvmlClocksEventReason* that slow a device down against its own will -> what they are called.
THROTTLES: Final = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
_POWER_CAP: Final = 0x04


def cuda_uuid(device: str) -> str:
    """NVML's UUID of a CUDA device, whatever ``CUDA_VISIBLE_DEVICES`` makes of its index.

    Raises
    ------
    MeterRefused
        torch sees no such device.
    """
    import torch  # noqa: PLC0415 - heavy

    if not torch.cuda.is_available():
        raise MeterRefused(
            f"nvml: torch sees no CUDA device for {device!r}; install a torch that is built for "
            "CUDA, or use --device cpu"
        )
    named = ":" in device
    index = torch.device(device).index if named else torch.cuda.current_device()
    count = torch.cuda.device_count()
    if index >= count:
        raise MeterRefused(f"nvml: {device!r} is not one of cuda:0 to cuda:{count - 1}")
    uuid = str(torch.cuda.get_device_properties(index).uuid)
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


class NvmlDevice:
    """A handle of the device with this UUID; close it when done.

    Raises
    ------
    MeterRefused
        ``pynvml`` or the driver is missing, or no device has this UUID.
    """

    def __init__(self, uuid: str) -> None:
        try:
            import pynvml  # noqa: PLC0415 - optional
        except ImportError:
            raise MeterRefused(
                "nvml: nvidia-ml-py is not installed; "
                "run: pip install 'pytest-neuralpower[calibrate]'"
            ) from None
        self.uuid = uuid
        self._nvml: Any = pynvml
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise MeterRefused(
                f"nvml: no NVIDIA driver answers here ({error}); install it, or in a "
                "container start with --gpus all"
            ) from None
        self._open = True
        self._handle = self._find()

    def _find(self) -> Any:
        try:
            return self._nvml.nvmlDeviceGetHandleByUUID(self.uuid)
        except self._nvml.NVMLError:
            found = self._uuids()
            self.close()
        raise MeterRefused(
            f"nvml: the driver lists no device {self.uuid}, only {', '.join(found) or 'none'}; "
            "a MIG slice has no meter of its own"
        ) from None

    def _uuids(self) -> list[str]:
        try:
            handles = map(
                self._nvml.nvmlDeviceGetHandleByIndex, range(self._nvml.nvmlDeviceGetCount())
            )
            return [self._nvml.nvmlDeviceGetUUID(handle) for handle in handles]
        except self._nvml.NVMLError:
            return []

    def close(self) -> None:
        """Give the driver back; a second time does nothing."""
        if self._open:
            self._open = False
            self._nvml.nvmlShutdown()

    def energy_mj(self) -> float | None:
        """Energy since the driver was loaded, mJ; advances about every 100 ms."""
        return _number(self._ask(self._nvml.nvmlDeviceGetTotalEnergyConsumption))

    def power_w(self) -> float | None:
        """Power at this moment, W (field 186)."""
        fields = self._ask(self._nvml.nvmlDeviceGetFieldValues, [_FIELD_POWER_INSTANT])
        if fields is None or self._absent(fields[0].nvmlReturn):
            return None
        return float(fields[0].value.uiVal) / 1e3

    def average_power_w(self) -> float | None:
        """Power as the driver averages it, W: over 1 s on Ampere and later except GA100."""
        milliwatts = self._ask(self._nvml.nvmlDeviceGetPowerUsage)
        return None if milliwatts is None else milliwatts / 1e3

    def utilisation(self) -> float | None:
        """Share of the last moment (1/6 to 1 s) in which a kernel ran, 0 to 1."""
        rates = self._ask(self._nvml.nvmlDeviceGetUtilizationRates)
        return None if rates is None else rates.gpu / 100

    def sm_clock_mhz(self) -> float | None:
        """Clock of the multiprocessors, MHz."""
        return _number(self._ask(self._nvml.nvmlDeviceGetClockInfo, _CLOCK_SM))

    def memory_clock_mhz(self) -> float | None:
        """Clock of the memory, MHz."""
        return _number(self._ask(self._nvml.nvmlDeviceGetClockInfo, _CLOCK_MEM))

    def most_sm_clock_mhz(self) -> float | None:
        """The highest clock of the multiprocessors, MHz."""
        return _number(self._ask(self._nvml.nvmlDeviceGetMaxClockInfo, _CLOCK_SM))

    def temperature_c(self) -> float | None:
        """Temperature of the chip, degrees Celsius."""
        # The newer call is missing in drivers before 570, the older goes in CUDA 14.
        found = self._ask(self._nvml.nvmlDeviceGetTemperatureV, _SENSOR_GPU)
        if found is None:
            found = self._ask(self._nvml.nvmlDeviceGetTemperature, _SENSOR_GPU)
        return _number(found)

    def throttles(self) -> tuple[str, ...]:
        """What slows the device down now, in words; empty when nothing does or none can say."""
        reasons = self._reasons()
        return tuple(name for bit, name in THROTTLES.items() if reasons & bit)

    def power_capped(self) -> bool:
        """Whether the power limit holds the clock down: normal for a heavy load."""
        return bool(self._reasons() & _POWER_CAP)

    def _reasons(self) -> int:
        found = self._ask(self._nvml.nvmlDeviceGetCurrentClocksEventReasons)
        if found is None:  # drivers before 535
            found = self._ask(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons)
        return int(found or 0)

    def name(self) -> str | None:
        """Such as ``NVIDIA H100 80GB HBM3``."""
        name = self._ask(self._nvml.nvmlDeviceGetName)
        return None if name is None else str(name)

    def driver(self) -> str:
        """Version of the driver."""
        return str(self._nvml.nvmlSystemGetDriverVersion())

    def ecc(self) -> bool | None:
        """Whether the memory corrects errors."""
        modes = self._ask(self._nvml.nvmlDeviceGetEccMode)
        return None if modes is None else bool(modes[0])

    def power_limit_w(self) -> float | None:
        """The limit in force, W."""
        milliwatts = self._ask(self._nvml.nvmlDeviceGetEnforcedPowerLimit)
        return None if milliwatts is None else milliwatts / 1e3

    def default_power_limit_w(self) -> float | None:
        """The limit the board comes with, W."""
        milliwatts = self._ask(self._nvml.nvmlDeviceGetPowerManagementDefaultLimit)
        return None if milliwatts is None else milliwatts / 1e3

    def is_mig(self) -> bool:
        """Whether the device is split: its counters are then the whole board's."""
        modes = self._ask(self._nvml.nvmlDeviceGetMigMode)
        return modes is not None and bool(modes[0])

    def is_shared(self) -> bool:
        """Whether it is a vGPU or the host of some."""
        return self._ask(self._nvml.nvmlDeviceGetVirtualizationMode) in _SHARED

    def _ask(self, query: Callable[..., Any], *arguments: object) -> Any:
        try:
            return query(self._handle, *arguments)
        except self._nvml.NVMLError as error:
            self._absent(error.value)
            return None

    def _absent(self, code: int) -> bool:
        """Whether the code says that the device does not know this; other errors raise."""
        if code == 0:
            return False
        if code in _UNKNOWN_HERE:
            return True
        said = str(self._nvml.NVMLError(code))
        if code in _LOST:
            raise DeviceLost(
                f"nvml: the device {self.uuid} went away ({said}); see `nvidia-smi`, then go on "
                "with --resume"
            )
        raise ReadingVoid(f"nvml: the driver answered {said!r}")


def _number(found: Any) -> float | None:
    return None if found is None else float(found)


# -- NVIDIA: the energy counter read at its edges, else instantaneous power, else average power.

# The counter moves every 100 ms: to see an edge within 2 ms keeps 1 s windows within 0.3%.
_COUNTER_POLL_S: Final = 0.002
_POWER_POLL_S: Final = 0.02
_AVERAGE_LAG_S: Final = 1.0  # what drivers average over on Ampere and later except GA100
_STILL: Final = (
    "an NVIDIA device that lists energy and does not count it (Jetson, vGPU, some drivers) "
    "cannot be metered so; use --meter ina3221 on a Jetson, else --meter none"
)


def open_nvml(uuid: str, *, load: Step, probe: Probe | None = None) -> Meter:
    """The best meter NVML has for the device, proven under ``load``.

    Raises
    ------
    MeterRefused
        No driver or device, MIG or vGPU, somebody else uses the device, nothing moves under
        load, or the counter and the power sensor disagree by more than 20%.
    DeviceLost
        The device went away meanwhile.
    """
    probe = probe or Probe()
    device = NvmlDevice(uuid)
    try:
        return _proven(device, load, probe)
    except BaseException as error:
        device.close()
        if isinstance(error, ReadingVoid):
            raise MeterRefused(f"{error}; {_STILL}") from None
        raise


def _proven(device: NvmlDevice, load: Step, probe: Probe) -> Meter:
    if device.is_mig():
        raise MeterRefused(
            f"nvml: {device.uuid} is split by MIG and counts the whole board's energy; switch "
            "it off (`nvidia-smi -mig 0`), or use --meter none"
        )
    if device.is_shared():
        raise MeterRefused(
            f"nvml: {device.uuid} is a virtual GPU and counts no energy of its own; measure on "
            "the bare device, or use --meter none"
        )
    meter = _best(device, probe)
    idle_w = check_idle(meter, device.utilisation, probe)
    read_w = _power_reader(device)
    if isinstance(meter, CounterMeter) and read_w is not None:
        load_w = check_against_power(meter, load, read_w, probe)
    else:
        load_w = check_under_load(meter, load, probe, advice=_STILL)
    check_rises(meter, idle_w=idle_w, load_w=load_w)
    return meter


def _best(device: NvmlDevice, probe: Probe) -> Meter:
    if device.energy_mj() is not None:
        return CounterMeter(
            name="nvml",
            method="NVML energy counter, read at its edges",
            read_mj=_always(device.energy_mj),
            poll_s=_COUNTER_POLL_S,
            still_s=probe.still_s,
            release=device.close,
        )
    read_w = _power_reader(device)
    if read_w is None:
        raise MeterRefused(
            f"nvml: {device.uuid} gives neither energy nor power; use --meter ina3221 on a "
            "Jetson, else --meter none"
        )
    instant = device.power_w() is not None
    kind = "instantaneous" if instant else "average"
    return PowerMeter(
        name="nvml",
        method=f"NVML {kind} power every 20 ms",
        read_w=read_w,
        poll_s=_POWER_POLL_S,
        lag_s=0.0 if instant else _AVERAGE_LAG_S,
        notes=(f"nvml: no energy counter; {kind} power is polled instead, a lower tier",),
        release=device.close,
    )


def _power_reader(device: NvmlDevice) -> Callable[[], float] | None:
    for read in (device.power_w, device.average_power_w):
        if read() is not None:
            return _always(read)
    return None


def _always(read: Callable[[], float | None]) -> Callable[[], float]:
    """``read``, void when what it gave a moment ago is gone."""

    def checked() -> float:
        value = read()
        if value is None:
            raise ReadingVoid("nvml: the driver stopped answering a query")
        return value

    return checked
