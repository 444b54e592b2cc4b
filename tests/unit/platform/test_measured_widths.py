"""Widths that rows had, and whether a change of widths lies between measured ones."""

import torch
from torch import nn

from pytest_neuralpower import trace
from pytest_neuralpower.estimators.features import columns, family
from pytest_neuralpower.platform.ranges import measured_widths, were_measured


def layers(model, *shape):
    return trace(model, torch.empty(shape, device="meta")).layers


def tables(*traced):
    by_family = {}
    for layer in traced:
        by_family.setdefault(family(layer), []).append(layer)
    return {name: columns(name, found) for name, found in by_family.items()}


ROWS = [
    *layers(nn.Conv2d(3, 32, 3), 1, 3, 8, 8),
    *layers(nn.Conv2d(3, 33, 3), 1, 3, 9, 9),
    *layers(nn.Conv2d(24, 24, 3, groups=24), 1, 24, 8, 8),
    *layers(nn.Linear(10, 7), 2, 10),
    *layers(nn.ReLU(), 2, 10),
]


def test_keeps_each_width_once_and_none_of_layers_without_tiles():
    assert measured_widths(tables(*ROWS, *ROWS)) == {
        "conv": {"cin": [3], "cout": [32, 33]},
        "conv.depthwise": {"groups": [24]},
        "linear": {"k": [10], "n": [7]},
    }


def change(wide, narrow):
    return list(
        zip(
            layers(nn.Conv2d(5, wide, 1), 1, 5, 4, 4),
            layers(nn.Conv2d(5, narrow, 1), 1, 5, 4, 4),
            strict=True,
        )
    )


def test_both_widths_must_have_been_measured():
    known = measured_widths(tables(*ROWS))
    assert were_measured(known, change(33, 32))
    assert not were_measured(known, change(33, 31))
    assert not were_measured(known, change(34, 32))


def test_nothing_is_measured_where_nothing_is_kept_or_changed():
    assert not were_measured({}, change(33, 32))
    assert not were_measured(measured_widths(tables(*ROWS)), change(33, 33))
