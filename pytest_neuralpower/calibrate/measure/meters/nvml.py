"""One NVIDIA device as NVML shows it: every query, with the driver's errors told apart.

``pynvml`` is the module of ``nvidia-ml-py`` (extra ``calibrate``) and is loaded on first use.
A query that this device or driver does not know gives None; a device that went away raises
:class:`DeviceLost`; any other error makes the reading void.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from pytest_neuralpower.calibrate.measure.meters.base import (
    CounterWindow,
    PowerWindow,
    SampledMeter,
    Step,
)
from pytest_neuralpower.calibrate.measure.meters.probe import USUAL_PROBE, Probe
from pytest_neuralpower.errors import DeviceLost, MeterRefused, ReadingVoid

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

# nvmlClocksEventReason* that slow a device down against its own will -> what they are called.
_THROTTLES: Final = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


class _Query(NamedTuple):
    """``nvmlDeviceGet...`` and its arguments, what it is called in older drivers, its answer."""

    function: str
    arguments: tuple[int, ...] = ()
    convert: Callable[[Any], float] = float
    older: str = ""


def _milli(value: Any) -> float:
    return float(value / 1e3)


def _current(modes: Any) -> float:
    """Of a mode now, and after the next reboot."""
    return float(modes[0])


_QUERIES: Final[Mapping[str, _Query]] = {
    "energy_mj": _Query("TotalEnergyConsumption"),
    "average_power_w": _Query("PowerUsage", convert=_milli),
    "utilization": _Query("UtilizationRates", convert=lambda rates: float(rates.gpu / 100)),
    "sm_clock_mhz": _Query("ClockInfo", (_CLOCK_SM,)),
    "most_sm_clock_mhz": _Query("MaxClockInfo", (_CLOCK_SM,)),
    "memory_clock_mhz": _Query("ClockInfo", (_CLOCK_MEM,)),
    # Missing before driver 570; the older one goes in CUDA 14.
    "temperature_c": _Query("TemperatureV", (_SENSOR_GPU,), older="Temperature"),
    # Missing before driver 535.
    "reasons": _Query("CurrentClocksEventReasons", older="CurrentClocksThrottleReasons"),
    "ecc": _Query("EccMode", convert=_current),
    "power_limit_w": _Query("EnforcedPowerLimit", convert=_milli),
    "default_power_limit_w": _Query("PowerManagementDefaultLimit", convert=_milli),
    "mig": _Query("MigMode", convert=_current),
    "virtualization": _Query("VirtualizationMode"),
}


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

    def read(self, name: str) -> float | None:
        """The answer to a query, in the unit that its name ends with; None where there is none.

        ``energy_mj`` since the driver was loaded, which advances about every 100 ms; ``power_w`` at
        this moment, and ``average_power_w`` over 1 s on Ampere and later except GA100;
        ``utilization``, the share of the last moment (1/6 to 1 s) in which a kernel ran;
        ``sm_clock_mhz``, ``most_sm_clock_mhz`` and ``memory_clock_mhz``; ``temperature_c`` of the
        chip; ``power_limit_w`` in force, and ``default_power_limit_w`` of the board; ``ecc`` and
        ``mig``, 1 where they are on; ``virtualization`` and ``reasons`` as NVML numbers them.

        Raises
        ------
        DeviceLost
            The device went away.
        ReadingVoid
            Any other error of the driver.
        """
        if name == "power_w":
            return self._power_w()
        query = _QUERIES[name]
        answer = self._ask(query.function, *query.arguments)
        if answer is None and query.older:
            answer = self._ask(query.older, *query.arguments)
        return None if answer is None else query.convert(answer)

    def _power_w(self) -> float | None:
        """One of NVML's fields, which carry an error of their own."""
        fields = self._ask("FieldValues", [_FIELD_POWER_INSTANT])
        if fields is None or self._absent(fields[0].nvmlReturn):
            return None
        return float(fields[0].value.uiVal) / 1e3

    def throttles(self) -> tuple[str, ...]:
        """What slows the device down now, in words; empty when nothing does or none can say."""
        reasons = int(self.read("reasons") or 0)
        return tuple(name for bit, name in _THROTTLES.items() if reasons & bit)

    def driver(self) -> str:
        """Version of the driver."""
        return str(self._nvml.nvmlSystemGetDriverVersion())

    def reader(self, name: str) -> Callable[[], float]:
        """Reads a value that was there a moment ago; void when it is gone."""

        def read() -> float:
            value = self.read(name)
            if value is None:
                raise ReadingVoid("nvml: the driver stopped answering a query")
            return value

        return read

    def _ask(self, function: str, *arguments: object) -> Any:
        try:
            return getattr(self._nvml, f"nvmlDeviceGet{function}")(self._handle, *arguments)
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


