"""The physical estimator: rates per regime, never negative, bounded by what was seen."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from pytest_neuralpower.calibrate.fit.rows import conv_layer
from pytest_neuralpower.errors import FitError
from pytest_neuralpower.estimators import Physical
from pytest_neuralpower.estimators.features import FloatArray, columns, op_code
from pytest_neuralpower.estimators.terms import (
    TERMS,
    Condition,
    Regime,
    assign,
    evaluate,
    meaning,
)

HARDWARE = {"peak_gflops": 1000.0, "bandwidth_gbs": 100.0}


def some_columns() -> dict[str, FloatArray]:
    return columns(
        "conv",
        [
            conv_layer((n, c, s, s), cout=o, kernel=(k, k), stride=(1, 1), padding=(k // 2,) * 2)
            for n in (1, 4, 16) for c in (16, 64) for o in (32, 96)
            for s in (14, 28) for k in (1, 3)
        ],
    )  # fmt: skip


def test_recovers_the_rates_of_each_regime() -> None:
    values = some_columns()
    wide = values["kernel_area"] == 9
    target = 0.1 + np.where(wide, 1.0, 3.0) * values["flops"] / 1e9
    regimes = [
        Regime("wide", ("launch", "flops"), (Condition("kernel_area", "==", 9),)),
        Regime("rest", ("launch", "flops")),
    ]
    fitted = Physical(regimes, **HARDWARE).fit(values, target).regimes
    assert [each.rates["flops"] for each in fitted] == pytest.approx([1.0, 3.0])
    assert [each.rates["launch"] for each in fitted] == pytest.approx([0.1, 0.1])


class TestMerging:
    """Regimes with too few rows, where the estimator may merge them."""

    def fitted(self, *, of_small: int, of_others: int) -> Physical:
        """Rows of one regime by its operation's name, of another kernel size, and of all else."""
        kernels = [3] * of_small + [5] * 30 + [1] * of_others
        values = columns(
            "conv",
            [
                conv_layer(
                    (1, 16, 14 + n, 14), cout=32, kernel=(k, k), stride=(1, 1), padding=(0, 0)
                )
                for n, k in enumerate(kernels)
            ],
        )
        area = values["kernel_area"]
        values["op"] = np.where(area == 9, op_code("small"), op_code("other"))
        target = np.select([area == 9, area == 25], [7.0, 1.0], 3.0) * values["bytes_moved"] / 1e6
        regimes = [
            Regime("small", ("bytes_moved",), (Condition("op", "is", "small"),)),
            Regime("wide", ("bytes_moved",), (Condition("kernel_area", "==", 25),)),
            Regime("others", ("bytes_moved",)),
        ]
        found = Physical(regimes, merge=True, **HARDWARE).fit(values, target)
        self.off = found.predict(values) / target - 1
        return found

    def test_an_operation_keeps_its_own_few_rows(self) -> None:
        found = self.fitted(of_small=6, of_others=20)
        assert [regime.name for regime in found.regimes] == ["small", "wide", "others"]
        assert np.abs(self.off).max() < 0.02

    def test_fewer_go_to_what_is_left(self) -> None:
        found = self.fitted(of_small=5, of_others=20)
        assert [regime.name for regime in found.regimes] == ["wide", "others"]
        assert np.abs(self.off[5:35]).max() < 0.02

    def test_without_a_row_of_its_own_the_last_regime_is_of_all(self) -> None:
        found = self.fitted(of_small=12, of_others=0)
        assert np.abs(self.off).max() < 0.02
        rates = [each.rates["bytes_moved"] * each.scale for each in found.regimes]
        assert rates[1] < rates[2] < rates[0]


def test_rates_are_never_negative() -> None:
    values = some_columns()
    # The more output, the less time: no device does that, noise does.
    target = 1.0 + values["flops"] / 1e9 - values["bytes_out"] / values["bytes_out"].max()
    fitted = Physical([Regime("all", ("launch", "flops", "bytes_out"))], **HARDWARE)
    rates = fitted.fit(values, np.maximum(target, 0.1)).regimes[0].rates
    assert set(rates) <= {"launch", "flops"}
    assert all(rate > 0 for rate in rates.values())


def test_more_work_never_takes_less_time() -> None:
    values = some_columns()
    fitted = Physical([Regime("all", ("launch", "flops", "bytes_out"))], **HARDWARE)
    fitted.fit(values, 0.1 + values["flops"] / 1e9 + values["bytes_out"] / 1e7)
    larger = {name: each * 2 for name, each in values.items()}
    assert (fitted.predict(larger) >= fitted.predict(values)).all()


def test_rescaling_makes_the_total_right() -> None:
    values = some_columns()
    noise = np.random.default_rng(0).uniform(0.5, 1.5, len(values["flops"]))
    target = (0.1 + values["flops"] / 1e9) * noise
    totals = {
        rescale: Physical([Regime("all", ("launch", "flops"))], rescale=rescale, **HARDWARE)
        .fit(values, target)
        .predict(values)
        .sum()
        / target.sum()
        for rescale in (True, False)
    }
    assert totals[True] == pytest.approx(1.0, abs=0.01)
    assert totals[False] < 0.95


def test_time_stays_within_the_multiples_of_the_roofline_that_were_seen() -> None:
    values = some_columns()
    roofline = values["flops"] / 1e9 + values["bytes_moved"] / 1e8
    fitted = Physical([Regime("all", ("launch", "flops"))], **HARDWARE)
    fitted.fit(values, 2.0 * roofline)
    odd = {name: each.copy() for name, each in values.items()}
    odd["bytes_moved"] *= 1e4  # no term sees it
    ratio = fitted.predict(odd) / (odd["flops"] / 1e9 + odd["bytes_moved"] / 1e8)
    assert ratio.tolist() == pytest.approx([2.0] * len(ratio))


