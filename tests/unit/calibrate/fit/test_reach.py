"""What judges prices: small cells, pairs of rows, stacks, siblings, and the sweep."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace as replace_fields

from pytest_neuralpower.calibrate.fit.cells import (
    OPERATIONS,
    Cells,
    network_layers,
    price_cells,
    read_cells,
    sharpened,
)
from pytest_neuralpower.calibrate.fit.datasheet import datasheet_platform
from pytest_neuralpower.calibrate.fit.devices import find_device
from pytest_neuralpower.calibrate.fit.prior import stack_deviation
from pytest_neuralpower.calibrate.fit.reach import (
    _pairs_of,
    judge_reach,
    judge_sweeps,
)
from pytest_neuralpower.calibrate.fit.readers import scaled
from pytest_neuralpower.calibrate.fit.rows import Row, conv_layer, linear_layer, streaming_layer
from pytest_neuralpower.errors import ProfileError
from pytest_neuralpower.report.accuracy import Figure, reach_text

BATCH = 32


@pytest.fixture(scope="module")
def platform():
    """A Titan RTX by its datasheet and the prior that ships; its host is not waited for."""
    return replace_fields(datasheet_platform("titan-rtx"), host=None)


@pytest.fixture(scope="module")
def cells():
    """Every network whose first three edges are skipped."""
    rest = np.stack(np.meshgrid(*[np.arange(5)] * 3), axis=-1).reshape(-1, 3)
    operations = np.column_stack([np.ones((len(rest), 3), dtype=int), rest])
    return Cells(operations, np.ones(len(rest)))


class TestCells:
    def test_a_network_costs_what_its_layers_cost(self, platform, cells) -> None:
        groups, total = price_cells(platform, cells, BATCH)
        for place in (0, 37, 124):
            layers = network_layers(cells.operations[place].tolist(), BATCH)
            assert total[place] == pytest.approx(platform.predict(layers).runtime_ms)
        assert set(groups) >= {"conv 3x3", "conv 1x1", "norm", "pool", "activation", "elementwise"}

    def test_operations_are_ordered_as_their_work(self, platform, cells) -> None:
        _, total = price_cells(platform, cells, BATCH)
        ends = {}
        for place, name in enumerate(OPERATIONS):
            alone = (cells.operations[:, 3:] == [1, 1, place]).all(axis=1)
            ends[name] = total[np.flatnonzero(alone)[0]]
        order = ("skip_connect", "none", "avg_pool_3x3", "nor_conv_1x1", "nor_conv_3x3")
        assert sorted(ends, key=ends.__getitem__) == list(order)

    def test_convolutions_have_the_sizes_of_the_stages(self) -> None:
        layers = network_layers([3, 1, 1, 1, 1, 1], BATCH)
        shapes = [each.outputs[0].shape[1:] for each in layers if each.kind == "conv"]
        for shape in ((16, 32, 32), (32, 16, 16), (64, 8, 8)):
            assert shapes.count(shape) >= 5

    def test_three_networks_tell_a_factor_of_each_group(self, platform, cells) -> None:
        groups, total = price_cells(platform, cells, BATCH)
        true = groups["pool"] * 0.5 + (total - groups["pool"])
        deviations = dict.fromkeys(groups, 0.4)
        chosen = np.argsort(groups["pool"])[[0, len(true) // 2, -1]].tolist()
        found = sharpened(groups, {place: float(true[place]) for place in chosen}, deviations)
        assert np.abs(found / true - 1).mean() < 0.5 * np.abs(total / true - 1).mean()

    def test_the_table_is_read_by_device_and_batch(self, tmp_path: Path) -> None:
        cell = "|none~0|+|skip_connect~0|nor_conv_3x3~1|+|none~0|none~1|avg_pool_3x3~2|"
        lines = ["architecture,device,batch,latency_ms", f"{cell},a,1,2.5", f"{cell},b,1,9.0"]
        (tmp_path / "help").mkdir()
        path = tmp_path / "help" / "nasbench201_latency_ms.csv.gz"
        path.write_bytes(gzip.compress("\n".join(lines).encode()))
        found = read_cells(tmp_path, "a", 1)
        assert found.operations.tolist() == [[0, 1, 3, 0, 0, 4]]
        assert found.runtime_ms.tolist() == [2.5]


def test_a_sweep_of_priors_finds_nothing_impossible(platform) -> None:
    told: list[str] = []
    (figure,) = judge_sweeps([platform], 640, told.append)
    assert figure.figure == "0 / 0 / 0"
    assert figure.met
    assert told == ["640 random layers on titan-rtx"]


class TestPairs:
    def rows(self, *shapes: tuple[int, int, int]) -> list[Row]:
        return [Row(linear_layer(*shape), float(shape[0])) for shape in shapes]

    def test_twice_the_batch(self) -> None:
        found = _pairs_of(self.rows((8, 64, 64), (16, 64, 64), (24, 64, 64)), batch=True)
        (pair,) = found
        assert [each.inputs[0].shape[0] for each in (*pair[0], *pair[1])] == [8, 16]
        assert pair[2] == 2.0

    def test_another_width_and_nothing_else(self) -> None:
        rows = self.rows((8, 64, 64), (8, 64, 128), (8, 128, 256), (16, 64, 64))
        found = _pairs_of(rows, batch=False)
        widths = sorted(tuple(each[0].outputs[0].shape[-1] for each in p[:2]) for p in found)
        assert widths == [(64, 128)]

    def test_maps_of_another_size_are_no_pair(self) -> None:
        window = {"cout": 8, "kernel": (3, 3), "stride": (1, 1), "padding": (1, 1)}
        rows = [Row(conv_layer((n, 8, s, s), **window), 1.0) for n, s in ((4, 16), (8, 32))]
        assert _pairs_of(rows, batch=True) == []


class TestStacks:
    def test_one_stack_tells_nothing(self) -> None:
        assert stack_deviation({"a": np.array([0.1, 0.2])}) is None

    def test_two_stacks_differ_by_their_medians(self) -> None:
        errors = {"a": np.array([0.0, 0.1, 9.0]), "b": np.array([0.4, 0.4])}
        assert stack_deviation(errors) == pytest.approx(0.3)

    def test_a_sibling_is_scaled_by_what_both_can_do(self) -> None:
        board = find_device("v100").hardware("float32")
        faster = {**board, "peak_gflops": 2 * board["peak_gflops"]}
        product = Row(linear_layer(4096, 4096, 4096), 1.0)
        stream = Row(streaming_layer("activation", "relu", [(2**24,)], (2**24,)), 1.0)
        found = scaled([product, stream], faster, board)
        assert found[0].runtime_ms == pytest.approx(2.0, rel=0.01)
        assert found[1] == replace(stream, runtime_ms=pytest.approx(1.0))


def test_the_table_says_what_is_met() -> None:
    figures = [Figure("a", "1%", "2%", True), Figure("b", "3%", "2%", False), Figure("c", "4%")]
    text = reach_text(figures)
    rows = [line.split() for line in text.splitlines()]
    assert ["a", "1%", "2%", "yes"] in rows
    assert ["b", "3%", "2%", "no"] in rows
    assert "1 of 2 met" in text
    assert "rows that judge chose" in text
    assert max(map(len, text.splitlines())) <= 80


def test_prices_are_judged_in_a_checkout(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="run it in a checkout"):
        next(judge_reach([], calibration=tmp_path, data_root=tmp_path))
