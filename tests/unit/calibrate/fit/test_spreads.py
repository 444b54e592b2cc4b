"""Distances that hold 90%: of what was never seen, not of what the interval was made from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
from flat_priors import flat_prior, flat_priors
from msgspec import structs

from pytest_neuralpower.calibrate.fit.prior import places_of, variogram
from pytest_neuralpower.calibrate.fit.recipe import Recipe
from pytest_neuralpower.calibrate.fit.rows import Row, linear_layer
from pytest_neuralpower.calibrate.fit.uncertainty import (
    FamilyFit,
    conformal_distance,
    cross_coverage,
    ends,
    family_spread,
    few_distance,
    with_intervals,
)
from pytest_neuralpower.estimators import Estimator, Physical
from pytest_neuralpower.estimators.features import FAMILIES
from pytest_neuralpower.estimators.features import columns as family_columns
from pytest_neuralpower.estimators.selection import Selection, select
from pytest_neuralpower.estimators.terms import Regime
from pytest_neuralpower.platform.catalog import load_fitted
from pytest_neuralpower.platform.intervals import Intervals
from pytest_neuralpower.platform.price import FittedPlatform

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pytest_neuralpower.estimators.features import Columns, FloatArray
    from pytest_neuralpower.platform.intervals import Intervals


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
    assert few_distance(np.array([0.1, -0.1, 0.1, -0.1, 0.1])) == pytest.approx(0.2015, abs=2e-4)
    assert conformal_distance(np.full(5, 0.1), range(5)) == pytest.approx(0.2015, abs=2e-4)
    assert few_distance(np.array([0.1])) == pytest.approx(0.6314, abs=2e-4)


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
    assert alike.fading == alike.correlation
    assert alike.reach > 2 * apart.reach


def test_errors_are_alike_as_far_as_rows_show() -> None:
    values = columns(np.geomspace(1e6, 1e10, 100))
    waves = np.sin(np.linspace(0, 12, 100))  # a period of some seven doublings of each size
    seen = variogram(waves, places_of(values), np.arange(100))
    assert seen.shape == (16,)
    assert seen[0] > 0.9
    assert seen[6] < -0.8  # half a period away
    assert seen[13] > 0.8
    lonely = variogram(waves[:1], places_of({k: v[:1] for k, v in values.items()}), np.arange(1))
    assert np.isnan(lonely).all()


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


def test_rows_at_the_ends_that_err_less_make_nothing_surer_there() -> None:
    values = columns(np.geomspace(1e6, 1e9, 9))
    found = family_spread(
        np.full(9, 0.2), values, range(9), outside=np.full(9, 0.05), outside_groups=range(9)
    )
    assert (found.inside, found.outside) == (0.2, 0.2)


def test_rows_of_one_shape_are_no_neighbours_that_err_alike() -> None:
    """Each of 100 shapes is measured four times and errs by its own: nothing is in common."""
    residuals = np.repeat(np.random.default_rng(2).normal(0, 0.2, 100), 4)
    shapes = np.repeat(np.arange(100), 4).tolist()
    values = columns(np.repeat(np.geomspace(1e6, 1e10, 100), 4))
    assert family_spread(residuals, values, shapes, outside=None).correlation < 0.35


#: Linear layers of 2 x 64 x 64 x width FLOPs, at 1 GFLOP/s but for how far (log) they are off.
NETWORKS = """\
import math
from typing import NamedTuple
from torch import nn

class Network(NamedTuple):
    width: int
    off: float
    input_shape: tuple = (64, 64)

    @property
    def paper_ms(self):
        return 2 * 64 * 64 * self.width / 1e6 * math.exp(self.off)

    def factory(self):
        return nn.Linear(64, self.width)

