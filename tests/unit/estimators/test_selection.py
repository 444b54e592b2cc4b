"""Grouped cross-validation: no shape on both sides, every candidate's score kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_neuralpower.errors import FitError
from pytest_neuralpower.estimators import Estimator
from pytest_neuralpower.estimators.selection import (
    MANY_ROWS,
    Score,
    grouped_folds,
    held_out,
    select,
)

if TYPE_CHECKING:
    from pytest_neuralpower.estimators.features import Columns, FloatArray


class Rate(Estimator, dict=True):
    """``target = rate x column``: right when the column is the one that matters."""

    name: ClassVar[str] = "rate"

    column: str
    rate_: float = 0.0

    def _fit(self, columns: Columns, target: FloatArray) -> None:
        self.rate_ = float(np.mean(target / columns[self.column]))

    def predict(self, columns: Columns) -> FloatArray:
        return np.asarray(self.rate_ * columns[self.column])


@given(st.lists(st.integers(0, 12), min_size=3, max_size=60).filter(lambda g: len(set(g)) > 2))
def test_a_group_is_never_on_both_sides(groups: list[int]) -> None:
    fold = grouped_folds(groups, 5)
    for group in set(groups):
        assert len({fold[row] for row, each in enumerate(groups) if each == group}) == 1
    assert set(fold.tolist()) == set(range(min(5, len(set(groups)))))


def test_a_memoriser_of_shapes_is_found_out() -> None:
    class Memory(Rate):
        def _fit(self, columns: Columns, target: FloatArray) -> None:
            self.seen = dict(zip(columns["shape"].tolist(), target.tolist(), strict=True))

        def predict(self, columns: Columns) -> FloatArray:
            # Never seen: a hundred times too much, and a little more so as not to be constant.
            return np.array(
                [self.seen.get(shape, 1e4 + shape) for shape in columns["shape"].tolist()]
            )

    shape = np.repeat(np.arange(10.0), 4)
    target = 1.0 + shape
    columns = {"shape": shape, "flops": target}
    assert np.array_equal(Memory("shape").fit(columns, target).predict(columns), target)
    fold = grouped_folds(shape.tolist(), 5)
    assert (held_out(lambda: Memory("shape"), columns, target, fold) > 100 * target).all()


def test_the_lowest_mape_is_chosen_and_all_scores_are_kept() -> None:
    random = np.random.default_rng(0)
    columns = {"flops": random.uniform(1, 9, 40), "bytes": random.uniform(1, 9, 40)}
    target = 3.0 * columns["flops"]
    found = select(
        {"bytes": lambda: Rate("bytes"), "flops": lambda: Rate("flops")},
        columns,
        target,
        list(range(40)),
    )
    assert isinstance(found.estimator, Rate)
    assert found.estimator.column == "flops"
    assert found.scores["flops"]["mape"] == 0.0
    assert found.scores["bytes"]["mape"] > 20
    assert (found.rows, found.groups, found.folds) == (40, 40, 10)


def test_of_two_that_the_rows_cannot_tell_apart_the_simpler_is_kept() -> None:
    random = np.random.default_rng(0)
    work = random.uniform(1, 9, 60)
    columns = {"flops": work, "nearly": work * random.uniform(0.999, 1.001, 60), "half": work**0.5}
    target = work * random.uniform(0.8, 1.2, 60)
    chosen = [
        select(
            {name: lambda name=name: Rate(name) for name in names}, columns, target, [*range(60)]
        )
        for names in (("flops", "nearly"), ("nearly", "flops"), ("half", "nearly", "flops"))
    ]
    assert [each.estimator.column for each in chosen] == ["flops", "nearly", "nearly"]  # type: ignore[attr-defined]


def test_rows_of_one_group_are_no_independent_witnesses() -> None:
    """Better on six shapes and worse on four is luck, however often each was measured."""
    shape = np.repeat(np.arange(10), 20)
    sign = np.tile([1.0, -1.0], 100)
    work = np.linspace(1, 9, 200)
    off = np.where(shape < 6, 0.02, 0.2)
    columns = {"simple": work * (1 + 0.1 * sign), "lucky": work * (1 + off * sign), "flops": work}
    makers = {name: lambda name=name: Rate(name) for name in ("simple", "lucky")}
    grouped = select(makers, columns, work, shape.tolist())
    alone = select(makers, columns, work, list(range(200)))
    assert grouped.scores["lucky"]["mape"] < grouped.scores["simple"]["mape"]
    assert grouped.estimator.column == "simple"  # type: ignore[attr-defined]
    assert alone.estimator.column == "lucky"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("rows", "folds"), [(1000, 10), (1001, 5)])
def test_many_rows_are_held_out_by_fifths(rows: int, folds: int) -> None:
    columns = {"flops": np.linspace(1, 9, rows)}
    found = select({"rate": lambda: Rate("flops")}, columns, columns["flops"], range(rows))
    assert MANY_ROWS == 1000
    assert found.folds == folds == len(set(found.fold.tolist()))


def test_a_candidate_that_cannot_be_fitted_is_refused_and_the_others_go_on() -> None:
    columns = {"flops": np.arange(1.0, 13.0), "same": np.ones(12)}
    found = select(
        {"constant": lambda: Rate("same"), "flops": lambda: Rate("flops")},
        columns,
        columns["flops"],
        list(range(12)),
    )
    assert "collapses to a constant" in found.scores["constant"]["refused"]
    assert found.accuracy()["held_out"]["flops"]["mape"] == 0.0


def test_none_that_fits_is_an_error() -> None:
    columns = {"flops": np.arange(1.0, 13.0), "same": np.ones(12)}
    with pytest.raises(FitError, match="collapses to a constant"):
        select({"constant": lambda: Rate("same")}, columns, columns["flops"], list(range(12)))


def test_one_no_better_than_answering_nothing_is_not_chosen() -> None:
    columns = {"flops": np.geomspace(1, 1e6, 12)}
    with pytest.raises(FitError, match="no better than answering 0"):
        select({"rate": lambda: Rate("flops")}, columns, 1.0 / columns["flops"], list(range(12)))


@pytest.mark.parametrize("groups", [[1, 1, 1], [1, 2, 2]])
def test_too_few_shapes_to_hold_any_out_are_refused(groups: list[int]) -> None:
    with pytest.raises(FitError, match="3 are needed"):
        grouped_folds(groups, 10)


def test_scores_are_percentages_of_the_measured_value() -> None:
    score = Score.of(np.array([1.05, 0.8, 3.0]), np.array([1.0, 1.0, 3.0]))
    assert score == Score(
        mape=8.33,
        median_ape=5.0,
        rmspe=11.9,
        bias=-5.0,
        total=-3.0,
        within_5=33.33,
        within_10=66.67,
        within_20=100.0,
    )
