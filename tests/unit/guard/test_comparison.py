"""Each change shows as what it is; the parts add up to the whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from msgspec import structs

from pytest_neuralpower import load_platform
from pytest_neuralpower.calibrate.fit.rows import streaming_layer
from pytest_neuralpower.errors import BaselineError
from pytest_neuralpower.guard.baseline import Totals, baseline_of
from pytest_neuralpower.guard.compare import compare, compare_predictions, judge
from pytest_neuralpower.guard.tolerance import Tolerance, merge, parse_tolerance
from pytest_neuralpower.layers import TensorSpec
from pytest_neuralpower.platform.differences import difference_interval
from pytest_neuralpower.platform.prediction import LayerPrediction, Prediction


@pytest.fixture
def against(predicted):
    """``against(base arguments, head arguments)``: both predicted, and compared."""

    def run(base, head, **changed):
        stored = baseline_of(predicted(*base[0], **base[1]), test="test_a", torch="2")
        return compare(structs.replace(stored, **changed), predicted(*head[0], **head[1]),
                       load_platform("titanx"))  # fmt: skip

    return run


def call(*args, **kwargs):
    return args, kwargs


def names(comparison):
    return {each.cause for each in comparison.causes}


def test_the_same_model_has_no_change(against):
    found = against(call([32, 32]), call([32, 32]))
    assert found.layers == ()
    assert found.energy.interval[:2] == pytest.approx((0, 0), abs=1e-9)
    assert judge(found, Tolerance(max_percent=0)).breaches == ()


def test_a_wider_convolution_is_more_operations_and_more_bytes(against):
    found = against(call([32, 64, 64]), call([32, 96, 64]))
    assert names(found) <= {"more operations", "more bytes", "costlier regime", "cheaper regime"}
    assert "more operations" in names(found)
    conv = next(each for each in found.layers if each.path == "1.narrow")
    assert conv.causes[0].detail == "+50.0% (weights 64x64x1x1 -> 96x64x1x1)"
    assert {each.path for each in found.layers} == {"1.narrow", "1.norm", "1", "1.wide"}


@pytest.mark.parametrize(
    ("base", "head"),
    [
        (call([32, 48]), call([32, 49])),
        (call([32, 48]), call([32, 48, 8])),
        (call([32, 48], batch=4), call([32, 48], batch=5)),
        (call([32, 48], ["a", "b"]), call([40, 48], ["a", "c"])),
    ],
)
def test_more_work_in_every_changed_layer_is_surely_not_cheaper(against, base, head):
    for before, after, sign in ((base, head, 1), (head, base, -1)):
        found = against(before, after)
        for total in (found.energy, found.runtime):
            low, high = sorted((sign * total.interval.low, sign * total.interval.high))
            assert low >= 0
            assert high > 0


@pytest.mark.parametrize(
    ("base", "head"),
    [
        (call([32, 48]), call([33, 47])),  # more here, less there
        (call([32, 48]), call([32, 48], dtype=torch.float16)),  # other units may be slower
    ],
)
def test_of_other_changes_work_does_not_tell(against, base, head):
    interval = against(base, head).runtime.interval
    assert interval.low < 0 < interval.high


def test_a_dense_convolution_does_not_surely_take_longer_than_a_depthwise_one(predicted):
    conv = predicted([32]).layers[0].layer
    params = {**dict(conv.params), "groups": 32}
    weight = TensorSpec((32, 2, 1, 1), "float32")
    grouped = structs.replace(conv, params=tuple(sorted(params.items())), weights=(weight,))
    platform = load_platform("titanx")
    base, head = platform.predict([grouped]), platform.predict([conv])
    stored = Totals(base.energy_mj, base.runtime_ms, base.power_w)
    found = compare_predictions(base, head, stored, base.platform_sha256)
    assert head.layers[0].layer.cost.flops > base.layers[0].layer.cost.flops
    assert found.runtime.interval == difference_interval(base, head, "runtime")
    assert found.runtime.interval.low < 0


def test_a_rename_costs_nothing(against):
    found = against(call([32, 48], ["a", "b"]), call([32, 48], ["a", "c"]))
    (cause,) = found.causes
    assert (cause.cause, cause.layers, cause.energy_mj) == ("renamed", 6, 0)
    assert cause.detail == "b.narrow -> c.narrow"
    assert judge(found, Tolerance(max_percent=0)).breaches == ()


def test_an_inserted_block_is_new_layers(against):
    found = against(call([32, 32]), call([32, 80, 32]))
    assert names(found) == {"new layer", "renamed"}
    new = next(each for each in found.causes if each.cause == "new layer")
    before, after = found.energy.base, found.energy.head
    assert new.layers == 6
    assert new.energy_mj == pytest.approx(after - before)


def test_a_removed_block_is_vanished_layers_and_an_improvement(against):
    found = against(call([32, 80, 32]), call([32, 32]))
    assert names(found) == {"vanished layer", "renamed"}
    assert found.causes[0].energy_mj < 0
    assert judge(found, Tolerance(max_percent=0, layer_max_percent=0)).breaches == ()


def test_another_batch_is_a_batch_change_of_every_layer(against):
    found = against(call([32, 48], batch=2), call([32, 48], batch=16))
    assert len(found.layers) == 12
    assert all(each.causes[0].name == "batch change" for each in found.layers)
    assert {each.causes[0].detail for each in found.layers} == {"2 -> 16"}
    assert not names(found) & {"more operations", "more bytes"}
    assert judge(found, Tolerance(max_percent=1)).breaches
    per_sample = judge(found, Tolerance(max_percent=1, per="sample")).breaches
    assert per_sample == ()  # a larger batch is cheaper for each sample


def test_work_beside_a_batch_change_is_told_per_sample(against):
    found = against(call([32, 48], batch=2), call([32, 96], batch=4))
    conv = next(each for each in found.layers if each.path == "1.narrow")
    assert [each.name for each in conv.causes][:2] == ["batch change", "more operations"]
    assert conv.causes[1].detail.startswith("+100.0%")


def test_another_dtype_is_a_dtype_change(against):
    found = against(call([32]), call([32], dtype=torch.float16))
    assert {(each.causes[0].name, each.causes[0].detail) for each in found.layers} == {
        ("dtype change", "float32 -> float16")
    }


def test_another_activation_is_another_operation(predicted):
    from torch import nn

    from pytest_neuralpower import predict

    platform = load_platform("titanx")
    image = torch.empty(1, 8, 32, 32, device="meta")
    base, head = (
        predict(nn.Sequential(nn.Conv2d(8, 8, 3), act), image, platform=platform)
        for act in (nn.ReLU(), nn.GELU())
    )
    found = compare(baseline_of(base, test="t", torch="2"), head, platform)
    (change,) = found.layers
    assert (change.causes[0].name, change.causes[0].detail) == ("other operation", "relu -> gelu")


def test_an_alignment_edge_is_a_costlier_regime_and_back_a_cheaper_one(against):
    up = against(call([128] * 3, batch=64), call([129] * 3, batch=64))
    down = against(call([129] * 3, batch=64), call([128] * 3, batch=64))
    for found, name, verb in (
        (up, "costlier regime", "leaves"),
        (down, "cheaper regime", "reaches"),
    ):
        cause = next(each for each in found.causes if each.cause == name)
        assert next(each for each in found.layers if each.path == cause.example).kind == "conv"
        assert f"{verb} a multiple of 128" in cause.detail
    assert next(each for each in up.causes if each.cause == "costlier regime").energy_mj > 0
    assert next(each for each in down.causes if each.cause == "cheaper regime").energy_mj < 0


def test_causes_add_up_to_the_change_of_the_model(against):
    found = against(call([32, 64, 128, 48], batch=2), call([32, 96, 129, 20, 48], batch=4))
    for whole, field in ((found.energy, "energy_mj"), (found.runtime, "runtime_ms")):
        before, after = whole.base, whole.head
        total = sum(getattr(each, field) for each in found.causes)
        assert total == pytest.approx(after - before)


def test_a_calibration_is_no_change_of_the_model(against, predicted):
    # The same layers, accepted when the platform said half of everything.
    layers = baseline_of(predicted([32]), test="t", torch="2").layers
    half = tuple(
        each._replace(runtime_ms=each.runtime_ms / 2, energy_mj=each.energy_mj / 2)
        for each in layers
    )
    found = against(call([32]), call([32]), layers=half, platform_sha256="0" * 64)
    assert found.recalibrated
    assert found.layers == ()
    assert found.energy.calibration == pytest.approx(found.energy.base / 2, rel=1e-5)
    assert judge(found, Tolerance(max_percent=0)).breaches == ()


def test_a_change_of_the_model_shows_beside_a_calibration(against, predicted):
    found = against(call([32]), call([64]), platform_sha256="0" * 64)
    assert found.recalibrated
    assert found.runtime.calibration == pytest.approx(0, abs=1e-6)
    assert [each.layer for each in judge(found, Tolerance(max_percent=1)).breaches] == [None, None]


def test_the_interval_of_a_small_change_is_narrow(against, predicted):
    found = against(call([32] * 8), call([32] * 7 + [64]))
    low, high, _ = found.energy.interval
    before, after = found.energy.base, found.energy.head
    assert low < after - before < high
    whole = predicted([32] * 7 + [64]).energy_interval_mj
    assert high - low < 0.5 * (whole.high - whole.low)


class TestTolerances:
    def test_growth_must_be_beyond_the_relative_and_the_absolute_one(self, against):
        found = against(call([32] * 4), call([32] * 3 + [64]))
        before, after = found.energy.base, found.energy.head
        percent, mj = 100 * (after / before - 1), after - before
        assert judge(found, Tolerance(max_percent=percent / 2, max_mj=mj / 2)).breaches
        for kept in (
            Tolerance(max_percent=percent * 1.1, max_mj=mj / 2, max_ms=1e9),
            Tolerance(max_percent=percent / 2, max_mj=mj * 1.1, max_ms=1e9),
        ):
            assert judge(found, kept).breaches == ()

    def test_an_absolute_one_alone_judges_its_quantity_alone(self, against):
        found = against(call([32]), call([64]))
        assert [each.quantity for each in judge(found, Tolerance(max_mj=0)).breaches] == ["energy"]
        assert [each.quantity for each in judge(found, Tolerance(max_ms=0)).breaches] == ["runtime"]

    def test_a_layer_may_be_too_much_where_the_call_is_not(self, against):
        found = against(call([32] * 30), call([32] * 29 + [48]))
        assert judge(found, Tolerance(max_percent=10)).breaches == ()
        breaches = judge(found, Tolerance(max_percent=10, layer_max_percent=20)).breaches
        assert {each.layer for each in breaches} == {"29.wide", "29.narrow"} or (
            "29.wide" in {each.layer for each in breaches}
        )
        assert (
            judge(
                found, Tolerance(layer_max_percent=20, layer_max_mj=1e6, layer_max_ms=1e6)
            ).breaches
            == ()
        )


def by_hand(costs, *, batch=1):
    """A call of ReLUs of as many elements as ``costs`` says by path, with its ms and mJ."""
    layers = [
        LayerPrediction(
            structs.replace(streaming_layer("activation", "relu", [(size,)], (size,)), path=path),
            ms, None, mj, "by hand",
        )
        for path, (size, ms, mj) in costs.items()
    ]  # fmt: skip
    return Prediction(tuple(layers), "toy", "0" * 64, batch=batch)


def held(base, head, **tolerance):
    """The comparison of two such calls, judged."""
    nothing = Totals(None, None, None)
    return judge(compare_predictions(base, head, nothing, "0" * 64), Tolerance(**tolerance))


def broken(comparison):
    return [(each.layer, each.quantity) for each in comparison.breaches]


class TestByHand:
    BASE = by_hand({"a": (8, 2.0, 40.0), "b": (8, 8.0, 60.0)})

    @pytest.mark.parametrize(
        ("grown", "too_much"), [(0.0, False), (2.0, False), (2.0 + 5e-8, False), (2.001, True)]
    )
    def test_growth_equal_to_the_tolerance_is_let_pass_and_any_more_is_not(self, grown, too_much):
        head = by_hand({"a": (9, 2.0, 40.0 + grown), "b": (8, 8.0, 60.0)})
        for tolerance in ({"max_percent": 2}, {"max_mj": 2, "max_ms": 0}):
            expected = [(None, "energy")] if too_much else []
            assert broken(held(self.BASE, head, **tolerance)) == expected

    def test_another_order_of_the_sum_is_no_growth_at_all(self):
        """A billionth of the cost is let pass, two are not."""
        for part, expected in ((5e-10, []), (2e-9, [(None, "energy")])):
            head = by_hand({"a": (9, 2.0, 40.0 + 100 * part), "b": (8, 8.0, 60.0)})
            assert broken(held(self.BASE, head, max_percent=0)) == expected

    def test_what_costs_nothing_before_and_after_has_not_grown(self):
        base, head = (by_hand({"a": (size, 0.0, 0.0), "b": (8, 8.0, 60.0)}) for size in (8, 9))
        assert broken(held(base, head, max_percent=0, layer_max_percent=0)) == []

    def test_per_sample_each_side_is_divided_by_its_own_batch(self):
        """Twice the cost of twice the samples is the same, the same of half of them is double."""
        double = by_hand({"a": (16, 4.0, 80.0), "b": (16, 16.0, 120.0)}, batch=4)
        base = replace(self.BASE, batch=2)
        assert broken(held(base, double, max_percent=0, per="sample")) == []
        half = held(base, replace(self.BASE, batch=1), max_percent=99.9, per="sample")
        assert broken(half) == [(None, "energy"), (None, "runtime")]
        assert [(each.before, each.after) for each in half.breaches] == [(50, 100), (5, 10)]
        assert broken(held(base, replace(self.BASE, batch=1), max_percent=0)) == []

    def test_a_layer_that_is_new_or_gone_is_judged_with_the_call_alone(self):
        more = by_hand({"a": (8, 2.0, 40.0), "b": (8, 8.0, 60.0), "c": (99, 1.0, 5.0)})
        for base, head in ((self.BASE, more), (more, self.BASE)):
            assert broken(held(base, head, layer_max_percent=0)) == []
        assert broken(held(self.BASE, more, max_percent=0)) == [(None, "energy"), (None, "runtime")]

    def test_the_layer_that_has_grown_most_comes_first_after_the_call(self):
        head = by_hand({"a": (9, 2.0, 43.0), "b": (9, 8.0, 67.0)})
        found = held(self.BASE, head, max_mj=0, layer_max_mj=0)
        assert broken(found) == [(None, "energy"), ("b", "energy"), ("a", "energy")]
        assert [each.breaches for each in found.layers] == [("energy",), ("energy",)]

    @pytest.mark.parametrize(("sha256", "calibration"), [("0" * 64, 0.0), ("1" * 64, 25.0)])
    def test_what_was_stored_differs_by_calibration_on_another_one_alone(self, sha256, calibration):
        """On the same one it differs by being rounded as it was stored."""
        stored = Totals(75.0, None, None)
        found = compare_predictions(self.BASE, self.BASE, stored, sha256)
        assert (found.energy.stored, found.energy.calibration) == (75.0, calibration)
        assert (found.runtime.stored, found.runtime.calibration) == (None, None)

    def test_a_cause_is_shown_at_the_layer_that_it_changed_most_up_or_down(self):
        head = by_hand({"a": (9, 2.0, 43.0), "b": (9, 8.0, 47.0)})
        (cause, *_) = held(self.BASE, head).causes
        assert (cause.cause, cause.layers, cause.example) == ("more bytes", 2, "b")
        assert cause.energy_mj == pytest.approx(3 - 13)


def test_a_baseline_of_other_samples_is_held_per_sample_though_its_layers_are_equal(against):
    """The same layers for half the samples: each costs double."""
    found = against(call([32], batch=4), call([32], batch=4), batch=8)
    assert found.batches == (8, 4)
    breaches = judge(found, Tolerance(max_percent=99, per="sample")).breaches
    assert [each.quantity for each in breaches] == ["energy", "runtime"]
    assert judge(found, Tolerance(max_percent=0)).breaches == ()


def test_a_tolerance_is_a_number_from_0():
    assert parse_tolerance((), {"max_percent": 0, "layer_max_ms": 0.0}, "here").max_percent == 0
    for value in (-1, -1e-9, float("nan"), float("inf"), True, "1"):
        with pytest.raises(BaselineError, match="must be a number from 0"):
            parse_tolerance((), {"max_percent": value}, "here")


def test_an_absolute_tolerance_close_by_is_not_loosened_by_a_relative_one_further_out():
    close, far = Tolerance(max_mj=1), Tolerance(max_percent=50, layer_max_percent=5, per="sample")
    assert merge([close, far]) == Tolerance(max_mj=1, layer_max_percent=5, per="sample")
