"""Removing by output error, and restoring a few at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pytest_neuralpower.compress.least_squares import Gram, relative_error
from pytest_neuralpower.compress.weight_pruner import LayerWeights, exchanged, points

UNKNOWNS, OUTPUTS = 40, 6


@pytest.fixture(params=[1e-6, None], ids=["refitted", "fixed"])
def source(request):
    """Inputs that are much alike, so that weights can stand in for each other."""
    generator = torch.Generator().manual_seed(5)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shared = normal(1, 600, 8)
    x = shared @ normal(1, 8, UNKNOWNS) + 0.3 * normal(1, 600, UNKNOWNS)
    prior = normal(1, OUTPUTS, UNKNOWNS)
    gram = Gram.empty(1, UNKNOWNS, OUTPUTS)
    gram.add(x, x @ prior.mT)
    return LayerWeights(gram, prior, UNKNOWNS, ridge=request.param)


def everything():
    return torch.ones(1, OUTPUTS, UNKNOWNS, dtype=torch.bool)


@pytest.mark.parametrize("criterion", ["magnitude", "output_error"])
def test_points_have_the_densities_asked_for_and_their_true_error(source, criterion):
    found = list(points(source, everything(), [0.6, 0.3, 0.1], criterion))
    for point, density in zip(found, [0.6, 0.3, 0.1], strict=True):
        assert point.density == pytest.approx(density, abs=1 / everything().numel())
        assert int(point.kept.sum()) == round(density * everything().numel())
        weights = source.under(point.kept).weights
        assert not weights[~point.kept].any()
        assert point.error == pytest.approx(relative_error(source.gram, weights))
    assert not (found[1].kept & ~found[0].kept).any()


def test_output_error_keeps_the_output_better_than_magnitude(source):
    """Where inputs are alike, size says little of what the output misses."""
    chosen, largest = (
        list(points(source, everything(), [0.7, 0.5, 0.3], criterion))[-1]
        for criterion in ("output_error", "magnitude")
    )
    assert exchanged(source, chosen.kept).error < 0.9 * largest.error


def test_restoring_a_few_at_a_time_helps_where_all_at_once_hurts(source):
    *_, start = points(source, everything(), [0.3], "magnitude")
    better = exchanged(source, start.kept)
    assert int(better.kept.sum()) == int(start.kept.sum())
    assert better.error < start.error
    # all at once: of kept and removed weights together, those with the largest worth stay
    state = source.under(start.kept)
    worth = torch.where(start.kept, state.removal, state.gain).flatten()
    at_once = torch.zeros(worth.numel(), dtype=torch.bool)
    at_once[worth.topk(int(start.kept.sum())).indices] = True
    weights = source.under(at_once.view(start.kept.shape)).weights
    assert better.error < relative_error(source.gram, weights)


def test_weights_are_restored_only_while_the_error_falls():
    """Two removed inputs are the same: each alone makes the output whole, both overshoot by it.

    The output is the shared input, and of 40 inputs apart 0.1, 0.2 and 38 times 0.5. Two at a time
    restored would leave as much over as is missing now, and take 0.1 and 0.2 away; one at a time
    leaves 0.1 missing, of a square of 1 + 0.01 + 0.04 + 38 x 0.25 = 10.55.
    """
    apart = [0.1, 0.2, *[0.5] * 38]
    inputs = torch.eye(41, dtype=torch.float64)[:, [0, *range(41)]].unsqueeze(0)
    output = torch.tensor([1.0, *apart], dtype=torch.float64).view(1, 41, 1)
    gram = Gram.empty(1, 42, 1)
    gram.add(inputs, output)
    prior = torch.tensor([1.0, 1.0, *apart], dtype=torch.float64).view(1, 1, 42)
    source = LayerWeights(gram, prior, 42, ridge=None)
    kept = torch.tensor([False, False] + [True] * 40).view(1, 1, 42)
    better = exchanged(source, kept)
    assert better.error == pytest.approx(0.01 / 10.55)
    assert int(better.kept[0, 0, :2].sum()) == 1
    assert better.kept[0, 0, 2:].tolist() == [False, *[True] * 39]


def test_a_bias_always_stays(source):
    source = replace(source, count=UNKNOWNS - 1)
    *_, last = points(source, everything(), [0.1], "output_error")
    assert last.kept[..., -1].all()
    assert exchanged(source, last.kept).kept[..., -1].all()
