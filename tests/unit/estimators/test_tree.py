"""The tree finds the splits that there are, and no others."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from pytest_neuralpower.calibrate.fit.rows import linear_layer
from pytest_neuralpower.errors import FitError
from pytest_neuralpower.estimators import Tree
from pytest_neuralpower.estimators.features import FloatArray, columns
from pytest_neuralpower.estimators.selection import whole_groups
from pytest_neuralpower.estimators.terms import Condition
from pytest_neuralpower.estimators.tree import leaf_numbers, leaves, residual_squares

SIZES = ("m", "n", "k")
TERMS = ("launch", "flops", "bytes_io", "bytes_weight")


def some_columns(count: int = 300, seed: int = 0) -> dict[str, FloatArray]:
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 600, (count, 3))
    return columns("linear", [linear_layer(*map(int, each)) for each in sizes])


def noise(count: int, seed: int = 1) -> FloatArray:
    return np.random.default_rng(seed).uniform(0.97, 1.03, count)


def test_finds_a_range_split_where_the_device_changes() -> None:
    values = some_columns()
    target = np.where(values["m"] <= 100, 1.0, 4.0) * (0.1 + values["flops"] / 1e8)
    root = Tree(SIZES, TERMS).fit(values, target * noise(300)).root_
    assert root.condition is not None
    assert root.condition.column == "m"
    assert root.condition.op == "<="
    assert root.condition.value == pytest.approx(100, rel=0.15)


def test_finds_an_integer_multiple() -> None:
    values = some_columns()
    target = np.where(values["n"] % 8 == 0, 1.0, 2.0) * (0.1 + values["flops"] / 1e8)
    root = Tree(SIZES, TERMS).fit(values, target * noise(300)).root_
    assert root.condition is not None
    assert root.condition == Condition("n", "%", 8.0)


def test_leaves_recover_the_device_s_rates() -> None:
    values = some_columns()
    target = 0.2 + 3.0 * values["flops"] * 1e-9 + 0.5 * values["bytes_weight"] * 1e-6
    root = Tree(SIZES, TERMS, depth=0, least_rows=10).fit(values, target).root_
    assert root.condition is None
    assert root.rates == pytest.approx({"launch": 0.2, "flops": 3.0, "bytes_weight": 0.5})
    assert root.rows == 300


def test_a_device_of_one_law_gets_no_split() -> None:
    values = some_columns()
    target = (0.1 + values["flops"] / 1e8) * noise(300)
    tree = Tree(SIZES, TERMS).fit(values, target)
    assert tree.root_.condition is None
    assert tree.depth == 0


def test_rates_are_never_negative() -> None:
    values = some_columns()
    # The more output, the less time: no device does that.
    target = np.maximum(1.0 + values["flops"] / 1e8 - values["bytes_out"] / 2e6, 0.05)
    tree = Tree(SIZES, TERMS, depth=3, least_rows=20).fit(values, target)
    assert all(rate > 0 for leaf in leaves(tree.root_) for rate in leaf.rates.values())


def test_no_leaf_has_fewer_rows_than_it_must() -> None:
    values = some_columns()
    target = np.random.default_rng(3).uniform(1, 9, 300)
    tree = Tree(SIZES, TERMS, depth=6, least_rows=40).fit(values, target)
    sizes = [leaf.rows for leaf in leaves(tree.root_)]
    assert len(sizes) > 2
    assert min(sizes) >= 40
    assert sum(sizes) == 300
    assert np.bincount(leaf_numbers(tree.root_, values)).tolist() == sizes


def test_cross_validation_holds_groups_together() -> None:
    """Twenty shapes in thirty copies: a deep tree learns them by heart, and is found out."""
    values = {name: np.repeat(each, 30) for name, each in some_columns(20).items()}
    odd = np.repeat(np.random.default_rng(5).uniform(0.5, 2, 20), 30)
    target = (0.1 + values["flops"] / 1e8) * odd
    alone = Tree(SIZES, TERMS).fit(values, target)
    grouped = Tree(SIZES, TERMS).fit(values, target, groups=np.repeat(range(20), 30).tolist())
    assert alone.depth is not None
    assert grouped.depth is not None
    assert grouped.depth < alone.depth


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"if": ["m", "~", 3]}, "unknown comparison '~'; there are =="),
        ({"rates": {"speed": 1.0}, "rows": 3}, "rate of 'speed', which is no term of the tree"),
    ],
)
def test_a_file_that_describes_no_tree_is_refused(change: dict[str, object], says: str) -> None:
    data = {
        **Tree(SIZES, TERMS, depth=1, least_rows=8).to_json(),
        "root": {"rows": 1, "rates": {}} | change,
    }
    with pytest.raises(msgspec.ValidationError, match=says):
        msgspec.convert(data, Tree)


def test_an_unknown_term_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown term 'speed' of a tree"):
        Tree(SIZES, ("speed",))


def test_a_size_that_is_not_measured_is_an_error_and_not_a_guess() -> None:
    with pytest.raises((FitError, KeyError)):
        Tree(("colour",), TERMS).fit(some_columns(), np.linspace(1, 2, 300))


def test_few_unknowns_are_solved_for_many_subsets_at_once() -> None:
    scipy_nnls = pytest.importorskip("scipy.optimize").nnls
    random = np.random.default_rng(0)
    matrices = [random.uniform(0, 1, (50, 4)) * random.uniform(0, 3, 4) for _ in range(20)]
    found = residual_squares(
        np.stack([each.T @ each for each in matrices]),
        np.stack([each.sum(axis=0) for each in matrices]),
        np.full(20, 50.0),
    )
    exact = [scipy_nnls(each, np.ones(50))[1] ** 2 for each in matrices]
    assert found == pytest.approx(exact, rel=0.01)


def test_a_sample_of_groups_is_of_whole_groups_from_everywhere() -> None:
    groups = [number // 3 for number in range(3000)]
    kept = whole_groups(groups, 300)
    assert 270 <= len(kept) <= 330
    chosen = [groups[row] for row in kept.tolist()]
    assert all(chosen.count(group) == 3 for group in set(chosen))
    assert min(chosen) < 50
    assert max(chosen) > 950
    assert whole_groups(groups, 5000).tolist() == list(range(3000))


def test_rounding_left_of_a_subset_without_a_term_is_no_term() -> None:
    # Three subsets; the second has none of the second term, and got its sums by subtraction.
    gram = np.array([np.diag([4.0, 1.0]), [[4.0, 1e-17], [1e-17, -1e-18]], np.diag([4.0, 1e-18])])
    right = np.array([[3.0, 0.5], [3.0, 1e-17], [3.0, 1e-17]])
    found = residual_squares(gram, right, np.array([4.0, 4.0, 4.0]))
    assert found == pytest.approx([4 - 9 / 4 - 0.25, 4 - 9 / 4, 4 - 9 / 4])


def few_sizes() -> dict[str, FloatArray]:
    """Columns of 24 rows with 3 sizes, the other sizes constant."""
    random = np.random.default_rng(0)
    return columns("linear", [linear_layer(int(m), 64, 64) for m in random.integers(1, 4, 24)])


@pytest.mark.parametrize("least_rows", [2, 5])
def test_noise_over_constant_columns_and_tiny_groups_is_fitted(least_rows: int) -> None:
    values = few_sizes()
    target = 0.01 * 10.0 ** np.random.default_rng(1).uniform(0, 3, 24)
    tree = Tree(SIZES, TERMS, depth=4, least_rows=least_rows).fit(values, target)
    assert np.isfinite(tree.predict(values)).all()


def test_equal_times_are_refused_in_words() -> None:
    with pytest.raises(FitError, match="the 24 rows are too alike"):
        Tree(SIZES, TERMS, depth=4, least_rows=2).fit(few_sizes(), np.full(24, 0.01))
