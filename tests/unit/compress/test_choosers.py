"""Choosers meet the limit with the least harm, and step over flat stretches."""

from __future__ import annotations

import itertools

import pytest

from pytest_neuralpower.compress.pruner import (
    CHOOSERS,
    choose_greedy,
    choose_most_expensive_first,
)

ERRORS = {"a": [0.0, 0.1, 0.3, 0.9], "b": [0.0, 0.01, 0.2], "c": [0.0, 0.5]}
COSTS = {"a": [10.0, 7.0, 4.0, 1.0], "b": [5.0, 4.5, 2.0], "c": [2.0, 1.0]}


def cost(choice):
    return sum(COSTS[name][at] for name, at in choice.items())


@pytest.mark.parametrize("order", list(CHOOSERS))
@pytest.mark.parametrize("limit", [16.9, 15.0, 12.0, 9.0, 6.0, 4.0])
def test_meets_every_limit_that_can_be_met(order, limit):
    choice = CHOOSERS[order](ERRORS, cost, limit, ["a", "b", "c"])
    assert cost(choice) <= limit
    undone = [
        {**choice, name: at - 1} for name, at in choice.items() if at
    ]  # no part was pruned in vain, but one step of the last one
    assert any(cost(each) > limit for each in undone)


@pytest.mark.parametrize("order", list(CHOOSERS))
def test_takes_all_it_can_where_the_limit_cannot_be_met(order):
    assert CHOOSERS[order](ERRORS, cost, 3.9, ["a", "b", "c"]) == {"a": 3, "b": 2, "c": 1}


def test_most_expensive_first_leaves_later_parts_once_the_limit_is_met():
    choice = choose_most_expensive_first(ERRORS, cost, 13.6, ["a", "b", "c"])
    assert choice == {"a": 1, "b": 1, "c": 0}
    tolerances = [ERRORS[name][at] for name, at in choice.items()]
    cheaper = [
        max(ERRORS[name][at] for name, at in zip(ERRORS, each, strict=True))
        for each in itertools.product(*(range(len(curve)) for curve in ERRORS.values()))
        if cost(dict(zip(ERRORS, each, strict=True))) <= 13.6
    ]
    assert max(tolerances) == min(cheaper)


def test_greedy_steps_over_a_plateau_that_saves_nothing():
    stairs = {"a": [10.0, 10.0, 10.0, 4.0]}
    errors = {"a": [0.0, 0.1, 0.2, 0.3]}
    choice = choose_greedy(errors, lambda each: stairs["a"][each["a"]], 5.0, ["a"])
    assert choice == {"a": 3}


@pytest.mark.parametrize("order", list(CHOOSERS))
def test_a_cost_equal_to_the_limit_is_met(order):
    """At 12 of 15 the limit of 12 is met: b, whose outputs suffer as much, is left."""
    curves = {"a": [10.0, 7.0], "b": [5.0, 4.0]}
    errors = {"a": [0.0, 0.1], "b": [0.0, 0.1]}

    def both(choice):
        return sum(curves[name][at] for name, at in choice.items())

    assert CHOOSERS[order](errors, both, 12.0, ["a", "b"]) == {"a": 1, "b": 0}
    assert CHOOSERS[order](errors, both, 15.0, ["a", "b"]) == {"a": 0, "b": 0}
    assert CHOOSERS[order](errors, both, 11.9, ["a", "b"]) == {"a": 1, "b": 1}
