"""What of a GPU's times can be told without one."""

from __future__ import annotations

from pytest_neuralpower.calibrate.measure.timers import caught_up


def test_a_device_that_waits_for_the_host_passes_marks_as_they_come() -> None:
    """Its clock starts 4 µs later, and one launch was slow."""
    queued = [0.010, 0.030, 0.050, 0.090]
    assert caught_up(queued, [0.014, 0.034, 0.055, 0.094]) == [True] * 4


def test_a_device_that_has_more_to_do_falls_behind_and_may_catch_up() -> None:
    queued = [0.010, 0.030, 0.050, 1.500]
    assert caught_up(queued, [0.014, 0.400, 0.900, 1.504]) == [True, False, False, True]


def test_no_marks_are_none() -> None:
    assert caught_up([], []) == []
