"""The paper's estimator has the paper's regressors."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_neuralpower.calibrate.fit.rows import conv_layer, linear_layer, pool_layer
from pytest_neuralpower.estimators import NeuralPowerPolynomial, NeuralPowerRelative
from pytest_neuralpower.estimators.features import FloatArray, columns
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
