"""Planners step from edge to edge of a price's plateaus, and down a slope where there is none."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pytest_neuralpower.compress.width_prices import Curve, descent, widest_as_cheap


def curve(price, most, now=None, step=1):
    widths = np.arange(step, most + 1, step)
    prices = np.array([float(price(width)) for width in widths.tolist()])
    return Curve(widths, prices, (now or most) // step - 1)


def stepped(price, most, **sizes):
    found = curve(price, most, **sizes)
    return [int(found.widths[place]) for place in descent(found)]


def staircase(width):
    """Sixteen channels a step, as one vector of the processor."""
    return -(-width // 16) * 16


def test_steps_are_the_upper_edges_of_plateaus():
    assert stepped(staircase, 64) == [48, 32, 16]


def test_plateaus_that_slope_a_little_are_stepped_over_all_the_same():
    assert stepped(lambda width: staircase(width) + 0.05 * width, 64) == [48, 32, 16, 1]


@pytest.mark.parametrize("fixed", [0, 1000])
def test_an_even_slope_is_stepped_down_by_twentieths_to_the_least_width(fixed):
    """Whatever the rest costs: a layer that is a small part of the price is pruned too."""
    found = stepped(lambda width: fixed + width, 64)
    assert found[-1] == 1
    shares = [narrow / wide for wide, narrow in itertools.pairwise(found) if wide >= 40]
    assert all(0.92 <= share <= 0.95 for share in shares)


def test_no_step_goes_to_a_width_that_costs_more():
    """40 channels are slower than 48 here, as some are on a phone."""
    found = stepped(lambda width: width + (30 if width == 40 else 0), 48)
    prices = [width + (30 if width == 40 else 0) for width in [48, *found]]
    assert prices == sorted(prices, reverse=True)
    assert 40 not in found


def test_steps_are_multiples_of_the_step_of_a_group():
    found = stepped(float, 60, step=6)
    assert found == [54, 48, 42, 36, 30, 24, 18, 12, 6]


def test_a_price_that_never_falls_has_no_step():
    assert stepped(lambda _: 1.0, 64) == []


@pytest.mark.parametrize(("most", "widest"), [(64, 48), (40, 40)])
def test_expanding_finds_the_widest_that_costs_no_more(most, widest):
    found = curve(staircase, most, now=33)
    assert found.widths[widest_as_cheap(found)] == widest


def test_expanding_goes_to_a_wider_width_that_is_faster():
    """43 to 64 channels ran faster than 66 to 32 on a phone: more can be less."""
    found = curve(lambda width: width * (0.5 if width == 24 else 1.0), 32, now=15)
    assert found.widths[widest_as_cheap(found)] == 24
