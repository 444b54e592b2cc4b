"""The Eyeriss model against an independent mapper and the paper's layer energies."""

from __future__ import annotations

import pytest
from eyeriss_alexnet import MAPPER, alexnet_zeros, energies, per_image, spearman
from eyeriss_networks import ALEXNET, ALEXNET_PAPER


def test_dense_alexnet_is_within_a_tenth_of_an_independent_mapper():
    found = dict(zip(ALEXNET, per_image(energies(alexnet_zeros("dense"))), strict=True))
    for name, expected in MAPPER.items():
        assert found[name] == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("zeros", ["han", "jssc"])
def test_with_published_zeros_layers_rank_and_share_as_in_the_paper(zeros):
    found = per_image(energies(alexnet_zeros(zeros)))
    assert spearman(found, ALEXNET_PAPER) >= 0.9
    assert 100 * sum(found[:5]) / sum(found) == pytest.approx(72, abs=8)
