"""Preheating ends when the temperature holds still."""

import time
from collections.abc import Callable
from typing import Any

from stub_gpu import FIRST, behave, kernel

from pytest_neuralpower.calibrate.measure.conditions import NvmlWatch
from pytest_neuralpower.calibrate.measure.device import Preheated, preheat
from pytest_neuralpower.calibrate.measure.meters.nvml import NvmlDevice


def heated(warm_s: float, most_s: float) -> Preheated:
    """Beside the stub: a device that warms by a degree every 10 ms for ``warm_s``."""
    watch, begun = NvmlWatch(NvmlDevice(FIRST)), time.perf_counter()

    def step() -> None:
        behave(celsius=40 + int(min(time.perf_counter() - begun, warm_s) * 100))
        kernel()

    try:
        return preheat(step, watch.temperature_c, least_s=0.05, most_s=most_s, over_s=0.1)
    finally:
        watch.close()


def test_runs_until_the_temperature_holds(beside_gpu: Callable[..., Any]) -> None:
    found = beside_gpu(heated, 0.2, 5.0)
    assert found.steady
    assert found.temperature_c == 60.0
    assert 0.3 <= found.seconds < 2.0


def test_gives_up_and_says_so(beside_gpu: Callable[..., Any]) -> None:
    found = beside_gpu(heated, 9.0, 0.3)
    assert not found.steady
    assert 0.3 <= found.seconds < 1.0


def test_without_a_thermometer_runs_the_least_time() -> None:
    found = preheat(lambda: time.sleep(0.005), lambda: None, least_s=0.05, most_s=5.0, over_s=0.01)
    assert 0.05 <= found.seconds < 1.0
    assert (found.temperature_c, found.steady) == (None, False)
