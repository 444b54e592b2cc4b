"""Layers are found again after renames, insertions and removals, also among equal ones."""

from __future__ import annotations

import pytest
from msgspec import structs

from pytest_neuralpower.calibrate.fit.rows import linear_layer
from pytest_neuralpower.guard.align import match_layers

#: Layers of one block of the chain.
EACH = 6


def layers(prediction):
    return [each.layer for each in prediction.layers]


def test_equal_models_pair_layer_for_layer(predicted):
    same = layers(predicted([32] * 5))
    assert match_layers(same, list(same)) == [(at, at) for at in range(5 * EACH)]


def test_a_renamed_module_is_found_again(predicted):
    base = layers(predicted([32, 48, 32], ["stem", "body", "tail"]))
    head = layers(predicted([32, 48, 32], ["stem", "middle", "tail"]))
    assert match_layers(base, head) == [(at, at) for at in range(3 * EACH)]


def test_a_model_renamed_throughout_is_found_again(predicted):
    base = layers(predicted([32, 48, 64], ["a", "b", "c"]))
    head = layers(predicted([32, 48, 64], ["x", "y", "z"]))
    assert match_layers(base, head) == [(at, at) for at in range(3 * EACH)]


@pytest.mark.parametrize("place", [0, 2, 5])
def test_an_inserted_block_is_new_and_those_behind_it_only_move(predicted, place):
    widths = [32] * 5
    base = layers(predicted(widths))
    head = layers(predicted([*widths[:place], 48, *widths[place:]]))
    pairs = match_layers(base, head)
    new = [other for one, other in pairs if one is None]
    assert new == list(range(place * EACH, (place + 1) * EACH))
    assert all(base[one].configuration == head[other].configuration
               for one, other in pairs if one is not None and other is not None)  # fmt: skip


def test_a_removed_block_is_gone_and_those_behind_it_only_move(predicted):
    base = layers(predicted([32, 32, 48, 32, 32]))
    head = layers(predicted([32, 32, 32, 32]))
    gone = [one for one, other in match_layers(base, head) if other is None]
    assert gone == list(range(2 * EACH, 3 * EACH))


def test_of_equal_blocks_the_last_is_the_new_one(predicted):
    base, head = layers(predicted([32] * 3)), layers(predicted([32] * 4))
    pairs = match_layers(base, head)
    assert [other for one, other in pairs if one is None] == list(range(3 * EACH, 4 * EACH))


def test_a_widened_block_stays_itself(predicted):
    base, head = layers(predicted([32, 32, 32])), layers(predicted([32, 40, 32]))
    assert match_layers(base, head) == [(at, at) for at in range(3 * EACH)]


def test_batch_and_dtype_do_not_hide_an_insertion(predicted):
    import torch

    base = layers(predicted([32, 40, 32], batch=2))
    head = layers(predicted([32, 56, 40, 32], batch=8, dtype=torch.float16))
    pairs = match_layers(base, head, batches=(2, 8))
    assert [other for one, other in pairs if one is None] == list(range(EACH, 2 * EACH))


def test_insertions_removals_and_changes_together(predicted):
    base = layers(predicted([32, 40, 48, 56, 64, 72, 80]))
    head = layers(predicted([24, 32, 40, 56, 64, 76, 80, 88]))
    pairs = match_layers(base, head)
    assert [one // EACH for one, other in pairs if other is None] == [2] * EACH
    assert [other // EACH for one, other in pairs if one is None] == [0] * EACH + [7] * EACH
    changed = {one // EACH for one, other in pairs if one is not None and other is not None
               and base[one].configuration != head[other].configuration}  # fmt: skip
    assert changed == {5}


def test_every_layer_is_in_one_pair_in_order_however_different_the_models(predicted):
    base = layers(predicted([32, 40, 48] * 30))
    head = layers(predicted([100, 40] * 70, batch=2))
    pairs = match_layers(base, head)
    assert [one for one, _ in pairs if one is not None] == list(range(len(base)))
    assert [other for _, other in pairs if other is not None] == list(range(len(head)))


def test_a_model_longer_than_the_band_is_aligned(predicted):
    widths = [32 + 8 * (at % 7) for at in range(120)]  # 720 layers, the band is 384
    base = layers(predicted(widths))
    head = layers(predicted([40, 200, *[width + (width == 56) for width in widths]]))
    pairs = match_layers(base, head)
    assert [other for one, other in pairs if one is None] == list(range(2 * EACH))


@pytest.mark.parametrize("sides", [(0, 0), (0, 2), (2, 0)])
def test_a_side_may_be_empty(predicted, sides):
    some = layers(predicted([32]))
    pairs = match_layers(some[: sides[0]], some[: sides[1]])
    assert pairs == (
        [(at, None) for at in range(sides[0])] + [(None, at) for at in range(sides[1])]
    )


def linears(*widths, paths, kind="linear"):
    """Layers of these widths at these paths; each configuration is another one."""
    return [
        structs.replace(linear_layer(8, 8, width), path=path, kind=kind)
        for width, path in zip(widths, paths, strict=True)
    ]


@pytest.mark.parametrize(
    ("was", "now", "pair"),
    [
        # The place with its numbers left out counts more than the name alone, in any order.
        ("layer1.proj", ("neck.proj", "layer2.proj"), 1),
        ("layer1.proj", ("layer2.proj", "neck.proj"), 0),
        # The name counts more than nothing in common.
        ("encoder.proj", ("decoder.out", "decoder.proj"), 1),
        # The exact path decides between places that differ in their numbers.
        ("layer2.proj", ("layer1.proj", "layer2.proj"), 1),
        # Of those that are equally like it, the first.
        ("a.b", ("c.d", "e.f"), 0),
    ],
)
def test_a_changed_layer_is_the_one_that_has_most_of_its_place(was, now, pair):
    pairs = match_layers(linears(16, paths=[was]), linears(17, 18, paths=now))
    assert (0, pair) in pairs
    assert (None, 1 - pair) in pairs


def test_layers_of_different_kinds_are_never_one():
    base = linears(16, paths=["layer1.proj"])
    head = linears(17, paths=["layer1.proj"], kind="matmul")
    assert sorted(match_layers(base, head), key=str) == [(0, None), (None, 0)]
