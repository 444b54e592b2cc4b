"""Plans: made again from their recipe, within the time and the memory, passes spread."""

from __future__ import annotations

import msgspec
import pytest
import torch

from pytest_neuralpower.calibrate.measure.networks import sketch
from pytest_neuralpower.calibrate.measure.plan import PlanRecipe, make_plan
from pytest_neuralpower.calibrate.measure.trial import MeasuredHardware, Trial
from pytest_neuralpower.tracing import trace

HARDWARE = MeasuredHardware(peak_gflops=100.0, bandwidth_gbs=10.0)


def plan(**options):
    given = {
        "seed": 5, "device": "cpu", "dtype": "float32", "hardware": HARDWARE,
        "memory_bytes": 4 << 30, "minutes": 0.15,
    }  # fmt: skip
    return make_plan(PlanRecipe(**{**given, **options}))


@pytest.fixture(scope="module")
def short():
    return plan()


class TestRecipe:
    def test_makes_the_same_plan_again(self, short):
        again = make_plan(msgspec.json.decode(msgspec.json.encode(short.recipe), type=PlanRecipe))
        assert again.trials == short.trials
        assert again.closing == short.closing

    def test_another_seed_draws_others(self, short):
        assert plan(seed=6).trials != short.trials

    def test_a_trial_is_a_line_of_json(self, short):
        for trial in short.trials:
            assert msgspec.json.decode(msgspec.json.encode(trial), type=Trial) == trial


class TestOrder:
    def test_every_network_is_in_every_pass_once(self, short):
        passes = {}
        for trial in short.trials:
            if not trial.is_sentinel:
                passes.setdefault(trial.pass_, []).append(trial.network)
        first, *others = passes.values()
        assert len(set(first)) == len(first)
        assert all(sorted(each) == sorted(first) for each in others)
        assert others
        assert others[0] != first  # each in an order of its own

    def test_passes_follow_one_another(self, short):
        numbers = [trial.pass_ for trial in short.trials if not trial.is_sentinel]
        assert numbers == sorted(numbers)

    def test_begins_and_ends_with_a_sentinel(self, short):
        assert short.trials[0].is_sentinel
        assert short.trials[-1].is_sentinel

    def test_ids_are_unique(self, short):
        ids = [trial.id for trial in (*short.trials, *short.closing)]
        assert len(set(ids)) == len(ids)

    def test_closes_with_networks_that_were_measured(self, short):
        measured = {(trial.network, trial.seed) for trial in short.trials}
        assert short.closing
        assert all((trial.network, trial.seed) in measured for trial in short.closing)


class TestBounds:
    def test_more_minutes_measure_more(self, short):
        longer = plan(minutes=0.4)
        assert len(longer.trials) > len(short.trials)
        assert short.expected_s <= 0.15 * 60
        assert longer.expected_s <= 0.4 * 60

    def test_networks_fit_half_of_the_memory(self):
        bound = 64 << 20
        for trial in plan(memory_bytes=bound).trials:
            if trial.is_sentinel:
                continue
            model, inputs = sketch(trial.template, trial.seed, dtype=torch.float32)
            weights = sum(each.numel() * 4 for each in model.parameters())
            largest = max(layer.cost.bytes_out for layer in trace(model, *inputs))
            assert weights + largest <= bound / 2

    def test_a_faster_device_gets_larger_networks(self, short):
        faster = plan(hardware=MeasuredHardware(peak_gflops=20_000.0, bandwidth_gbs=2_000.0))
        assert _operations(faster) > 5 * _operations(short)


def _operations(found):
    trials = [trial for trial in found.trials if trial.pass_ == 1 and not trial.is_sentinel]
    traces = [
        trace(model, *inputs)
        for model, inputs in (
            sketch(trial.template, trial.seed, dtype=torch.float32) for trial in trials
        )
    ]
    return max(traced.flops for traced in traces)


class TestPower:
    def test_without_a_meter_only_networks_are_timed(self, short):
        assert {trial.what for trial in short.trials} == {"network"}

    def test_with_one_layers_and_whole_networks_are_metered(self):
        found = plan(with_power=True, minutes=1.5)
        kinds = [trial.what for trial in found.trials]
        assert kinds.count("layer") > kinds.count("whole") > 0
        assert found.expected_s <= 90

    def test_metered_layers_exist(self):
        for trial in plan(with_power=True, minutes=1.5).trials:
            if trial.what == "layer":
                model, inputs = sketch(trial.template, trial.seed, dtype=torch.float32)
                assert 0 <= trial.index < len(trace(model, *inputs))
