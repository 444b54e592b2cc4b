"""A budget held against one prediction: what is kept, by which end, and which budget applies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_neuralpower.calibrate.fit.rows import linear_layer
from pytest_neuralpower.errors import BudgetError
from pytest_neuralpower.guard.budget import Budget, check, closest_budgets, parse_marker
from pytest_neuralpower.platform.intervals import Interval
from pytest_neuralpower.platform.prediction import UNCOVERED, LayerPrediction, Prediction

#: One call of 8 samples: 4 ms (90% sure: 2 to 16), 200 mJ (100 to 400), so 50 W (32 to 64).
ITEM = LayerPrediction(linear_layer(8, 2, 2), 4.0, 50.0, 200.0, "by hand")
CALL = Prediction(
    (ITEM,), "toy", "0" * 64, batch=8,
    runtime_interval_ms=Interval(2.0, 16.0, 0.9),
    energy_interval_mj=Interval(100.0, 400.0, 0.9),
    power_interval_w=Interval(32.0, 64.0, 0.9),
)  # fmt: skip

#: By quantity and unit of a limit: lower end, point and upper end of a call, and of a sample.
ENDS = [
    ("runtime_budget", {"ms": None}, (2.0, 4.0, 16.0)),
    ("runtime_budget", {"us": None}, (2000.0, 4000.0, 16000.0)),
    ("energy_budget", {"mj": None}, (100.0, 200.0, 400.0)),
    ("power_budget", {"w": None}, (32.0, 50.0, 64.0)),
    ("runtime_budget", {"ms": None, "per": "sample"}, (0.25, 0.5, 2.0)),
    ("energy_budget", {"mj": None, "per": "sample"}, (12.5, 25.0, 50.0)),
    ("energy_budget", {"mj": None, "per": "sample", "samples": 2}, (50.0, 100.0, 200.0)),
]


def budget(marker: str, written: dict[str, Any], limit: float) -> Budget:
    """The marker's budget, with ``limit`` for the None in ``written``."""
    return parse_marker(marker, (), {k: limit if v is None else v for k, v in written.items()})


@pytest.mark.parametrize(("marker", "written", "ends"), ENDS)
@pytest.mark.parametrize(("judge", "end"), [("certain", 0), ("point", 1), ("safe", 2)])
def test_a_value_equal_to_the_limit_is_kept_and_any_more_is_not(marker, written, ends, judge, end):
    limit = ends[end]
    assert check(budget(marker, written, limit), CALL, judge).passed
    assert check(budget(marker, written, limit * 1.001), CALL, judge).passed
    assert not check(budget(marker, written, limit * 0.999), CALL, judge).passed


@pytest.mark.parametrize(("marker", "written", "ends"), ENDS)
def test_it_is_sure_only_where_the_limit_lies_outside_the_interval(marker, written, ends):
    low, point, high = ends
    sure = [
        check(budget(marker, written, limit), CALL).sure
        for limit in (low * 0.999, low, point, high, high * 1.001)
    ]
    assert sure == [True, False, False, False, True]


@pytest.mark.parametrize(("cost", "sure"), [(0.9, True), (1.1, False)])
def test_it_is_not_sure_where_an_operation_without_a_formula_counts(cost, sure):
    # Of 200 mJ, half a percent is 1 mJ.
    unknown = ITEM._replace(energy_mj=cost, flags=(UNCOVERED,))
    call = replace(CALL, layers=(ITEM._replace(energy_mj=200.0 - cost), unknown))
    for limit in (99.0, 401.0):
        assert check(budget("energy_budget", {"mj": None}, limit), call).sure is sure


def test_without_an_interval_nothing_is_said_of_how_sure_it_is():
    verdict = check(budget("energy_budget", {"mj": None}, 200.0), Prediction((ITEM,), "toy", ""))
    assert (verdict.passed, verdict.sure, verdict.interval) == (True, None, None)


def test_samples_are_a_whole_number_from_1():
    written = {"mj": None, "per": "sample"}
    assert check(budget("energy_budget", {**written, "samples": 1}, 1.0), CALL).value == 200.0
    for samples in (0, -1, 2.0, True):
        with pytest.raises(BudgetError, match=r"samples=\S+ must be a whole number from 1"):
            budget("energy_budget", {**written, "samples": samples}, 1.0)


class TestClosestBudgets:
    """A closer budget of one quantity and ``per`` overrides those further out."""

    def test_overrides_one_further_out_whatever_their_order(self):
        near, far = Budget("energy", 1.0, "mj"), Budget("energy", 2.0, "mj", platform="titanx")
        assert closest_budgets([(0, near), (1, far)]) == (near,)
        assert closest_budgets([(1, far), (0, near)]) == (near,)

    def test_at_one_distance_that_for_the_platform_wins(self):
        for_all, own = Budget("energy", 1.0, "mj"), Budget("energy", 2.0, "mj", platform="titanx")
        assert closest_budgets([(1, for_all), (1, own)]) == (own,)
        assert closest_budgets([(1, own), (1, for_all)]) == (own,)

    def test_of_another_quantity_or_per_holds_beside_it(self):
        call, sample = Budget("energy", 9.0, "mj"), Budget("energy", 1.0, "mj", per="sample")
        time = Budget("runtime", 3.0, "ms")
        assert set(closest_budgets([(0, call), (2, sample), (1, time)])) == {call, sample, time}
