"""An overhead that grows along a table is found, and judged by folds that did not see the row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pytest_neuralpower.calibrate.fit.designs import Design, runtime_makers
from pytest_neuralpower.calibrate.fit.judging import Overhead, growing_overhead, judge_overhead
from pytest_neuralpower.calibrate.fit.rows import Row, linear_layer
from pytest_neuralpower.estimators.features import columns
from pytest_neuralpower.estimators.selection import select

HARDWARE = {"peak_gflops": 1000.0, "bandwidth_gbs": 100.0, "multiprocessors": 8}
COUNT = 240
LINEAR, SQUARE = 0.2, 0.3


def table(noise: float) -> list[Row]:
    """Layers in random order, with an overhead of up to 0.5 ms taken off and kept beside."""
    random = np.random.default_rng(0)
    layers = [
        linear_layer(*(random.integers(8, 64, 3) * 8).tolist(), bias=True) for _ in range(COUNT)
    ]
    values = columns("linear", layers)
    cost = 0.02 + values["flops"] / 0.7e9 + values["bytes_moved"] / 60e6
    cost = cost * random.uniform(1 - noise, 1 + noise, COUNT)
    places = np.arange(COUNT) / COUNT
    return [
        Row(layer, ms, place=u, overhead_ms=LINEAR * u + SQUARE * u**2)
        for layer, ms, u in zip(layers, cost.tolist(), places.tolist(), strict=True)
    ]


def test_the_overhead_is_told_apart_from_the_layers() -> None:
    rows = table(noise=0.05)
    physical = runtime_makers("linear", Design(), HARDWARE)["physical"]()
    found = growing_overhead(
        physical,  # type: ignore[arg-type]
        columns("linear", [row.layer for row in rows]),
        np.array([row.runtime_ms + row.overhead_ms for row in rows]),
        np.array([row.place for row in rows]),
    )
    assert sum(found) == pytest.approx(LINEAR + SQUARE, rel=0.1)


def judged(rows: list[Row]) -> Overhead | None:
    makers = {"physical": runtime_makers("linear", Design(), HARDWARE)["physical"]}
    values = columns("linear", [row.layer for row in rows])
    runtime = np.array([row.runtime_ms for row in rows])
    chosen = select(makers, values, runtime, [row.shape_group for row in rows])
    return judge_overhead(rows, values, chosen, makers["physical"])


def test_what_ignores_the_overhead_errs_more_than_what_adds_it() -> None:
    found = judged(table(noise=0.02))
    assert found is not None
    mape = {name: score.mape for name, score in found.scores.items()}
    assert mape["added"] < 5
    assert mape["removed"] < 8
    assert mape["ignored"] > 2 * mape["added"]
    assert found.rows == COUNT
    for fold in found.removed_ms.folds:
        assert fold == pytest.approx(found.removed_ms.recipe, rel=0.15)


def test_rows_without_a_place_are_not_judged() -> None:
    assert judged([replace(row, place=None) for row in table(noise=0.02)]) is None
