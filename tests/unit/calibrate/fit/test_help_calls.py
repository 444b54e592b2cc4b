"""Cells of NAS-Bench-201 as whole calls: the networks they name, and what their host takes."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from pytest_neuralpower.calibrate.fit.calls import fit_calls, read_all_calls
from pytest_neuralpower.calibrate.fit.cells import OPERATIONS, network_layers
from pytest_neuralpower.calibrate.fit.datasheet import datasheet_platform
from pytest_neuralpower.calibrate.fit.prior import read_boards
from pytest_neuralpower.calibrate.fit.recipe import Recipe, read_recipe
from pytest_neuralpower.model_source import load_model
from pytest_neuralpower.platform.catalog import load_fitted
from pytest_neuralpower.tracing import trace

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Layer
    from pytest_neuralpower.platform.price import FittedPlatform

REPOSITORY = Path(__file__).parents[4]
MODEL = f"{REPOSITORY}/calibration/nasbench_models.py:create"

#: ms that the host of these tests takes for an operation.
TRUTH = {"conv": 0.030, "norm": 0.040, "activation": 0.015, "elementwise": 0.012, "pool": 0.02}


def cell(names: list[str]) -> str:
    """The string of six edges, in the order of the nodes that they lead to."""
    edges = [f"{name}~{node}" for name, node in zip(names, (0, 0, 1, 0, 1, 2), strict=True)]
    return "+".join(f"|{'|'.join(some)}|" for some in (edges[:1], edges[1:3], edges[3:]))


def traced(name: str, batch: int) -> tuple[Layer, ...]:
    with torch.device("meta"):
        return trace(load_model(MODEL, {"cell": name}).eval(), torch.empty(batch, 3, 32, 32)).layers


def test_a_network_runs_the_layers_of_its_cell() -> None:
    names = ["nor_conv_3x3", "none", "skip_connect", "avg_pool_3x3", "nor_conv_1x1", "none"]
    layers = traced(cell(names), 32)
    operations = [OPERATIONS.index(name) for name in names]

    def costs(some: tuple[Layer, ...] | list[Layer]) -> Counter[object]:
        return Counter((each.kind, each.op, each.cost) for each in some)

    assert costs(layers) == costs(list(network_layers(operations, 32)))


@pytest.fixture
def table(tmp_path: Path) -> Recipe:
    """A recipe and its table of 100 cells, on a host of which the truth is known."""
    random = np.random.default_rng(4)
    with (tmp_path / "cells.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["architecture", "device", "batch", "latency_ms"])
        for number in range(100):
            name = cell([OPERATIONS[place] for place in random.integers(0, 5, 6)])
            for batch in (1, 2048):
                layers = traced(name, batch)
                device = datasheet_platform("titan-rtx").predict(layers).device_ms or 0.0
                host = sum(TRUTH.get(layer.kind, 0.025) for layer in layers)
                out.writerow([name, "mine", batch, max(device, host) * random.normal(1, 0.01)])
            out.writerow([name, "another", 1, number + 1])
    (tmp_path / "recipe.yaml").write_text(
        f"name: mine\ndatasheet: titan-rtx\nmode: eager\nhost: {{layer_ms: 0.038}}\n"
        f"calls:\n  - {{reader: help, path: cells.csv, model: '{MODEL}', every: 2, "
        "select: {device: mine}}\n"
    )
    return read_recipe(tmp_path)


def test_calls_that_wait_tell_what_kinds_of_layers_take_the_host(table: Recipe) -> None:
    calls, recipe = read_all_calls(table, table.folder, lambda _: None)
    assert recipe.calls[0].rows == len(calls) == 100  # every second cell of two batches
    platform = datasheet_platform("titan-rtx")
    found = fit_calls(platform, calls, one_kind=True)
    assert found.host is not None
    taken = {kind: times * found.host.layer_ms for kind, times in found.host.kinds.items()}
    assert taken["elementwise"] == pytest.approx(TRUTH["elementwise"], rel=0.1)
    # Cells run the three together: their sum is known, and each is pulled to the usual.
    block = ("conv", "norm", "activation")
    assert sum(taken[kind] for kind in block) == pytest.approx(
        sum(TRUTH[kind] for kind in block), rel=0.05
    )
    accuracy = found.accuracy["calls"]
    assert accuracy["waiting"] == 50
    assert accuracy["host"]["held_out"]["mape"] < 3 > accuracy["held_out"]["mape"]
    assert accuracy["parts"]["batch 1"]["spearman"] > 0.95
    assert fit_calls(replace(platform, host=None), calls, one_kind=True).host is None


@pytest.fixture(params=["titanrtx", "xeon-gold-6226"])
def shipped(request: pytest.FixtureRequest) -> FittedPlatform:
    return load_fitted(request.param)


def test_cells_enter_no_prior(shipped: FittedPlatform) -> None:
    recipe = read_recipe(REPOSITORY / "calibration" / shipped.name)
    assert not recipe.sources
    boards = read_boards(REPOSITORY / "calibration", None)
    assert [board.tables for board in boards if board.device == shipped.device] == [()]
    assert all(shipped.device not in each.prior.devices for each in shipped.inferred.values())