# -- NVIDIA: the energy counter read at its edges, else instantaneous power, else average power.

# The counter moves every 100 ms: to see an edge within 2 ms keeps 1 s windows within 0.3%.
_COUNTER_POLL_S: Final = 0.002
_POWER_POLL_S: Final = 0.02
_AVERAGE_LAG_S: Final = 1.0  # what drivers average over on Ampere and later except GA100
_STILL: Final = (
    "an NVIDIA device that lists energy and does not count it (Jetson, vGPU, some drivers) "
    "cannot be metered so; use --meter ina3221 on a Jetson, else --meter none"
)


def open_nvml(uuid: str, *, load: Step, probe: Probe = USUAL_PROBE) -> SampledMeter:
    """The best meter NVML has for the device, proven under ``load``.

    Raises
    ------
    MeterRefused
        No driver or device, MIG or vGPU, somebody else uses the device, nothing moves under
        load, or the counter and the power sensor disagree by more than 20%.
    DeviceLost
        The device went away meanwhile.
    """
    device = NvmlDevice(uuid)
    try:
        return _proven(device, load, probe)
    except BaseException as error:
        device.close()
        if isinstance(error, ReadingVoid):
            raise MeterRefused(f"{error}; {_STILL}") from None
        raise


def _proven(device: NvmlDevice, load: Step, probe: Probe) -> SampledMeter:
    if device.read("mig"):
        raise MeterRefused(
            f"nvml: {device.uuid} is split by MIG and counts the whole board's energy; switch "
            "it off (`nvidia-smi -mig 0`), or use --meter none"
        )
    if device.read("virtualization") in _SHARED:
        raise MeterRefused(
            f"nvml: {device.uuid} is a virtual GPU and counts no energy of its own; measure on "
            "the bare device, or use --meter none"
        )
    sensors = ("power_w", "average_power_w")
    sensor = next((name for name in sensors if device.read(name) is not None), None)
    counts = device.read("energy_mj") is not None
    meter = _counter(device, probe) if counts else _sensor(device, sensor)
    idle_w = probe.check_idle(meter, lambda: device.read("utilization"))
    if counts and sensor is not None:
        load_w = probe.check_against_power(meter, load, device.reader(sensor))
    else:
        load_w = probe.check_under_load(meter, load, advice=_STILL)
    probe.check_rises(meter, idle_w=idle_w, load_w=load_w)
    return meter


def _counter(device: NvmlDevice, probe: Probe) -> SampledMeter:
    return SampledMeter(
        name="nvml",
        method="NVML energy counter, read at its edges",
        window=CounterWindow,
        read=device.reader("energy_mj"),
        poll_s=_COUNTER_POLL_S,
        still_s=probe.still_s,
        alone=True,
        release=device.close,
    )


def _sensor(device: NvmlDevice, name: str | None) -> SampledMeter:
    if name is None:
        raise MeterRefused(
            f"nvml: {device.uuid} gives neither energy nor power; use --meter ina3221 on a "
            "Jetson, else --meter none"
        )
    kind = "instantaneous" if name == "power_w" else "average"
    return SampledMeter(
        name="nvml",
        method=f"NVML {kind} power every 20 ms",
        window=PowerWindow,
        read=device.reader(name),
        poll_s=_POWER_POLL_S,
        lag_s=0.0 if name == "power_w" else _AVERAGE_LAG_S,
        alone=True,
        notes=(f"nvml: no energy counter; {kind} power is polled instead, a lower tier",),
        release=device.close,
    )
