"""What a family must pass to ship: its baselines, and rows set apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pytest_neuralpower.calibrate.fit.designs import Design, runtime_makers
from pytest_neuralpower.calibrate.fit.judging import Refused, Split, beats, judge_split
from pytest_neuralpower.calibrate.fit.rows import Row, linear_layer
from pytest_neuralpower.estimators.features import columns
from pytest_neuralpower.estimators.selection import Score

HARDWARE = {"peak_gflops": 1000.0, "bandwidth_gbs": 100.0, "multiprocessors": 8}
MAKERS = {
    name: make
    for name, make in runtime_makers("linear", Design(), HARDWARE).items()
    if name in ("physical", "tree")
}


def score(mape: float) -> Score:
    return Score(mape, *[0.0] * 7)


@pytest.mark.parametrize(
    ("mape", "flops", "roofline", "ships"),
    [
        (8.0, 20.0, 12.0, True),
        (13.0, 20.0, 12.0, False),
        (21.0, 20.0, 30.0, False),
        # Streaming layers take what the roofline says: a tie under 1% ships.
        (0.30, 0.30, 0.30, True),
        (0.40, 9.0, 0.30, False),
    ],
)
def test_a_family_ships_when_it_beats_every_baseline(
    mape: float, flops: float, roofline: float, ships: bool
) -> None:
    baselines = {"flops-only": score(flops), "roofline": score(roofline)}
    assert beats(mape, baselines) is ships


def test_a_baseline_that_cannot_be_fitted_is_no_rival() -> None:
    assert beats(50.0, {"flops-only": Refused("too few"), "roofline": score(60.0)})


def rows() -> list[Row]:
    random = np.random.default_rng(0)
    layers = [linear_layer(*(random.integers(8, 64, 3) * 8).tolist()) for _ in range(120)]
    values = columns("linear", layers)
    cost = 0.02 + values["flops"] / 0.7e9 + values["bytes_moved"] / 60e6
    return [Row(layer, ms) for layer, ms in zip(layers, cost.tolist(), strict=True)]


def judge(members: list[Row]) -> Split | None:
    values = columns("linear", [row.layer for row in members])
    return judge_split(members, values, np.array([row.runtime_ms for row in members]), MAKERS)


def test_rows_set_apart_judge_a_fit_that_saw_none_of_them() -> None:
    # The rows set apart took twice as long: only who saw them could predict that.
    members = [
        replace(row, judges=True, runtime_ms=2 * row.runtime_ms) if place < 30 else row
        for place, row in enumerate(rows())
    ]
    found = judge(members)
    assert found is not None
    assert (found.trained, found.judged) == (90, 30)
    for score in found.scores.values():
        assert isinstance(score, Score)
        assert score.mape == pytest.approx(50, abs=5)


def test_rows_set_apart_have_no_say_in_what_is_chosen() -> None:
    plain = [replace(row, judges=place < 30) for place, row in enumerate(rows())]
    other = [replace(row, runtime_ms=row.runtime_ms * 7) if row.judges else row for row in plain]
    first, second = judge(plain), judge(other)
    assert first is not None
    assert second is not None
    assert first.chosen == second.chosen


def test_without_such_rows_there_is_nothing_to_say() -> None:
    assert judge(rows()) is None