def test_a_term_active_in_a_few_rows_gets_no_rate() -> None:
    values = some_columns()
    values["bias"] = np.zeros_like(values["flops"])
    values["bias"][:3] = 1.0
    target = 0.1 + values["flops"] / 1e9
    target[:3] += 10.0
    fitted = Physical([Regime("all", ("launch", "flops", "bias_pass"))], **HARDWARE)
    assert "bias_pass" not in fitted.fit(values, target).regimes[0].rates


def test_a_regime_with_a_few_rows_is_refused_by_name() -> None:
    regimes = [
        Regime("rare", ("launch", "flops"), (Condition("cin", ">=", 1000),)),
        Regime("rest", ("launch", "flops")),
    ]
    with pytest.raises(FitError, match="0 rows in regime 'rare', 12 are needed"):
        Physical(regimes, **HARDWARE).fit(some_columns(), some_columns()["flops"])


def test_the_first_regime_that_holds_counts() -> None:
    values = {"flops": np.array([1.0, 2.0, 4.0, 8.0])}
    regimes = [
        Regime("even", ("launch",), (Condition("flops", "%", 4),)),
        Regime("small", ("launch",), (Condition("flops", "<=", 4),)),
        Regime("rest", ("launch",)),
    ]
    assert assign(regimes, values).tolist() == [1, 1, 0, 0]


def test_the_last_regime_must_hold_for_all() -> None:
    with pytest.raises(ValueError, match="'big', must hold for every row"):
        assign([Regime("big", ("launch",), (Condition("flops", ">=", 2),))], {"flops": np.ones(1)})


class TestTerms:
    values: ClassVar = {
        name: np.array([value])
        for name, value in {
            "m": 300.0, "n": 100.0, "k": 5000.0, "groups": 1.0, "kernel_area": 9.0, "batch": 2.0,
            "oh": 7.0, "ow": 8.0, "stride": 1.0, "flops": 3e8, "bytes_moved": 5e6,
            "bytes_out": 1e6, "bias": 1.0, "cout": 104.0,
        }.items()
    }  # fmt: skip

    @pytest.mark.parametrize(
        ("term", "value"),
        [
            ("tile_flops[128x64]", 2 * 6 * 128 * 64 * 5000 / 1e9),  # 3 x 2 tiles
            ("wave_flops[128x64]", 2 * 8 * 128 * 64 * 5000 / 1e9),  # 2 waves of 4
            ("split_wave_flops[128x64]", 2 * 12 * 128 * 64 * 2500 / 1e9),  # 12 halves, 3 waves
            ("wave_depth[128x64]", 2 * 5000 / 1e3),
            ("tiles[128x64]", 6 / 1e3),
            ("reread[128x64]", (300 * 2 + 100 * 3) * 5000 * 4 / 1e6),
            # 128 columns: 3 tiles, 1 wave; 64: 6 tiles, 2 waves, no better; 32: 12 tiles, 3 waves.
            ("chosen_wave_flops[128x32]", 2 * 4 * 128 * 128 * 5000 / 1e9),
            ("filtered_flops[2x32]", 2 * (2 * 4 * 4) * 16 * 128 * (5000 / 9) / 1e9),
            ("winograd_flops[2x32]", 2 * (2 * 4 * 4) * 16 * 128 * (5000 / 9) / 1e9),
            ("bias_pass", 2.0),
            ("bytes_over[3]", 2.0),
            ("bytes_over[6]", 0.0),
            ("unaligned_out[8]", 0.0),
            ("unaligned_out[16]", 1.0),  # 104 = 8 x 13 is no multiple
            ("layout_pass", 10.0),
            ("pointwise_flops", 0.0),
        ],
    )
    def test_count_what_they_say(self, term: str, value: float) -> None:
        assert evaluate(term, self.values, 4).tolist() == pytest.approx([value])

    def test_other_convolutions_cost_half_an_operation_beside_filtered_ones(self) -> None:
        strided = {**self.values, "stride": np.array([4.0])}
        plain = evaluate("winograd_flops[4x32]", strided, 4)
        assert plain.tolist() == pytest.approx([0.3])
        assert evaluate("filtered_flops[4x32]", strided, 4) == pytest.approx(plain / 2)

    def test_a_pointwise_convolution_needs_no_turning(self) -> None:
        pointwise = {**self.values, "kernel_area": np.ones(1)}
        assert evaluate("layout_pass", pointwise, 4).tolist() == [0.0]
        assert evaluate("pointwise_flops", pointwise, 4).tolist() == pytest.approx([0.3])

    @pytest.mark.parametrize("term", ["speed", "tile_flops", "flops[128x64]"])
    def test_that_do_not_exist_are_refused_with_those_that_do(self, term: str) -> None:
        with pytest.raises(ValueError, match=r"unknown term .* there are launch, flops"):
            evaluate(term, self.values, 4)

    @pytest.mark.parametrize("term", TERMS)
    def test_have_a_meaning_in_words(self, term: str) -> None:
        found = meaning(f"{term}[128x64]")
        assert found.text
        assert found.factor in (1.0, 1e-3, 1e-6, 1e-9)

    @pytest.mark.parametrize("column", ["flops", "bytes_moved", "bytes_out"])
    def test_are_numbers_of_their_unit_over_their_factor(self, column: str) -> None:
        value = evaluate(column, self.values, 4) / meaning(column).factor
        assert value == pytest.approx(self.values[column])
