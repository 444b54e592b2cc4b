"""Timing in place: every row is a layer of the trace, and the layers add up to the network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_neuralpower.calibrate.fit.rows import SENTINEL
from pytest_neuralpower.calibrate.measure.meters.base import Reading
from pytest_neuralpower.calibrate.measure.run_trial import (
    list_calls,
    repeated_call,
    run_trial,
    time_calls,
)
from pytest_neuralpower.calibrate.measure.timers import CpuTimer
from pytest_neuralpower.calibrate.measure.trial import Bench, MeasuredHardware, Trial, TrialSkipped

BENCH = Bench("cpu", "float32", MeasuredHardware(100.0, 10.0))


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.act = nn.ReLU6()

    def forward(self, x):
        x = self.act(self.first(x))
        for _ in range(2):
            x = x + self.act(self.second(x))
        return x.flatten(2).transpose(1, 2).softmax(-1)


@pytest.fixture
def network():
    return Blocks().eval(), (torch.randn(1, 3, 24, 24),)


class TestCalls:
    def test_every_layer_of_the_trace_is_a_call(self, network):
        with torch.inference_mode():
            traced, calls, _ = list_calls(*network)
        assert [layer for each in calls.layers for layer in each] == list(traced)

    def test_every_call_gets_a_time(self, network):
        with torch.inference_mode():
            _, calls, _ = list_calls(*network)
            times = time_calls(*network, calls, CpuTimer())
        assert len(times) == len(calls.functions)
        assert all(time.runtime_ms > 0 for time in times)

    def test_a_network_that_calls_something_else_next_time_is_skipped(self):
        class Fickle(nn.Module):
            runs = 0

            def forward(self, x):
                self.runs += 1
                return x.relu() if self.runs < 3 else x.tanh().relu()

        model, x = Fickle().eval(), torch.randn(4)
        _, calls, _ = list_calls(model, (x,))
        time_calls(model, (x,), calls, CpuTimer())
        with pytest.raises(TrialSkipped, match="different calls"):
            time_calls(model, (x,), calls, CpuTimer())


@pytest.fixture(scope="module")
def rows():
    return list(run_trial(Trial(SENTINEL, "network", SENTINEL, 0, 3), BENCH))


class TestTrial:
    def test_rows_carry_their_trial(self, rows):
        found = {(row.trial, row.network, row.pass_) for row in rows}
        assert found == {("sentinel/3", SENTINEL, 3)}

    def test_one_row_is_the_whole_network(self, rows):
        (whole,) = (row for row in rows if row.whole)
        assert whole.calls == sum(row.calls for row in rows if not row.whole)
        assert whole.wall_ms > 0

    def test_layers_add_up_to_about_the_whole(self, rows):
        (whole,) = (row for row in rows if row.whole)
        total = sum(row.runtime_ms * row.calls for row in rows if not row.whole)
        assert 0.5 < total / whole.runtime_ms < 1.5

    def test_equal_layers_are_one_row(self, rows):
        layers = [row.layer.configuration for row in rows if not row.whole]
        assert len(set(layers)) == len(layers)

    def test_the_speed_of_the_processor_is_noted(self, rows):
        assert all(row.probe_ms > 0 for row in rows)

    def test_threads_and_gradients_are_as_before(self):
        before = torch.get_num_threads()
        list(run_trial(Trial(SENTINEL, "network", SENTINEL, 0), BENCH))
        assert torch.get_num_threads() == before
        assert torch.is_grad_enabled()


class SteadyMeter:
    """A meter at the edge: it runs the step and says 12.5 W."""

    name, source, method, notes = "none", "estimated", "", ()

    def __init__(self):
        self.steps = 0

    def measure(self, step, *, seconds, settle_s):  # noqa: ARG002 - as a meter takes it
        step()
        self.steps += 1
        return Reading(seconds=seconds, steps=1, power_w=12.5)


class TestMetered:
    @pytest.mark.parametrize(("what", "index"), [("layer", 0), ("whole", -1)])
    def test_gives_power_and_the_time_of_one_call(self, what, index):
        meter = SteadyMeter()
        (row,) = run_trial(Trial(SENTINEL, what, SENTINEL, 0, 1, index), BENCH, meter=meter)
        assert row.power_w == 12.5
        assert row.runtime_ms > 0
        assert row.whole is (what == "whole")
        assert meter.steps == 1

    def test_needs_a_meter(self):
        with pytest.raises(TrialSkipped, match="no meter"):
            list(run_trial(Trial(SENTINEL, "whole", SENTINEL, 0), BENCH))

    def test_a_layer_alone_computes_what_it_did_in_place(self, network):
        model, inputs = network
        with torch.inference_mode():
            traced, calls, _ = list_calls(model, inputs)
            call = repeated_call(model, inputs, calls, traced[0], cache_bytes=1e5)
            expected = model.first(*inputs)
            for _ in range(5):  # whichever copy of the operands has its turn
                assert torch.equal(call(), expected)
