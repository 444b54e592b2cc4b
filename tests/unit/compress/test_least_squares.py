"""The closed form agrees with NumPy, and its saliency with what removal really costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pytest_neuralpower.compress.least_squares import (
    Gram,
    matrix_of,
    relative_error,
    solve_kept,
    unfolded_input,
    unfolded_output,
    write_matrix,
)

RIDGE = 1e-3


@pytest.fixture
def problem():
    """Rows (groups 2, rows 200, unknowns 7), outputs (2, 200, 3), prior, and a mask."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 200, 7, generator=generator, dtype=torch.float64)
    y = torch.randn(2, 200, 3, generator=generator, dtype=torch.float64)
    y += x @ torch.randn(2, 7, 3, generator=generator, dtype=torch.float64)
    prior = torch.randn(2, 3, 7, generator=generator, dtype=torch.float64)
    kept = torch.rand(2, 3, 7, generator=generator) < 0.6
    kept[0, 0] = True
    kept[1, 2] = False
    gram = Gram.empty(2, 7, 3)
    gram.add(x, y)
    return x, y, prior, kept, gram


def expected(x, y, prior, kept):
    """The same by NumPy, one output at a time."""
    weights, costs = np.zeros(prior.shape), np.zeros(prior.shape[:2])
    for group, output in np.ndindex(*costs.shape):
        a, mask = x[group].numpy(), kept[group, output].numpy()
        pull = np.sqrt(RIDGE * (a**2).sum(0).mean())
        rows = np.vstack([a[:, mask], pull * np.eye(mask.sum())])
        right = np.concatenate(
            [y[group, :, output].numpy(), pull * prior[group, output].numpy()[mask]]
        )
        if mask.any():
            solved = np.linalg.lstsq(rows, right, rcond=None)[0]
            weights[group, output, mask] = solved
            costs[group, output] = ((rows @ solved - right) ** 2).sum()
        else:
            costs[group, output] = (right**2).sum()
    return weights, costs


def test_solves_the_kept_weights_of_every_output_as_numpy_does(problem):
    x, y, prior, kept, gram = problem
    weights, _ = solve_kept(gram, prior, kept, ridge=RIDGE)
    np.testing.assert_allclose(weights, expected(x, y, prior, kept)[0], atol=1e-9)


def test_one_factorisation_for_all_outputs_gives_the_same_as_one_each(problem):
    x, y, prior, _, gram = problem
    everything = torch.ones_like(prior, dtype=torch.bool)
    weights, saliency = solve_kept(gram, prior, everything, ridge=RIDGE)
    np.testing.assert_allclose(weights, expected(x, y, prior, everything)[0], atol=1e-9)
    almost = everything.clone()
    almost[:, 1, 0] = False  # the other outputs now go the way of masks
    other, other_saliency = solve_kept(gram, prior, almost, ridge=RIDGE)
    torch.testing.assert_close(other[:, 0], weights[:, 0])
    torch.testing.assert_close(other_saliency[:, 2], saliency[:, 2])


def test_saliency_is_what_removing_one_weight_and_solving_again_costs(problem):
    x, y, prior, kept, gram = problem
    prior = torch.zeros_like(prior)  # towards zero, removing a weight leaves the pull as it was
    _, saliency = solve_kept(gram, prior, kept, ridge=RIDGE)
    before = expected(x, y, prior, kept)[1]
    for group, output, unknown in kept.nonzero().tolist():
        without = kept.clone()
        without[group, output, unknown] = False
        after = expected(x, y, prior, without)[1]
        assert saliency[group, output, unknown] == pytest.approx(
            after[group, output] - before[group, output], rel=1e-6
        )


def test_relative_error_is_that_of_the_rows(problem):
    x, y, prior, _, gram = problem
    wrong = (x @ prior.mT - y).square().sum() / y.square().sum()
    assert relative_error(gram, prior) == pytest.approx(float(wrong), rel=1e-9)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (2, 4, 11, 9)),
        (nn.Conv2d(4, 4, (3, 5), padding="same", groups=4, bias=False), (2, 4, 6, 5)),
        (nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"), (2, 3, 6, 5)),
        (nn.Conv1d(4, 6, 5, stride=2, padding=2, groups=2), (2, 4, 13)),
        (nn.Linear(5, 3), (2, 7, 5)),
    ],
    ids=["grouped", "depthwise-same", "reflect", "conv1d", "tokens"],
)
def test_unfolded_input_times_the_matrix_is_the_layer(layer, shape):
    given = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rows = unfolded_input(layer, given).double()
    if layer.bias is not None:
        rows = torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], 2)
    made = unfolded_output(layer, layer(given)).double()
    torch.testing.assert_close(rows @ matrix_of(layer).mT, made, atol=1e-5, rtol=1e-5)


def test_a_matrix_written_back_changes_nothing_else():
    layer = nn.Conv2d(4, 6, 3, groups=2)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    write_matrix(layer, matrix_of(layer))
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name])
