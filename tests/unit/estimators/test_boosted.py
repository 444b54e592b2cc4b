"""The boosted residual: it learns what the base leaves, and lets go where there were no rows."""

from __future__ import annotations

import json
import subprocess
import sys

import msgspec
import numpy as np
import pytest

from pytest_neuralpower.calibrate.fit.readers import attention_layer
from pytest_neuralpower.calibrate.fit.rows import linear_layer
from pytest_neuralpower.errors import FitError
from pytest_neuralpower.estimators import AnyEstimator, Boosted, Physical, Tree, Utilization
from pytest_neuralpower.estimators.boosted import (
    UNIT,
    BoostedTrees,
    Boosting,
    evaluate_input,
)
from pytest_neuralpower.estimators.features import FloatArray, columns
from pytest_neuralpower.estimators.terms import Regime

INPUTS = ("m", "n", "k", "align(n, 64)", "fill(m, 64)")
BASE = Physical([Regime("all", ("launch", "flops"))], peak_gflops=1000.0, bandwidth_gbs=100.0)


def some_columns(count: int = 400, seed: int = 0) -> dict[str, FloatArray]:
    sizes = np.random.default_rng(seed).integers(16, 600, (count, 3))
    return columns("linear", [linear_layer(*map(int, each)) for each in sizes])


def law(values: dict[str, FloatArray]) -> FloatArray:
    """What the base cannot know: an odd number of columns costs half as much again."""
    return (0.1 + values["flops"] / 1e8) * np.where(values["n"] % 2 == 0, 1.0, 1.5)


@pytest.fixture(scope="module")
def boosted() -> Boosted:
    values = some_columns()
    return Boosted(BASE, INPUTS, ("m", "n", "k")).fit(values, law(values))


def test_learns_what_the_base_leaves(boosted: Boosted) -> None:
    values = some_columns(seed=1)
    off = np.abs(boosted.predict(values) / law(values) - 1)
    plain = np.abs(boosted.base.predict(values) / law(values) - 1)
    assert plain.mean() > 0.1
    assert off.mean() < 0.03
    assert 0.1 < boosted.spread_ < 0.3


def test_fades_smoothly_to_the_base_outside_the_calibrated_ranges(boosted: Boosted) -> None:
    one = {name: each[:1] for name, each in some_columns().items()}
    high = boosted.calibrated_["m"][1]
    residual = []
    for doublings in (0.0, 0.5, 1.0, 2.0, 5.0):
        far = {**one, "m": np.array([high * 2**doublings])}
        residual.append(float(np.log(boosted.predict(far) / boosted.base.predict(far))[0]))
    inside = residual[0]
    assert abs(inside) > 0.05
    assert boosted.fade({**one, "m": np.array([high])}).tolist() == [1.0]
    assert boosted.fade({**one, "m": np.array([2 * high])}) == pytest.approx([0.5])
    assert boosted.fade({**one, "m": np.array([4 * high])}) == pytest.approx([1 / 16])
    low = boosted.calibrated_["m"][0]
    assert boosted.fade({**one, "m": np.array([low / 2])}) == pytest.approx([0.5])
    assert residual[-1] == pytest.approx(0.0, abs=1e-6)
    assert sorted(map(abs, residual), reverse=True) == [abs(each) for each in residual]


def test_noise_gets_no_tree() -> None:
    values = some_columns()
    target = (0.1 + values["flops"] / 1e8) * np.random.default_rng(2).uniform(0.7, 1.3, 400)
    found = Boosted(BASE, INPUTS, ("m",)).fit(values, target)
    assert len(found.trees_) == 0
    assert np.array_equal(found.predict(values), found.base.predict(values))


def test_trees_are_as_deep_as_asked() -> None:
    values = some_columns()
    found = Boosted(BASE, INPUTS, ("m",), trees=5, least_rows=8, depth=6).fit(values, law(values))
    assert (found.trees_.depth, len(found.trees_)) == (6, 5)


def test_few_rows_are_refused() -> None:
    values = some_columns(60)
    with pytest.raises(FitError, match="60 rows, 80 are needed"):
        Boosted(BASE, INPUTS, ("m",)).fit(values, law(values))


def test_starts_from_physical_or_utilization_only() -> None:
    stored = Boosted(Tree(("m",), ("launch",)), INPUTS, ("m",)).to_json()  # type: ignore[arg-type]
    with pytest.raises(msgspec.ValidationError, match="Invalid value 'tree'"):
        msgspec.convert(stored, AnyEstimator)


def test_a_row_is_predicted_alike_alone_and_among_others(boosted: Boosted) -> None:
    values = some_columns(300, seed=3)
    together = boosted.predict(values)
    for row in (0, 127, 128, 299):
        alone = boosted.predict({name: each[row : row + 1] for name, each in values.items()})
        assert alone[0] == together[row]


