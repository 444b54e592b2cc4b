"""What intervals promise: of layers, of totals, and of differences where what is common cancels."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from msgspec import structs

from pytest_neuralpower.calibrate.fit.rows import linear_layer
from pytest_neuralpower.errors import PlatformError
from pytest_neuralpower.estimators import Bounded, Prior, Sparse, Utilization
from pytest_neuralpower.estimators.physics import Ceilings
from pytest_neuralpower.platform.differences import difference_interval, ratio_interval
from pytest_neuralpower.platform.intervals import (
    Interval,
    Intervals,
    LayerErrors,
    QuantitySpreads,
    Spread,
)
from pytest_neuralpower.platform.price import FittedPlatform

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Layer
    from pytest_neuralpower.platform.prediction import Prediction

CONV = Spread(0.1, 0.3, 0.0)
OTHER = Spread(0.5, 0.5, 1.0)
SURE = Spread(0.0, 0.0, 0.0)


def intervals(
    correlation: float = 0.0, *, whole: float = 0.0, power: Spread | None = None
) -> Intervals:
    conv = structs.replace(CONV, correlation=correlation)
    watts = None if power is None else QuantitySpreads({}, power)
    return Intervals(0.9, QuantitySpreads({"conv": conv}, OTHER, whole), watts)


def errors(
    found: Intervals,
    runtime: list[float],
    families: list[str] | None = None,
    *,
    energy: list[float] | None = None,
    outside: list[int] = [],  # noqa: B006 - never changed
    least: list[float] | None = None,
) -> LayerErrors:
    """Errors of layers that are of one configuration where family and runtime are equal."""
    families = families or ["conv"] * len(runtime)
    pairs = list(zip(families, runtime, strict=True))
    distinct = list(dict.fromkeys(pairs))
    which = np.array([distinct.index(pair) for pair in pairs])
    first = np.array([pairs.index(pair) for pair in distinct])
    made = found.errors(
        [linear_layer(8, 8, 1 + at) for at in range(len(distinct))],
        [name for name, _ in distinct],
        np.array([ms for _, ms in distinct]),
        None if energy is None else np.array(energy)[first],
        outside=np.isin(first, outside),
        least=np.array(least or [0.0] * len(runtime))[first],
    )
    return made.of(which)


class TestLayers:
    def test_lie_within_their_family_s_factor(self) -> None:
        low, high = errors(intervals(), [2.0, 2.0], ["conv", "norm"]).layers("runtime")
        assert high == pytest.approx([2 * math.exp(0.1), 2 * math.exp(0.5)])
        assert low == pytest.approx([2 * math.exp(-0.1), 2 * math.exp(-0.5)])

    def test_outside_the_calibrated_ranges_are_less_sure(self) -> None:
        _, high = errors(intervals(), [1.0, 2.0], outside=[1]).layers("runtime")
        assert high == pytest.approx([math.exp(0.1), 2 * math.exp(0.3)])

    def test_of_another_dtype_hold_the_physical_limit(self) -> None:
        found = errors(intervals(), [1.0, 2.0], outside=[0, 1], least=[0.5, 0.2])
        assert found.layers("runtime")[1] == pytest.approx([math.exp(0.5), 2 * math.exp(0.3)])

    def test_are_off_in_energy_by_runtime_and_power(self) -> None:
        found = errors(intervals(power=Spread(0.2, 0.2, 1.0)), [1.0], energy=[50.0])
        assert found.layers("energy")[1] == pytest.approx([50 * math.exp(math.hypot(0.1, 0.2))])

    def test_with_measured_power_are_off_in_energy_as_their_rows_were(self) -> None:
        joint = QuantitySpreads({"conv": Spread(0.05, 0.05, 0.0)}, None)
        found = structs.replace(intervals(power=Spread(0.2, 0.2, 1.0)), energy=joint)
        _, high = errors(found, [1.0, 1.0], ["conv", "norm"], energy=[50.0, 50.0]).layers("energy")
        assert high == pytest.approx([50 * math.exp(0.05), 50 * math.exp(math.hypot(0.5, 0.2))])


class TestTotals:
    def test_of_one_layer_is_the_layer_s(self) -> None:
        found = errors(intervals(), [2.0])
        assert found.total("runtime") == pytest.approx((2 * math.exp(-0.1), 2 * math.exp(0.1)))

    def test_independent_errors_average_out(self) -> None:
        four = [1.0, 1.001, 1.002, 1.003]
        _, high = errors(intervals(), four).total("runtime")
        assert high - sum(four) == pytest.approx(2 * math.expm1(0.1), rel=0.01)

    def test_errors_that_a_family_shares_do_not(self) -> None:
        four = [1.0, 1.001, 1.002, 1.003]
        _, high = errors(intervals(correlation=1.0), four).total("runtime")
        assert high == pytest.approx(sum(four) * math.exp(0.1))

    def test_one_configuration_run_four_times_is_off_four_times(self) -> None:
        _, high = errors(intervals(), [1.0] * 4).total("runtime")
        assert high == pytest.approx(4 * math.exp(0.1))

    def test_families_err_apart_but_all_without_a_spread_together(self) -> None:
        apart = errors(intervals(correlation=1.0), [1.0, 2.0], ["conv", "norm"])
        assert apart.total("runtime")[1] - 3 == pytest.approx(
            math.hypot(math.expm1(0.1), 2 * math.expm1(0.5))
        )
        together = errors(intervals(), [1.0, 2.0], ["softmax", "norm"])
        assert together.total("runtime")[1] == pytest.approx(3 * math.exp(0.5))

    def test_never_get_surer_than_the_whole(self) -> None:
        many = np.linspace(1, 2, 500).tolist()
        low, high = errors(intervals(whole=0.3), many).total("runtime")
        assert sum(many) * math.exp(0.3) < high < sum(many) * math.exp(0.302)
        assert low == pytest.approx(sum(many) ** 2 / high)

    def test_stay_above_0_however_unsure(self) -> None:
        found = structs.replace(intervals(whole=3.0, power=Spread(3.0, 3.0, 1.0)))
        low, _ = errors(found, [1.0], ["norm"], energy=[10.0]).total("energy")
        assert 0 < low < 1

    def test_of_energy_are_off_by_the_whole_of_runtime_and_power_unless_it_was_measured(
        self,
    ) -> None:
        apart = Intervals(0.9, QuantitySpreads({}, SURE, 0.3), QuantitySpreads({}, SURE, 0.4))
        joint = structs.replace(apart, energy=QuantitySpreads({"conv": SURE}, SURE, 0.2))
        for found, whole in ((apart, 0.5), (joint, 0.2)):
            total = errors(found, [1.0, 2.0], energy=[10.0, 20.0]).total("energy")
            assert total == pytest.approx((30 * math.exp(-whole), 30 * math.exp(whole)))

    def test_of_power_are_no_wider_for_an_unsure_runtime(self) -> None:
        found = errors(intervals(whole=3.0, power=Spread(0.1, 0.1, 1.0)), [1.0], energy=[80.0])
        assert found.total("power") == pytest.approx((80 * math.exp(-0.1), 80 * math.exp(0.1)))

    @pytest.mark.parametrize("correlation", [0.0, 0.4, 1.0])
    def test_hold_what_layers_with_such_errors_add_up_to(self, correlation: float) -> None:
        # 1.645 standard deviations are the 90% half-width that a spread states.
        random = np.random.default_rng(1)
        sizes = random.lognormal(0, 1, 30)
        low, high = errors(intervals(correlation), sizes.tolist()).total("runtime")
        sigma = 0.1 / 1.645
        common = random.normal(0, sigma * correlation**0.5, (4000, 1))
        own = random.normal(0, sigma * (1 - correlation) ** 0.5, (4000, 30))
        truth = (sizes * np.exp(common + own)).sum(axis=1)
        assert 0.87 < ((low <= truth) & (truth <= high)).mean() < 0.94


@pytest.mark.parametrize("coverage", [0, 1, 1.5, -0.1, True, "0.9"])
def test_a_coverage_that_is_no_share_between_0_and_1_is_refused(coverage: object) -> None:
    data = msgspec.to_builtins(intervals())
    assert msgspec.convert(data, Intervals) == intervals()
    with pytest.raises(msgspec.ValidationError, match="coverage"):
        msgspec.convert({**data, "coverage": coverage}, Intervals)


def at_the_roofline() -> dict[str, Bounded]:
    """Linear layers at 1 GFLOP/s."""
    ceilings = Ceilings(peak_gflops=1.0, bandwidth_gbs=1.0)
    return {"linear": Bounded("linear", ceilings, Prior(Sparse((), ceilings, "roofline_ms"), 0, 0))}


@pytest.fixture
def platform() -> FittedPlatform:
    """Linear layers alone, at 1 GFLOP/s and 50 W."""
    power = Utilization(peak_gflops=1.0, bandwidth_gbs=1.0)
    power.load_ = {"base": 50.0, "compute": 0.0, "bandwidth": 0.0}
    spreads = Intervals(
        0.9,
        QuantitySpreads({"linear": Spread(0.2, 0.2, 0.25)}, OTHER, 0.3),
        QuantitySpreads({}, Spread(0.1, 0.1, 1.0)),
    )
    return FittedPlatform(
        "toy", "Toy", "float32", "eager", {}, {"peak_gflops": 1.0, "bandwidth_gbs": 1.0}, {},
        at_the_roofline(), power, intervals=spreads, sha256="0" * 64,
    )  # fmt: skip


def net(platform: FittedPlatform, *widths: int) -> Prediction:
    layers: list[Layer] = []
    for place, width in enumerate(widths):
        layers.append(structs.replace(linear_layer(64, 256, width), path=f"layer{place}"))
    return platform.predict(layers)


def relative_width(prediction: Prediction) -> float:
    found = prediction.energy_interval_mj
    assert found is not None
    assert prediction.energy_mj is not None
    return (found.high - found.low) / prediction.energy_mj


class TestDifferences:
    def test_of_equal_predictions_is_0(self, platform: FittedPlatform) -> None:
        one, other = net(platform, 100, 200), net(platform, 100, 200)
        nothing = Interval(0.0, 0.0, 0.9)
        for quantity in ("energy", "runtime", "power"):
            assert difference_interval(one, other, quantity) == pytest.approx(nothing, abs=1e-9)
            assert ratio_interval(one, other, quantity) == pytest.approx(Interval(1.0, 1.0, 0.9))

    def test_of_equal_predictions_is_0_to_the_last_digit(self, platform: FittedPlatform) -> None:
        repeated = [137, 211, 137, 211, 137, 137, 173, 211, 173, 137]
        one, other = net(platform, *repeated), net(platform, *repeated)
        for quantity in ("energy", "runtime"):
            assert difference_interval(one, other, quantity) == Interval(0.0, 0.0, 0.9)

    def test_of_one_changed_layer_is_far_surer_than_the_totals(
        self, platform: FittedPlatform
    ) -> None:
        base, head = net(platform, 1000, 900, 800, 100), net(platform, 1000, 900, 800, 120)
        found, ratio = difference_interval(base, head), ratio_interval(base, head)
        assert found is not None
        assert ratio is not None
        point = (head.energy_mj or 0) - (base.energy_mj or 0)
        assert found.low < point < found.high
        assert (found.high - found.low) / (base.energy_mj or 1) < relative_width(base) / 10
        assert ratio.high - ratio.low < relative_width(base) / 10

    def test_turns_round_with_base_and_head(self, platform: FittedPlatform) -> None:
        base, head = net(platform, 300, 100), net(platform, 300, 140, 50)
        forth, back = difference_interval(base, head), difference_interval(head, base)
        assert forth is not None
        assert back is not None
        assert (back.low, back.high) == pytest.approx((-forth.high, -forth.low))

    def test_of_one_common_factor_leaves_the_ratio_sure(self, platform: FittedPlatform) -> None:
        assert platform.intervals is not None
        shared = QuantitySpreads({"linear": Spread(0.5, 0.5, 1.0)}, OTHER, 0.5)
        common = structs.replace(
            platform, intervals=structs.replace(platform.intervals, runtime=shared)
        )
        base, head = net(common, 100, 200), net(common, 110, 220)
        ratio = ratio_interval(base, head, "runtime")
        assert ratio is not None
        # What the sum of layers misses changes by a part of what the call changes.
        assert (ratio.low, ratio.high) == pytest.approx((1.1, 1.1), rel=0.04)

    def test_of_unrelated_models_does_not_cancel(self, platform: FittedPlatform) -> None:
        base = net(platform, 1000)
        other = platform.predict([structs.replace(linear_layer(64, 256, 1001), path="elsewhere")])
        found = difference_interval(base, other, "runtime")
        total = base.runtime_interval_ms
        assert found is not None
        assert total is not None
        assert found.high - found.low > 1.2 * (total.high - total.low) / 1.1

    def test_of_two_platforms_is_refused_in_one_line(self, platform: FittedPlatform) -> None:
        other = net(structs.replace(platform, sha256="1" * 64), 100)
        with pytest.raises(PlatformError, match="both predictions of one platform") as found:
            difference_interval(net(platform, 100), other)
        assert "\n" not in str(found.value)

    def test_is_none_where_nothing_is_known(self, platform: FittedPlatform) -> None:
        bare = net(structs.replace(platform, intervals=None), 100)
        assert difference_interval(bare, bare) is None
        known = net(platform, 100)
        assert difference_interval(known, replace(known, errors=None)) is None
        assert ratio_interval(replace(known, errors=None), known) is None
        without = net(structs.replace(platform, power=None), 100)
        assert difference_interval(without, without, "energy") is None
        assert difference_interval(without, without, "runtime") is not None


class TestDifferencesByHand:
    """Calls of linear layers at 1 GFLOP/s, on a platform whose errors are of one sort alone."""

    def interval(
        self,
        base: dict[str, float],
        head: dict[str, float],
        *,
        spread: Spread = SURE,
        whole: float = 0.0,
    ) -> tuple[float, float, Interval]:
        """How far below and above its point the difference of two calls may lie, and their ratio's
        interval; each call has linear layers by path, with so many ms."""
        known = Intervals(0.9, QuantitySpreads({"linear": spread}, OTHER, whole))
        platform = FittedPlatform(
            "toy", "Toy", "float32", "eager", {}, {}, {}, at_the_roofline(), None,
            intervals=known, sha256="0" * 64,
        )  # fmt: skip
        calls = [
            platform.predict(
                [structs.replace(linear_layer(10, 100, round(500 * ms)), path=path)
                 for path, ms in call.items()]
            )
            for call in (base, head)
        ]  # fmt: skip
        assert [call.runtime_ms for call in calls] == pytest.approx(
            [sum(base.values()), sum(head.values())]
        )
        found, ratio = (each(*calls, "runtime") for each in (difference_interval, ratio_interval))
        assert found is not None
        assert ratio is not None
        point = sum(head.values()) - sum(base.values())
        return point - found.low, found.high - point, ratio

    def test_what_the_sum_of_layers_misses_is_common_at_the_same_places(self) -> None:
        off = math.expm1(0.3)
        # What did not change cancels, the less the more has changed: 5 ms to 7, to 50.
        for ms, least, most in ((3, 2.0, 2.4), (46, 45.0, 50.0)):
            below, above, ratio = self.interval({"a": 4, "b": 1}, {"a": 4, "b": ms}, whole=0.3)
            assert below == pytest.approx(above)
            assert least * off < above < most * off
            grown = (4 + ms) / 5
            assert math.log(ratio.high / grown) == pytest.approx(
                off * (2 - 2 * math.exp(-((math.log2(grown) / 5) ** 2) / 2)) ** 0.5
            )
        # One grew by what another shrank.
        below, above, _ = self.interval({"a": 4, "b": 1}, {"a": 3, "b": 2}, whole=0.3)
        assert (below, above) == pytest.approx((0, 0), abs=1e-12)

    def test_what_it_misses_elsewhere_is_each_call_s_own(self) -> None:
        off = math.expm1(0.3)
        # a is as it was; b and c, 3 ms together, are in base alone, d of 4 ms is in head.
        below, above, _ = self.interval({"a": 1, "b": 1, "c": 2}, {"a": 1, "d": 4}, whole=0.3)
        assert (below, above) == pytest.approx((off * 25**0.5, off * 25**0.5))

    def test_a_family_s_shared_error_counts_as_far_as_its_totals_differ(self) -> None:
        shared = Spread(0.2, 0.2, 1.0)
        below, above, ratio = self.interval({"a": 4, "b": 1}, {"a": 3, "b": 4}, spread=shared)
        assert (below, above) == pytest.approx((-2 * math.expm1(-0.2), 2 * math.expm1(0.2)))
        assert (ratio.low, ratio.high) == pytest.approx((1.4, 1.4))
        # Less of it: where layers take longer than predicted, more is saved.
        below, above, _ = self.interval({"a": 4, "b": 2}, {"a": 3, "b": 1}, spread=shared)
        assert (below, above) == pytest.approx((2 * math.expm1(0.2), -2 * math.expm1(-0.2)))

    def test_a_configuration_s_own_error_cancels_with_itself_alone(self) -> None:
        own = Spread(0.2, 0.2, 0.0)
        up, down = math.expm1(0.2), -math.expm1(-0.2)
        # a is in both; b of 3 ms goes, of 4 ms comes, and they err apart.
        below, above, _ = self.interval({"a": 2, "b": 3}, {"a": 2, "b": 4}, spread=own)
        assert (below, above) == pytest.approx(
            (math.hypot(3 * up, 4 * down), math.hypot(3 * down, 4 * up))
        )
        # One more of what there is: it is off as the others are.
        below, above, _ = self.interval({"a": 2, "b": 2}, {"a": 2, "b": 2, "c": 2}, spread=own)
        assert (below, above) == pytest.approx((2 * down, 2 * up))

    def test_a_family_s_shared_error_cancels_the_less_the_more_sizes_differ(self) -> None:
        shared = Spread(0.2, 0.2, 1.0)
        widths = []
        for fading, reach in ((0.0, 1.0), (1.0, 50.0), (1.0, 5.0), (1.0, 0.5)):
            spread = structs.replace(shared, fading=fading, reach=reach)
            _, _, ratio = self.interval({"a": 4}, {"a": 8}, spread=spread)
            widths.append(math.log(ratio.high / 2))
            same = self.interval({"a": 4, "b": 1}, {"b": 1, "a": 4}, spread=spread)
            assert same[:2] == pytest.approx((0, 0), abs=1e-9)
        assert widths == sorted(widths)
        assert widths[0] == pytest.approx(0, abs=1e-9)
        # A product of twice the width has twice the operations and the weights, and writes twice.
        apart = (1 + math.log2(2) ** 2 * 2) ** 0.5
        assert widths[2] == pytest.approx(
            math.expm1(0.2) * (2 - 2 * math.exp(-apart / 5)) ** 0.5, rel=0.01
        )

    def test_other_layers_of_the_same_price_err_apart(self) -> None:
        known = Intervals(0.9, QuantitySpreads({"linear": Spread(0.2, 0.2, 0.0)}, OTHER))
        platform = FittedPlatform(
            "toy", "Toy", "float32", "eager", {}, {}, {}, at_the_roofline(), None,
            intervals=known, sha256="0" * 64,
        )  # fmt: skip
        base, head = (
            platform.predict([linear_layer(rows, 1000 // rows, 500)]) for rows in (10, 20)
        )
        assert base.runtime_ms == head.runtime_ms
        found = difference_interval(base, head, "runtime")
        assert found is not None
        assert found.high == pytest.approx(math.hypot(math.expm1(0.2), -math.expm1(-0.2)))
        assert found.low == pytest.approx(-found.high)

    def test_a_ratio_is_off_by_what_the_shares_of_its_layers_are(self) -> None:
        own = Spread(0.2, 0.2, 0.0)
        up, down = math.expm1(0.2), -math.expm1(-0.2)
        # Shares of head less shares of base.
        _, _, ratio = self.interval({"a": 2, "b": 2.5}, {"a": 2, "c": 4}, spread=own)
        shares = 2 / 6 - 2 / 4.5, -2.5 / 4.5, 4 / 6
        low = math.sqrt((shares[0] * up) ** 2 + (shares[1] * up) ** 2 + (shares[2] * down) ** 2)
        high = math.sqrt((shares[0] * down) ** 2 + (shares[1] * down) ** 2 + (shares[2] * up) ** 2)
        assert ratio.low == pytest.approx(6 / 4.5 * math.exp(-low))
        assert ratio.high == pytest.approx(6 / 4.5 * math.exp(high))


class TestPredictions:
    def test_carry_an_interval_around_every_figure(self, platform: FittedPlatform) -> None:
        found = net(platform, 100, 200)
        for value, interval in (
            (found.runtime_ms, found.runtime_interval_ms),
            (found.energy_mj, found.energy_interval_mj),
            (found.power_w, found.power_interval_w),
            *((each.runtime_ms, each.runtime_interval_ms) for each in found.layers),
            *((each.energy_mj, each.energy_interval_mj) for each in found.layers),
        ):
            assert value is not None
            assert interval is not None
            assert interval.low < value < interval.high
            assert interval.coverage == 0.9

    def test_have_none_on_a_platform_without(self, platform: FittedPlatform) -> None:
        found = net(structs.replace(platform, intervals=None), 100)
        assert found.errors is None
        assert found.energy_interval_mj is None
        assert found.layers[0].runtime_interval_ms is None

    def test_without_power_have_one_of_runtime_alone(self, platform: FittedPlatform) -> None:
        found = net(structs.replace(platform, power=None), 100)
        assert found.runtime_interval_ms is not None
        assert found.energy_interval_mj is None
        assert found.layers[0].energy_interval_mj is None
