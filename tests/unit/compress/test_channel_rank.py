"""What removing a channel costs its readers, held against removing it and solving again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_neuralpower.compress.channel_pruner import Reader, rank
from pytest_neuralpower.compress.channels import Slot
from pytest_neuralpower.compress.least_squares import (
    Gram,
    relative_error,
    solve_kept,
    unfolded_input,
    unfolded_output,
)

RIDGE = 1e-9  # so small that the error alone is what removal costs

CASES = {
    "conv": (nn.Conv2d(4, 3, 3), (6, 4, 7, 7), [[0], [1], [2], [3]]),
    "grouped": (nn.Conv2d(6, 4, 3, groups=2), (6, 6, 7, 7), [[0, 3], [1, 4], [2, 5]]),
    "after flatten": (nn.Linear(12, 5), (60, 12), [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]),
}


@pytest.fixture(params=list(CASES))
def reader(request):
    layer, shape, indices = CASES[request.param]
    torch.manual_seed(0)
    given = torch.randn(shape)
    rows = unfolded_input(layer, given)
    rows = torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], 2)
    wanted = unfolded_output(layer, layer(given)).detach()
    gram = Gram.empty(rows.shape[0], rows.shape[2], wanted.shape[2])
    gram.add(rows, wanted + 0.1 * torch.randn_like(wanted))
    slot = Slot("", "in", "conv", torch.tensor(indices).numpy())
    return Reader.of(layer, slot, gram, ridge=RIDGE)


def error_without(reader, units, *, refit):
    """The error when the columns of these units are zero, all else solved for or left."""
    kept = torch.ones_like(reader.prior, dtype=torch.bool)
    size = reader.prior.shape[2]
    for column in reader.columns[units].flatten().tolist():
        kept[column // size, :, column % size] = False
    if refit:
        weights = solve_kept(reader.gram, reader.prior, kept, ridge=RIDGE)[0]
    else:
        weights = torch.where(kept, reader.prior, 0.0)
    return relative_error(reader.gram, weights)


@pytest.mark.parametrize("refit", [True, False])
def test_the_cost_of_each_unit_is_what_the_error_rises_by(reader, refit):
    units = len(reader.columns)
    kept = torch.ones(units, dtype=torch.bool)
    kept[1] = False
    cost, error = reader.state(kept, refit=refit)
    assert error == pytest.approx(error_without(reader, [1], refit=refit), abs=1e-9)
    for unit in kept.nonzero()[:, 0].tolist():
        rise = error_without(reader, [1, unit], refit=refit) - error
        assert float(cost[unit]) == pytest.approx(rise, rel=1e-4, abs=1e-9)


def test_removes_the_cheapest_of_all_units_first(reader):
    units = len(reader.columns)
    ranked = rank([reader], units, range(units - 1, 0, -1), refit=True)
    alone = [error_without(reader, [unit], refit=True) for unit in range(units)]
    assert ranked.order[0] == min(range(units), key=alone.__getitem__)
    assert ranked.errors[units - 1] == pytest.approx(min(alone), rel=1e-6)
    assert sorted(ranked.order) == list(range(units))
    assert ranked.kept(2) == tuple(sorted(ranked.order[-2:]))


def test_several_readers_are_heard_together(reader):
    units = len(reader.columns)
    once = rank([reader], units, [1], refit=True)
    twice = rank([reader, reader], units, [1], refit=True)
    assert twice.errors[1] == pytest.approx(2 * once.errors[1])


def test_by_magnitude_the_smallest_go_first(reader):
    units = len(reader.columns)
    sizes = torch.arange(units, 0, -1)
    ranked = rank([reader], units, [1], refit=False, sizes=sizes)
    assert ranked.order == tuple(range(units - 1, -1, -1))
    assert ranked.kept(1) == (0,)
    assert ranked.errors[1] == pytest.approx(error_without(reader, [*range(1, units)], refit=False))