def test_power_stays_within_the_board_s_limit() -> None:
    values = some_columns()
    values = {**values, "runtime_ms": law(values)}
    share = values["flops"] / values["runtime_ms"] / 1e9
    power = (20 + 600 * share) * np.where(values["n"] % 2 == 0, 1.0, 1.5)
    free, capped = (
        Boosted(
            Utilization(peak_gflops=1000.0, bandwidth_gbs=100.0, limit_w=limit),
            INPUTS,
            ("m", "n", "k"),
        ).fit(values, power)
        for limit in (None, 80.0)
    )
    assert free.predict(values).max() > 85
    assert capped.predict(values).max() == 80.0


def test_the_trees_answer_as_scikit_learn_s_do() -> None:
    random = np.random.default_rng(0)
    values = random.uniform(0, 1, (5, 500))
    target = np.sin(7 * values[0]) + values[1] * values[2]
    model = Boosting(trees=60, depth=4, least_rows=8).fit(values, target)
    constant, trees = model.trees(60)
    unseen = random.uniform(0, 1, (5, 400))
    expected = model.model.predict(unseen.T)
    off = np.abs(constant + trees.predict(unseen) - expected)
    # Leaves and thresholds are stored in a few digits: a row on a threshold may change sides.
    assert np.median(off) < 60 * UNIT
    assert (off < 60 * UNIT).mean() > 0.98


def test_a_platform_s_worth_of_trees_is_small_and_one_line_each(boosted: Boosted) -> None:
    lines = boosted.to_json()["residual"]
    assert all(isinstance(line, str) and "\n" not in line for line in lines)
    assert len(json.dumps(boosted.to_json(), indent=1)) < 40_000


class TestStoredTrees:
    LINE = "0:1.5 1:2.5 * = 1 2 3 3"

    def test_are_read_back_line_by_line(self) -> None:
        trees = BoostedTrees.of([self.LINE], 2, 2)
        assert trees.lines() == [self.LINE]
        values = np.array([[1.0, 1.0, 2.0], [2.0, 3.0, 9.0]])
        assert trees.predict(values) == pytest.approx([1 * UNIT, 2 * UNIT, 3 * UNIT])
        assert trees.used.tolist() == [[True], [True], [False]]

    def test_none_are_a_residual_of_nothing(self) -> None:
        assert BoostedTrees.of([], 4, 1).predict(np.ones((3, 5))).tolist() == [0.0] * 5
        assert BoostedTrees.of([], 4, 1).lines() == []

    @pytest.mark.parametrize(
        ("line", "depth", "says"),
        [
            ("0:1.5 = 1 2", 2, "has not 3 nodes and 4 leaves"),
            ("2:1.5 1:2.5 * = 1 2 3 3", 2, "input beyond the 2 there are"),
            ("0:nan 1:2.5 * = 1 2 3 3", 2, "not finite"),
            ("0:1.5 1:2.5 * = 1 2 3 inf", 2, "not finite"),
            ("0:1.5 1:2.5 * = 1 2 3 x", 2, "could not convert"),
            (LINE, 9, "depth 9; from 1 to 6"),
        ],
    )
    def test_that_are_broken_are_refused(self, line: str, depth: int, says: str) -> None:
        with pytest.raises(ValueError, match=says):
            BoostedTrees.of([line], depth, 2)


class TestInputs:
    values = columns("linear", [linear_layer(96, 40, 129), linear_layer(128, 7, 64)])

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("m", [96, 128]),
            ("m/n", [96 / 129, 2]),
            ("fill(n, 128)", [129 / 256, 0.5]),
            ("align(k, 64)", [8, 1]),
            ("align(m, 32)", [32, 32]),
            ("wave_fill(64x64, 4)", [6 / 8, 2 / 4]),  # 2 x 3 tiles, then 2 x 1
        ],
    )
    def test_are_what_they_say(self, name: str, expected: list[float]) -> None:
        assert evaluate_input(name, self.values) == pytest.approx(expected)

    def test_blocks_of_queries_fill_waves_of_multiprocessors(self) -> None:
        attention = columns("attention", [attention_layer((2, 3, 300, 64), 3)])
        # 6 heads of 3 blocks of 128 queries in 2 waves of 12.
        assert evaluate_input("query_fill(128, 12)", attention) == pytest.approx([18 / 24])

    def test_that_do_not_exist_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"unknown input 'speed\(n\)'"):
            evaluate_input("speed(n)", self.values)


def test_predicting_loads_neither_scikit_learn_nor_scipy(boosted: Boosted) -> None:
    values = some_columns(100)
    tree = Tree(("m", "n"), ("launch", "flops"), depth=2, least_rows=10).fit(values, law(values))
    code = f"""
import json, sys
import msgspec
from pytest_neuralpower.estimators import AnyEstimator
from pytest_neuralpower.calibrate.fit.rows import linear_layer
from pytest_neuralpower.estimators.features import columns
values = columns("linear", [linear_layer(64, 128, 256)] * 3)
for text in {[json.dumps(boosted.to_json()), json.dumps(tree.to_json())]!r}:
    assert (msgspec.json.decode(text, type=AnyEstimator).predict(values) > 0).all()
print([name for name in sys.modules if name.split(".")[0] in ("sklearn", "scipy", "threadpoolctl")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