NETWORKS = (Network(32, 0.1), Network(64, -0.1), Network(96, 1.0))
"""


#: Everything by its operations, at 1 GFLOP/s.
HARDWARE = {"peak_gflops": 1.0, "bandwidth_gbs": 1e9, "launch_ms": 0.0}


class Said(Estimator):
    """Runtime at a rate that is given, not fitted, or power: ``rate x flops^2 / runtime_ms``."""

    name: ClassVar[str] = "said"

    rate: float
    power: bool = False

    def _fit(self, columns: Columns, target: FloatArray) -> None:
        pass

    def predict(self, columns: Columns) -> FloatArray:
        work = columns["flops"]
        return np.asarray(self.rate * (work**2 / columns["runtime_ms"] if self.power else work))


class TestWithIntervals:
    """Ten linear layers that take e^0.1 times as long as was predicted without their shapes, at
    e^0.2 times the power."""

    LAYERS = tuple(linear_layer(64, 64, 32 * number) for number in range(1, 11))

    def fit(self, *, power: bool = False, energy: bool = False) -> FamilyFit:
        values = family_columns("linear", self.LAYERS)
        predicted_ms = values["flops"] / 1e6
        predicted_w = 1e-9 * values["flops"] ** 2 / predicted_ms
        runtime_ms, power_w = predicted_ms * np.exp(0.1), predicted_w * np.exp(0.2)

        def selected(make: Callable[[], Estimator], held_out: FloatArray) -> Selection:
            return Selection(make(), {}, 10, 10, 10, make, np.arange(10), {}, held_out)

        rows = [
            Row(layer, ms, watts)
            for layer, ms, watts in zip(
                self.LAYERS, runtime_ms.tolist(), power_w.tolist(), strict=True
            )
        ]
        return FamilyFit(
            rows,
            values,
            runtime_ms,
            selected(lambda: Said(1e-6), predicted_ms),
            power=selected(lambda: Said(1e-9, power=True), predicted_w) if power else None,
            energy=selected(lambda: Said(1e-6), predicted_w * predicted_ms) if energy else None,
        )

    def intervals(self, fits: Mapping[str, FamilyFit], **changed: Any) -> Intervals:
        recipe = Recipe("mine", "as it runs", "Mine", totals="in place")
        platform = structs.replace(load_fitted("titanx"), **changed)
        found = with_intervals(platform, recipe, fits).intervals
        assert found is not None
        return found

    @pytest.mark.parametrize("quantity", ["power", "energy"])
    def test_energy_errs_by_power_and_the_predicted_runtime_together(self, quantity: str) -> None:
        found = self.intervals({"linear": self.fit(**{quantity: True})})
        assert found.power is not None
        assert found.energy is not None
        inside = [
            spreads.families["linear"].inside
            for spreads in (found.runtime, found.power, found.energy)
        ]
        assert inside == pytest.approx([0.1, 0.2, 0.3], abs=2e-4)

    def test_a_family_without_rows_is_as_sure_as_its_prior_on_other_devices(self) -> None:
        """Off by 0.3 from device to device and by 0.4 on one: by 0.5 in all, of which 90% are
        within 1.645 times; what all its layers have in common is 0.09 of 0.25."""
        found = self.intervals({"linear": self.fit()}, inferred=flat_priors(HARDWARE)).runtime
        assert set(found.families) == set(FAMILIES)
        prior = structs.astuple(found.families["pool"])
        assert prior == pytest.approx((0.8225, 0.8225, 0.36, 0.0, 1.0), abs=2e-4)
        assert found.families["linear"].inside == pytest.approx(0.1, abs=2e-4)
        assert found.other is None

    def test_what_is_alike_on_one_device_fades(self) -> None:
        """Half of what the prior is off on one device, 0.64 of the whole, nearly equal sizes share
        beyond the 0.36 that all layers do."""
        prior = structs.replace(flat_prior(HARDWARE), alike=0.5, reach=3.0)
        priors = {
            name: structs.replace(each, prior=prior) for name, each in flat_priors(HARDWARE).items()
        }
        found = self.intervals({"linear": self.fit()}, inferred=priors).runtime.families["pool"]
        assert (found.correlation, found.fading, found.reach) == pytest.approx((0.68, 0.32, 3.0))

    def test_power_of_whole_networks_is_surer_than_of_their_layers(self) -> None:
        """Off by e^0.1 and e^-0.1, networks are known to 2.920 x 0.1; a layer that is one of four
        errs twice as far."""
        networks = {
            name: {"measured_w": 100 * np.exp(off), "held_out_w": 100.0}
            for name, off in (("a", 0.1), ("b", -0.1))
        }
        known = {"power": {"networks": networks, "effective_layers": 4.0}}
        found = self.intervals({"linear": self.fit()}, accuracy=known, tiers={"power": "public"})
        assert found.power is not None
        assert found.power.other is not None
        other = structs.astuple(found.power.other)
        assert other == pytest.approx((0.584, 0.584, 0.25, 0.0, 1.0), abs=2e-4)

    def test_power_of_other_devices_is_as_sure_as_the_worst_of_them_was(self) -> None:
        known = {"power": {"devices": {"A": 20.0}, "mape": 20.0, "factor": np.e, "alike": 0.3}}
        found = self.intervals({"linear": self.fit()}, accuracy=known)
        assert found.power is not None
        assert found.power.other is not None
        assert structs.astuple(found.power.other) == (1.0, 1.0, 0.3, 0.0, 1.0)

    def test_the_whole_is_what_measured_networks_err_by_beyond_their_layers(
        self, tmp_path: Path
    ) -> None:
        """Networks of one layer, known to e^0.1: two are off by that, one by e.

        Student's t of 3 degrees of freedom at 95% is 2.3534, so that networks are known to 2.3534
        x sqrt((0.01 + 0.01 + 1) / 3) = 1.3722, of which sqrt(1.3722^2 - 0.01) is not their
        layers'. Without the third they would be known to 2.920 x 0.1, too little to hold it.
        """
        (tmp_path / "nets.py").write_text(NETWORKS)
        recipe = Recipe("mine", "as it runs", "Mine", networks="nets.py", folder=tmp_path)
        platform = FittedPlatform(
            "mine", "Mine", "float32", "as it runs", {}, HARDWARE, {}, flat_priors(HARDWARE), None
        )
        found = with_intervals(platform, recipe, {"linear": self.fit()})
        assert found.intervals is not None
        assert found.intervals.runtime.model_error == pytest.approx(1.3686, abs=1e-3)
        assert found.accuracy["intervals"]["networks"]["runtime"] == {"inside": 2, "networks": 3}
