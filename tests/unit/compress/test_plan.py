"""A plan's file removes the same from a fresh model, and says what is wrong with a bad one."""

from __future__ import annotations

import json

import pytest
import torch
from msgspec.structs import replace
from torch import nn

from pytest_neuralpower.compress.plan import (
    Mask,
    Plan,
    apply_plan,
    read_plan,
    structure_hash,
    weights_hash,
    write_plan,
)
from pytest_neuralpower.errors import CompressError


@pytest.fixture
def plan():
    model = nn.Linear(5, 3)
    mask = torch.rand(3, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    return Plan(
        version=1, model="Linear", structure=structure_hash(model),
        weights=weights_hash(model.state_dict()), pruned_weights="0" * 64,
        platform="eyeriss", platform_sha256="1" * 64, granularity="weight", quantity="energy",
        limit=1.0, batch=2, inputs=("2,5",), before=2.0, after=0.9, met=True,
        layers={"": 0.5}, channels={}, masks={"weight": Mask.of(mask)},
    )  # fmt: skip


def test_comes_back_from_its_file_as_it_was(plan, tmp_path):
    write_plan(plan, tmp_path / "plan.json")
    again = read_plan(tmp_path / "plan.json")
    assert again == plan
    assert torch.equal(again.masks["weight"].tensor(), plan.masks["weight"].tensor())
    assert again.to_json() == plan.to_json()


def test_zeros_just_the_masked_weights_of_a_fresh_model(plan):
    fresh = nn.Linear(5, 3)
    pruned = apply_plan(fresh, plan)
    mask = plan.masks["weight"].tensor()
    assert torch.equal(pruned.weight[mask], fresh.weight[mask])
    assert not pruned.weight[~mask].any()
    assert fresh.weight.all()


def test_refuses_a_model_of_another_structure(plan):
    with pytest.raises(CompressError, match=r"made for another Linear.*prune again"):
        apply_plan(nn.Linear(5, 4), plan)


@pytest.mark.parametrize(("name", "has"), [("weihgt", "no such parameter"), ("bias", r"\(3,\)")])
def test_refuses_a_mask_that_fits_no_parameter(plan, name, has):
    wrong = replace(plan, masks={name: plan.masks["weight"]})
    with pytest.raises(CompressError, match=rf"masks '{name}' of shape \(3, 5\).*has {has}"):
        apply_plan(nn.Linear(5, 3), wrong)


def test_refuses_weights_that_did_not_come_out_of_it(plan):
    model = nn.Linear(5, 3)
    with pytest.raises(CompressError, match="not those that this plan came with"):
        apply_plan(model, plan, weights=model.state_dict())


def broken(plan, tmp_path, change):
    data = plan.to_json()
    change(data)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda data: data.update(format="report"),
            "format is 'report'; allowed: pytest-neuralpower plan;",
        ),
        (lambda data: data.update(version=9), "version is 9; allowed: 1; make the plan again"),
        (lambda data: data.pop("version"), "field 'version' is missing"),
        (lambda data: data.pop("masks"), "field 'masks' is missing"),
        (lambda data: data.update(batch="four"), "batch must be a whole number, not 'four'"),
        (
            lambda data: data.update(granularity="layer"),
            "granularity is 'layer'; allowed: channel, weight",
        ),
        (lambda data: data.update(more=1), "unknown field 'more'"),
        (
            lambda data: data["masks"]["weight"].update(kept=1),
            r"masks\.weight: a mask has 11 bits set, not 1;",
        ),
        (
            lambda data: data["masks"]["weight"].update(bits="AAAA"),
            r"masks\.weight: its bits are damaged",
        ),
    ],
    ids=[
        "format",
        "version",
        "unversioned",
        "missing",
        "type",
        "choice",
        "unknown",
        "count",
        "bits",
    ],
)
def test_one_line_says_what_is_wrong_with_a_file(plan, tmp_path, change, message):
    with pytest.raises(CompressError, match=message) as caught:
        read_plan(broken(plan, tmp_path, change))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_no_json(tmp_path):
    with pytest.raises(CompressError, match="there is no such file"):
        read_plan(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(CompressError, match=r"text\.json: not JSON"):
        read_plan(tmp_path / "text.json")


def test_fingerprints_tell_structure_and_values_apart():
    one, other = nn.Linear(5, 3), nn.Linear(5, 3)
    assert structure_hash(one) == structure_hash(other)
    assert weights_hash(one.state_dict()) != weights_hash(other.state_dict())
    assert structure_hash(nn.Sequential(nn.Linear(5, 3))) != structure_hash(one)
