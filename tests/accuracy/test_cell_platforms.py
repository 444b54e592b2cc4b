"""What ships from NAS-Bench-201's cells ranks cells that were never fitted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pytest_neuralpower.calibrate.fit.cells import network_layers, read_cells
from pytest_neuralpower.calibrate.fit.readers import data_root
from pytest_neuralpower.calibrate.fit.recipe import read_recipe
from pytest_neuralpower.errors import ProfileError
from pytest_neuralpower.platform.catalog import load_fitted

REPOSITORY = Path(__file__).parents[2]

#: One cell of so many is looked at.
EVERY = 40

CASES = [
    ("titanrtx", "titan_rtx", 256, 0.99, 1),
    ("titanrtx", "titan_rtx", 32, 0.99, 3),
    (
        "titanrtx",
        "titan_rtx",
        1,
        0.975,
        4,
    ),  # some hundred rows in a row are a sixth slower than the rest
    ("xeon-gold-6226", "gold_6226", 1, 0.98, 4),
]


@pytest.mark.parametrize(("name", "device", "batch", "rank", "error"), CASES)
def test_cells_that_no_fit_has_seen_are_ranked(
    name: str, device: str, batch: int, rank: float, error: float
) -> None:
    try:
        cells = read_cells(data_root(REPOSITORY), device, batch)
    except ProfileError as problem:
        pytest.skip(str(problem))
    (source,) = read_recipe(REPOSITORY / "calibration" / name).calls
    unseen = list(range(7, len(cells.runtime_ms), EVERY))
    assert all(at % int(source.options["every"]) for at in unseen)
    platform = load_fitted(name)
    found = [
        platform.predict(network_layers(cells.operations[at].tolist(), batch)) for at in unseen
    ]
    predicted = np.array([each.runtime_ms for each in found])
    measured = cells.runtime_ms[unseen]
    assert np.mean(np.abs(predicted / measured - 1)) * 100 < error
    ranks = np.argsort(np.argsort([predicted, measured]))
    assert np.corrcoef(ranks)[0, 1] >= rank
    intervals = [each.runtime_interval_ms for each in found]
    assert all(
        each is not None and each.low < value < each.high
        for each, value in zip(intervals, measured.tolist(), strict=True)
    )
