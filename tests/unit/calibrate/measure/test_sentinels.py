"""Drift and repeatability of rows that were measured twice."""

from __future__ import annotations

import pytest

from pytest_neuralpower.calibrate.fit.rows import MeasuredRow, drift, repeatability, streaming_layer

LAYER = streaming_layer("activation", "relu", [(1, 8)], (1, 8))


def rows(*times, whole=None, network="n001", calls=1):
    found = [
        MeasuredRow(f"{network}/1", network, LAYER, time, index=index, calls=calls)
        for index, time in enumerate(times)
    ]
    if whole is not None:
        found.append(MeasuredRow(f"{network}/1", network, None, whole))
    return found


class TestDrift:
    def test_is_the_change_of_the_sum(self):
        assert drift(rows(1.0, 3.0), rows(1.0, 3.4)) == pytest.approx(0.1)
        assert drift(rows(2.0), rows(1.0)) == pytest.approx(-0.5)

    def test_counts_equal_layers_as_often_as_they_run(self):
        before = rows(1.0, calls=3) + rows(1.0, network="n002")
        after = rows(2.0, calls=3) + rows(1.0, network="n002")
        assert drift(before, after) == pytest.approx(0.75)

    def test_leaves_the_whole_and_lone_layers_out(self):
        assert drift(rows(1.0, whole=1.0), rows(1.0, 9.0, whole=7.0)) == 0.0

    def test_of_nothing_shared_is_none(self):
        assert drift(rows(1.0), rows(1.0, network="n002")) == 0.0


class TestRepeatability:
    def test_tells_median_and_tail(self):
        before = rows(*[1.0] * 20, whole=20.0)
        after = rows(*[1.02] * 18, 1.5, 1.5, whole=21.0)
        found = repeatability(before, after)
        assert found.median_percent == pytest.approx(2.0)
        assert found.p95_percent == pytest.approx(50.0)
        assert found.networks_percent == pytest.approx(5.0)
        assert found.rows == 20

    def test_leaves_layers_out_that_are_all_dispatch(self):
        found = repeatability(rows(0.01, 1.0), rows(0.05, 1.01))
        assert (found.rows, found.median_percent) == (1, pytest.approx(1.0))

    def test_takes_them_where_there_are_no_others(self):
        assert repeatability(rows(0.01), rows(0.02)).median_percent == pytest.approx(100.0)

    def test_slower_and_faster_count_alike(self):
        assert repeatability(rows(1.0), rows(0.9)).median_percent == pytest.approx(10.0)

    def test_of_nothing_shared_is_none(self):
        assert repeatability(rows(1.0), rows(1.0, network="n002")) is None
        assert repeatability(rows(whole=1.0), rows(whole=1.0)) is None
