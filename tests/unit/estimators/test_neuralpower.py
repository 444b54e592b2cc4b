"""The paper's estimator has the paper's regressors."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import lasso_path

from pytest_neuralpower.calibrate.fit.profile import read_profile
from pytest_neuralpower.calibrate.fit.rows import Row, conv_layer, linear_layer, pool_layer
from pytest_neuralpower.estimators import NeuralPowerPolynomial, NeuralPowerRelative
from pytest_neuralpower.estimators.features import FloatArray, columns, family
from pytest_neuralpower.estimators.neuralpower import FLOOR_MS, regressors

CONV = conv_layer((2, 5, 11, 13), cout=7, kernel=(3, 3), stride=(1, 1), padding=(0, 0))
LAYERS = {
    "conv": CONV,
    "linear": linear_layer(2, 5, 7),
    "pool": pool_layer(
        (2, 5, 11, 13), (2, 5, 5, 6), op="max_pool2d", kernel=(3, 3), stride=(2, 2), padding=(0, 0)
    ),
}


@pytest.mark.parametrize(
    ("family", "quantity", "count"),
    [
        ("conv", "runtime", 7 + 28 + 84 + 8),
        ("conv", "power", 14 + 105 + 8),
        ("linear", "runtime", 5 + 15 + 1),
        ("linear", "power", 10 + 55),
        ("pool", "runtime", 6 + 21 + 56 + 3),
        ("pool", "power", 12 + 78 + 3),
    ],
)
def test_the_authors_count_of_regressors(family: str, quantity: str, count: int) -> None:
    assert len(regressors(family, quantity, columns(family, [LAYERS[family]]))) == count


def special(family: str) -> list[float]:
    found = regressors(family, "runtime", columns(family, [LAYERS[family]]))
    return [values[0] for name, values in found.items() if name.startswith("special")]


def test_special_terms_of_a_convolution() -> None:
    per_image = 9 * 11 * 7 * 3 * 3 * 5
    assert special("conv") == [
        per_image,
        CONV.macs,
        2 * 9 * 11 * 3 * 3 * 5,
        2 * 9 * 11 * 7,
        3 * 3 * 5 * 7,
        2 * 11 * 13 * 5,
        2 * 13 * 5,
        2 * 11 * 5,
    ]
    assert per_image * 2 == CONV.macs


def test_special_terms_of_a_pool_and_a_linear_layer() -> None:
    assert special("pool") == [2 * 5 * 6 * 5 * 3 * 3, 2 * 5 * 6 * 5, 2 * 11 * 13 * 5]
    assert special("linear") == [2 * 7 * 5]


def test_power_regressors_hold_the_logarithms() -> None:
    found = regressors("conv", "power", columns("conv", [CONV]))
    assert found["log2(cin).11"][0] == np.log2(5)
    assert found["cout.5*log2(batch).7"][0] == 7 * 1.0


def test_runtime_is_floored_as_the_authors_predictor_does_and_power_is_not() -> None:
    values = columns("conv", [CONV])
    runtime = NeuralPowerPolynomial("conv", "runtime", intercept_=-5.0)
    power = NeuralPowerPolynomial("conv", "power", intercept_=-5.0)
    assert runtime.predict(values).tolist() == [FLOOR_MS] == [0.105]
    assert power.predict(values).tolist() == [-5.0]


def test_it_fits_a_device_that_only_counts_operations() -> None:
    layers = [
        conv_layer((n, c, s, s), cout=o, kernel=(3, 3), stride=(1, 1), padding=(1, 1))
        for n in (1, 4, 16) for c in (16, 64) for o in (32, 96) for s in (14, 28, 40)
    ]  # fmt: skip
    values = columns("conv", layers)
    target = 0.5 + values["flops"] / 1e9
    fitted = NeuralPowerPolynomial("conv").fit(values, target)
    assert np.abs(fitted.predict(values) / target - 1).max() < 0.05


def test_of_ten_rows_each_is_held_out_alone_so_that_their_order_says_nothing() -> None:
    """The paper chooses the penalty by 10-fold cross-validation: with fewer folds the order of ten
    rows would decide which are held out together."""
    random = np.random.default_rng(0)
    sizes = random.integers(1, 400, (10, 3))
    target = (10 + sizes.prod(axis=1) / 5e5) * random.uniform(0.8, 1.2, 10)
    asked = columns("linear", [linear_layer(*map(int, each)) for each in sizes])
    predicted = []
    for order in [np.arange(10), *(random.permutation(10) for _ in range(8))]:
        values = {name: each[order] for name, each in asked.items()}
        predicted.append(NeuralPowerPolynomial("linear").fit(values, target[order]).predict(asked))
    assert np.ptp(predicted[0]) > 1
    for each in predicted:
        assert each == pytest.approx(predicted[0], rel=1e-6)


@cache
def calibrated() -> list[Row]:
    """The sound rows of a processor that was calibrated by random networks."""
    profile = read_profile(Path("calibration/cpu-sapphirerapids/profile.csv"))
    return [row for row in profile.rows if not row.flaw]


@pytest.fixture(scope="module", params=["conv", "pool", "linear"])
def measured(request: pytest.FixtureRequest) -> tuple[str, dict[str, FloatArray], FloatArray]:
    """A family, and its columns and runtimes on a calibrated processor."""
    rows = [row for row in calibrated() if family(row.layer) == request.param]
    return (
        request.param,
        columns(request.param, [row.layer for row in rows]),
        np.array([row.runtime_ms for row in rows]),
    )


class TestMeasured:
    """On rows of random networks, whose sizes span four orders of magnitude."""

    def test_no_lasso_of_its_penalty_is_better(
        self, measured: tuple[str, dict[str, FloatArray], FloatArray]
    ) -> None:
        name, values, target = measured
        fitted = NeuralPowerPolynomial(name)
        fitted._fit(values, target)
        terms = regressors(name, "runtime", values, degree=fitted.degree_)
        kept = {term: each for term, each in terms.items() if np.ptp(each) > 0}
        spread = np.array([each.std() for each in kept.values()])
        matrix = np.stack(list(kept.values()), axis=1)
        scaled = (matrix - matrix.mean(axis=0)) / spread
        weights = np.array([fitted.coefficients_.get(term, 0.0) for term in kept]) * spread
        centred = target - target.mean()
        left = scaled.T @ (centred - scaled @ weights) / len(target)
        # What a Lasso's optimum is: no regressor tells more of what is left than the penalty, and
        # those in use tell exactly that.
        penalty = np.abs(left).max()
        assert 0 < penalty < np.abs(scaled.T @ centred).max() / len(target)
        used = weights != 0
        assert left[used] == pytest.approx(penalty * np.sign(weights[used]), rel=1e-4)
        assert fitted.intercept_ + matrix @ (weights / spread) == pytest.approx(
            target.mean() + scaled @ weights, rel=1e-5, abs=1e-5
        )

        def loss(found: FloatArray) -> float:
            error = centred - scaled @ found
            return float(error @ error / (2 * len(target)) + penalty * np.abs(found).sum())

        _, descended, _ = lasso_path(scaled, centred, alphas=[penalty], tol=1e-6, max_iter=200_000)
        assert loss(weights) <= loss(descended[:, 0]) * (1 + 1e-6)

    def test_is_floored_at_the_fastest_row_where_that_is_faster_than_the_authors_floor(
        self, measured: tuple[str, dict[str, FloatArray], FloatArray]
    ) -> None:
        name, values, target = measured
        fitted = NeuralPowerPolynomial(name).fit(values, target)
        assert target.min() < FLOOR_MS
        assert fitted.predict(values).min() >= fitted.floor == target.min()
        slower = NeuralPowerPolynomial(name).fit(values, target + 1)
        assert slower.floor == FLOOR_MS

    def test_is_the_same_each_time(
        self, measured: tuple[str, dict[str, FloatArray], FloatArray]
    ) -> None:
        name, values, target = measured
        one, other = (NeuralPowerPolynomial(name).fit(values, target) for _ in range(2))
        assert one.to_json() == other.to_json()
        assert len(one.coefficients_) > 1


def test_the_degree_is_no_higher_than_held_out_rows_call_for() -> None:
    random = np.random.default_rng(0)
    layers = [linear_layer(*map(int, each)) for each in random.integers(1, 400, (40, 3))]
    values = columns("linear", layers)
    noise = random.uniform(0.7, 1.3, 40)
    counting = (1 + values["flops"] / 1e8) * noise
    assert NeuralPowerPolynomial("linear").fit(values, counting).degree_ == 1
    cubic = 1 + (values["m"] / 100) ** 3
    assert NeuralPowerPolynomial("linear").fit(values, cubic).degree_ == 3


def test_power_is_of_degree_2_at_most_and_knows_logarithms() -> None:
    random = np.random.default_rng(0)
    layers = [linear_layer(*map(int, each)) for each in random.integers(1, 4000, (120, 3))]
    values = columns("linear", layers)
    target = 50 + 4 * np.log2(values["m"]) * np.log2(values["k"])
    fitted = NeuralPowerPolynomial("linear", "power").fit(values, target)
    assert fitted.degree_ == 2
    assert fitted.floor is None
    assert max(fitted.coefficients_, key=fitted.coefficients_.__getitem__).count("log2") == 2
    assert np.abs(fitted.predict(values) / target - 1).max() < 0.02


def test_says_in_one_line_where_the_lasso_is_not_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    layers = [linear_layer(*map(int, each)) for each in random.integers(1, 400, (80, 3))]
    values = columns("linear", layers)
    target = values["m"] + values["n"] + values["k"]
    fitted = NeuralPowerPolynomial("linear")
    # The path ends where it begins.
    monkeypatch.setattr("pytest_neuralpower.estimators.neuralpower._CORNERS", 0)
    with pytest.warns(UserWarning, match="runtime of linear: the Lasso of .* converge") as seen:
        fitted._fit(values, target)
    assert len(seen) == 1
    assert "\n" not in str(seen[0].message)


def test_a_regressor_it_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown regressor 'x'"):
        NeuralPowerPolynomial("conv", coefficients_={"x": 1.0})


def test_a_family_that_the_paper_does_not_model_is_refused() -> None:
    with pytest.raises(ValueError, match="not 'norm'"):
        NeuralPowerPolynomial("norm")


class TestRelative:
    def rows(self) -> tuple[dict[str, FloatArray], FloatArray]:
        random = np.random.default_rng(0)
        sizes = random.integers(1, 400, (80, 3))
        values = columns("linear", [linear_layer(*map(int, each)) for each in sizes])
        return values, (0.01 + values["flops"] / 1e7) * random.uniform(0.9, 1.1, 80)

    def test_errs_less_on_small_layers_than_absolute_squares_do(self) -> None:
        values, target = self.rows()
        small = target < np.median(target)
        off = {
            kind.name: float(
                np.abs(kind("linear").fit(values, target).predict(values) / target - 1)[
                    small
                ].mean()
            )
            for kind in (NeuralPowerPolynomial, NeuralPowerRelative)
        }
        assert off["neuralpower-relative"] < 0.1
        assert off["neuralpower-relative"] < off["neuralpower"] / 2

    def test_has_no_negative_coefficient_and_no_floor(self) -> None:
        values, target = self.rows()
        fitted = NeuralPowerRelative("linear").fit(values, target / 1e3)
        assert fitted.intercept_ >= 0
        assert min(fitted.coefficients_.values()) > 0
        assert fitted.predict(values).min() < FLOOR_MS / 10
        tiny = {name: np.full(1, 1e-6) for name in values}
        assert fitted.predict(tiny)[0] >= 0

    def test_energy_has_the_regressors_of_runtime(self) -> None:
        values, target = self.rows()
        energy = NeuralPowerRelative("linear", "energy").fit(values, target)
        assert (
            energy.coefficients_ == NeuralPowerRelative("linear").fit(values, target).coefficients_
        )
