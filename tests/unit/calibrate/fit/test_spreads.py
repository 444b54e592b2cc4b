"""Distances that hold 90%: of what was never seen, not of what the interval was made from."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_neuralpower.calibrate.fit.uncertainty import (
    conformal_distance,
    cross_coverage,
    ends,
    family_spread,
    few_distance,
)
from pytest_neuralpower.estimators import Physical
from pytest_neuralpower.estimators.selection import Selection, select
from pytest_neuralpower.estimators.terms import Regime


def test_the_distance_holds_90_percent_of_new_shapes() -> None:
    random = np.random.default_rng(0)
    held = []
    for _ in range(300):
        residuals = random.standard_t(3, 31) * 0.1  # heavy tails, as real rows have
        distance = conformal_distance(residuals[:30], range(30))
        held.append(abs(residuals[30]) <= distance)
    assert 0.86 < np.mean(held) < 0.97


@pytest.mark.parametrize(
    ("shapes", "rank"), [(9, 9), (10, 10), (19, 18), (20, 19), (30, 28), (99, 90), (100, 91)]
)
def test_the_distance_is_the_quantile_of_the_shapes_and_one_unseen(shapes: int, rank: int) -> None:
    """Split conformal: the ``ceil(0.9 (n + 1))``-th smallest of n residuals (Lei et al. 2018)."""
    residuals = np.arange(1, shapes + 1) / 100
    assert conformal_distance(residuals[::-1], range(shapes)) == rank / 100
    # Each shape measured three times, up and down alike, is still one.
    three = np.repeat(residuals, 3) * np.tile([1, -1, 1], shapes)
    assert conformal_distance(three, np.repeat(np.arange(shapes), 3).tolist()) == rank / 100


def test_a_shape_measured_often_counts_once() -> None:
    # Nine tenths of the rows are one shape, far off: still one witness of twenty.
    residuals = np.concatenate([np.full(180, 2.0), np.linspace(0.01, 0.19, 19)])
    groups = ["often"] * 180 + [f"once {row}" for row in range(19)]
    assert conformal_distance(residuals, groups) < 0.2
    assert conformal_distance(residuals, range(199)) == 2.0


def test_up_and_down_are_alike() -> None:
    residuals = np.linspace(-0.5, 0.1, 40)
    assert conformal_distance(residuals, range(40)) == conformal_distance(-residuals, range(40))


def test_few_errors_are_widened_by_student_s_t() -> None:
    assert few_distance(np.array([0.1, -0.1, 0.1, -0.1, 0.1])) == pytest.approx(0.2015, abs=1e-4)
    assert conformal_distance(np.full(5, 0.1), range(5)) == pytest.approx(0.2015, abs=1e-4)
    assert few_distance(np.array([0.1])) == pytest.approx(0.6314, abs=1e-4)


def test_coverage_is_judged_without_the_fold() -> None:
    # In each fold one shape errs 10 times as far as those of all others: no interval made
    # without the fold can hold it.
    residuals = np.concatenate([np.full(27, 0.1), [1.0, 2.0, 3.0]])
    fold = np.array([*np.repeat([0, 1, 2], 9), 0, 1, 2])
    found = cross_coverage(residuals, range(30), fold)
    assert found["rows_percent"] < 100
    assert cross_coverage(np.full(30, 0.1), range(30), fold) == {
        "shapes_percent": 100.0,
        "rows_percent": 100.0,
    }


def columns(flops: np.ndarray) -> dict[str, np.ndarray]:
    names = ("bytes_in", "bytes_out", "bytes_weight", "bytes_moved")
    return {"flops": flops, **dict.fromkeys(names, flops / 10)}


def test_neighbours_that_err_alike_are_correlated() -> None:
    values = columns(np.geomspace(1e6, 1e10, 100))
    random = np.random.default_rng(2)
    waves = 0.2 * np.sin(np.linspace(0, 12, 100))
    alone = random.normal(0, 0.2, 100)
    alike = family_spread(waves, values, range(100), outside=None)
    apart = family_spread(alone, values, range(100), outside=None)
    assert alike.correlation > 0.9
    assert 0.1 <= apart.correlation < 0.35  # never less than what 100 shapes could not see


def chosen(target: np.ndarray, values: dict[str, np.ndarray]) -> Selection:
    def make() -> Physical:
        regime = Regime("all", ("launch", "flops"))
        return Physical([regime], peak_gflops=1e3, bandwidth_gbs=1e2, rescale=False)

    return select({"physical": make}, values, target, range(len(target)))


def test_extrapolation_is_as_unsure_as_it_was_at_both_ends() -> None:
    flops = np.geomspace(1e7, 1e11, 60)
    values = columns(flops)
    straight = 0.01 + flops * 2e-9
    bent = straight * (1 + (flops / 1e10))  # grows faster at the end than before it
    beyond = []
    for target in (straight, bent):
        selection = chosen(target, values)
        residuals, groups = ends(selection, values, target, range(60))
        assert residuals is not None
        assert len(groups) == 24
        found = family_spread(
            np.log(target / selection.held_out),
            values,
            range(60),
            outside=residuals,
            outside_groups=groups,
        )
        assert found.outside >= found.inside
        beyond.append(found.outside)
    assert beyond[1] > 2 * beyond[0]


def test_rows_too_few_to_leave_out_their_ends_are_twice_as_unsure_there() -> None:
    flops = np.geomspace(1e7, 1e10, 15)  # without a fifth, 12: just what a regime needs
    target, values = 0.01 + flops * 2e-9, columns(flops)
    selection = chosen(target, values)
    assert ends(selection, values, target, range(15))[0] is not None
    fewer = {name: each[:14] for name, each in values.items()}
    assert ends(selection, fewer, target[:14], range(14)) == (None, [])
    found = family_spread(np.linspace(-0.1, 0.1, 14), fewer, range(14), outside=None)
    assert found.outside == 2 * found.inside > 0
