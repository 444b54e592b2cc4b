"""Readings in a thread: what goes wrong there reaches the caller."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_neuralpower.calibrate.measure.meters.base import Sampler
from pytest_neuralpower.errors import DeviceLost, ReadingVoid


def sampled(read: Callable[[], float], load: BaseException | None = None) -> None:
    """A load of 20 ms that ends well, or as ``load``, while ``read`` is sampled."""
    with Sampler(read, every_s=0.01):
        time.sleep(0.02)
        if load is not None:
            raise load


def void() -> float:
    raise ReadingVoid("no")


def lost() -> float:
    raise DeviceLost("gone")


def test_keeps_each_reading_with_its_time() -> None:
    begun = time.perf_counter()
    with Sampler(time.perf_counter, every_s=0.01) as sampler:
        time.sleep(0.1)
    times = [sample.at_s for sample in sampler.samples]
    assert 4 <= len(times) <= 12
    assert times == sorted(times)
    assert all(begun <= sample.value <= sample.at_s for sample in sampler.samples)


def test_a_failed_reading_is_raised_though_the_load_ended_well() -> None:
    with pytest.raises(ReadingVoid, match="no"):
        sampled(void)


def test_a_lost_device_explains_why_the_load_failed() -> None:
    failure = RuntimeError("CUDA error: unspecified launch failure")
    with pytest.raises(DeviceLost, match="gone") as caught:
        sampled(lost, failure)
    assert caught.value.__context__ is failure


def test_an_interrupt_is_not_hidden() -> None:
    with pytest.raises(KeyboardInterrupt):
        sampled(void, KeyboardInterrupt())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_meter_that_does_not_return_is_a_lost_device(tmp_path: Path) -> None:
    pipe = tmp_path / "energy_uj"
    os.mkfifo(pipe)  # nobody writes: opening it to read waits for ever
    with (  # leaving looks too
        pytest.raises(DeviceLost, match=r"has not answered for 0\.1 s"),
        Sampler(lambda: float(pipe.read_text()), every_s=0.01, silent_s=0.1),
    ):
        time.sleep(0.15)
    with pipe.open("w") as end:  # lets the thread go
        end.write("0")
