"""NVIDIA: the energy counter read at its edges, else instantaneous power, else average power."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pytest_neuralpower.measure.meters.base import Meter, MeterRefused, ReadingVoid, Step
from pytest_neuralpower.measure.meters.counter import CounterMeter
from pytest_neuralpower.measure.meters.power import PowerMeter
from pytest_neuralpower.measure.meters.probe import (
    Probe,
    check_against_power,
    check_idle,
    check_rises,
    check_under_load,
)
from pytest_neuralpower.measure.nvml_device import NvmlDevice

__all__ = ["open_nvml"]

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
