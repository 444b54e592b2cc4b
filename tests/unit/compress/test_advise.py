"""Advice: edges of plateaus, read off a platform's prices, and what is said of them."""

import dataclasses

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch import nn

from pytest_neuralpower import advise, load_platform, trace
from pytest_neuralpower.compress.width_prices import Curve, edges, expansion, shrinkage
from pytest_neuralpower.errors import BudgetError
from pytest_neuralpower.platform.prediction import Host

pytest.importorskip("torch_pruning")


def curve(price, widths, now):
    widths = np.array(widths)
    return Curve(
        widths, np.array([float(price(width)) for width in widths]), list(widths).index(now)
    )


def staircase(width):
    """A price that rises by 10 at every multiple of 16."""
    return 10 * -(-width // 16)


class TestThePlateaus:
    def test_end_where_the_next_channel_costs_a_jump(self):
        steps = curve(staircase, range(20, 76), 40)
        assert [int(steps.widths[place]) for place in edges(steps)] == [32, 48, 64]

    def test_begin_where_a_channel_more_costs_less(self):
        tooth = curve(lambda width: 10 + 5 * (width % 8 > 0), range(10, 31), 19)
        assert [int(tooth.widths[place]) for place in edges(tooth)] == [16, 24]

    def test_are_none_on_a_straight_line(self):
        assert edges(curve(lambda width: 3 * width + 7, range(20, 60), 40)) == []

    def test_are_not_of_one_channel_each(self):
        assert edges(curve(lambda width: width**2, range(20, 60), 40)) == []

    @pytest.mark.parametrize(("now", "most", "wanted"), [(33, 4, 32), (37, 4, None), (37, 8, 32)])
    def test_are_shrunk_to_within_reach(self, now, most, wanted):
        steps = curve(staircase, range(17, 60), now)
        place = shrinkage(steps, most)
        assert (None if place is None else int(steps.widths[place])) == wanted

    @pytest.mark.parametrize(
        ("now", "most", "wanted"), [(45, 4, 48), (33, 4, None), (32, 15, None)]
    )
    def test_are_expanded_to_where_that_is_free(self, now, most, wanted):
        steps = curve(staircase, range(17, 80), now)
        place = expansion(steps, most)
        assert (None if place is None else int(steps.widths[place])) == wanted


def odd(width=33, second=None):
    """Two convolutions just past the 32 channels that a warp of the Titan X has."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, second or width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(second or width, 8, 3, padding=1),
    ).eval()


INPUTS = torch.empty(8, 3, 64, 64)


class TestAdvise:
    @pytest.mark.parametrize("platform", ["titanx", "cpu-raptorlake"])
    def test_predicts_what_the_changed_model_is_predicted_to_cost(self, platform):
        advised = advise(odd(), INPUTS, platform)
        (first, *_) = advised.advice
        assert (first.action, first.width, first.to_width) == ("shrink", 33, 32)
        assert advised.widths == {"3": 32}
        after = load_platform(platform).predict(trace(odd(second=32), INPUTS))
        assert advised.after.energy_mj == pytest.approx(after.energy_mj)
        assert advised.after.runtime_ms == pytest.approx(after.runtime_ms)
        assert first.energy_change_mj == pytest.approx(after.energy_mj - advised.before.energy_mj)
        count = sum(each.numel() for each in odd(second=32).parameters())
        assert (advised.parameters_after, advised.parameters + first.parameters_change) == (
            count,
            count,
        )
        assert advised.after.energy_mj < advised.before.energy_mj

    def test_says_whether_a_budget_is_met(self):
        free = advise(odd(), INPUTS, "titanx")
        between = (free.before.energy_mj + free.after.energy_mj) / 2
        met = advise(odd(), INPUTS, "titanx", f"{between} mJ")
        missed = advise(odd(), INPUTS, "titanx", f"{between / 100} mJ")
        assert (met.meets, missed.meets, free.meets) == (True, False, None)
        assert not any(each.meets for each in missed.advice)

    def test_promises_no_time_to_a_call_that_waits_for_its_host(self):
        platform = load_platform("titanx")
        alone, *_ = advise(odd(), INPUTS, platform).advice
        waits = advise(odd(), INPUTS, replace(platform, host=Host(layer_ms=10.0)))
        first, *_ = waits.advice
        assert (first.group, first.to_width) == (alone.group, alone.to_width)
        assert alone.runtime_change_ms < first.runtime_change_ms == 0.0
        assert "runtime +0.0%" in first.text(waits.before)
        # Saved is what the layers draw beyond what the device draws while it waits.
        assert alone.energy_change_mj < first.energy_change_mj < 0.0
        saved = waits.after.energy_mj - waits.before.energy_mj
        assert first.energy_change_mj == pytest.approx(saved)

    def test_moves_no_width_further_than_asked(self):
        advised = advise(odd(37), INPUTS, "titanx", channels=2)
        assert not any(abs(each.width - each.to_width) > 2 for each in advised.advice)

    def test_is_silent_where_the_widths_are_on_edges(self):
        advised = advise(odd(32), INPUTS, "titanx")
        assert not [each for each in advised.advice if each.action == "shrink"]
        assert advised.after is advised.before

    def test_says_what_does_not_pay_beside_what_does(self):
        """Widths that are worth expanding and none worth shrinking contradict no line."""
        advised = advise(odd(), INPUTS, "titanx", "0.001 µJ")
        expand = dataclasses.replace(advised.advice[0], action="expand")
        alone = dataclasses.replace(advised, advice=(expand,), widths={})
        assert alone.lines()[1:] == ["no shrinking saves: the budget needs more than advice"]
        met = dataclasses.replace(alone, advice=(dataclasses.replace(expand, meets=True),))
        assert met.lines()[1:] == ["no shrinking saves"]

    def test_takes_a_platform_that_knows_energy_alone(self):
        advised = advise(odd(9), torch.empty(1, 3, 8, 8), "eyeriss", channels=1)
        assert advised.before.runtime_ms is None
        assert advised.examined == 2
        assert all(each.known == "computed" for each in advised.advice)

    @pytest.mark.parametrize(
        ("widths", "known"),
        [([16, 32, 33, 64], "measured"), ([16, 32, 64], "interpolated"), ([], "interpolated")],
    )
    def test_tells_an_edge_between_measured_widths_from_one_of_the_fit(self, widths, known):
        titanx = load_platform("titanx")
        rows = {"conv": {"cin": widths, "cout": widths}}
        platform = replace(titanx, provenance={**titanx.provenance, "widths": rows})
        bare = nn.Sequential(
            nn.Conv2d(16, 33, 3, padding=1), nn.ReLU(), nn.Conv2d(33, 64, 3, padding=1)
        )
        (first, *_) = advise(bare, torch.empty(8, 16, 64, 64), platform).advice
        assert (first.width, first.to_width, first.known) == (33, 32, known)

    def test_names_what_no_effort_was_left_for(self):
        advised = advise(odd(), INPUTS, "titanx", effort=0)
        assert set(advised.left) == {"0", "3", "5"}
        assert advised.advice == ()

    def test_changes_nothing(self):
        model = odd()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        advise(model, INPUTS, "titanx")
        after = model.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], before[name]) for name in before)

    def test_refuses_a_budget_that_the_platform_cannot_judge(self):
        with pytest.raises(BudgetError, match="knows energy alone"):
            advise(odd(9), torch.empty(1, 3, 8, 8), "eyeriss", "1 ms")
