"""Pruning channels to a budget, for real, on a network trained on digits."""

from __future__ import annotations

import pytest
import torch
from digits_networks import TRAINING, accuracy, calibration, digits, train, trained
from torch import nn

from pytest_neuralpower import load_platform, predict
from pytest_neuralpower.compress.plan import apply_plan
from pytest_neuralpower.compress.prune import prune_to_budget
from pytest_neuralpower.guard.budget import Budget

pytest.importorskip("torch_pruning")

INPUTS = torch.zeros(4, 1, 8, 8)


@pytest.fixture(scope="module")
def array():
    return load_platform("eyeriss")


@pytest.fixture(scope="module")
def dense(array):
    return predict(trained(), INPUTS, platform=array).energy_mj


def prune(platform, budget, model=None, **options):
    return prune_to_budget(
        trained() if model is None else model, INPUTS, platform, budget,
        calibration=calibration(), **options,
    )  # fmt: skip


def parameters(model):
    return sum(each.numel() for each in model.parameters())


@pytest.fixture(scope="module")
def halved(array, dense):
    return prune(array, f"{dense / 2} mJ", score_fn=accuracy, max_drop=5.0)


def test_removes_channels_for_real_and_keeps_the_accuracy_without_training(halved, dense):
    assert halved.met
    assert parameters(halved.model) < 0.8 * parameters(trained())
    assert halved.model[0].out_channels == halved.model[2].in_channels < 16
    assert halved.first_score - halved.last_score <= 2.0
    assert accuracy(halved.model) == halved.last_score


def test_the_pruned_model_itself_is_predicted_to_keep_the_budget(halved, array, dense):
    again = predict(halved.model, INPUTS, platform=array).energy_mj
    assert again == halved.after.energy_mj
    assert again <= dense / 2


def test_least_squares_keeps_what_the_same_channels_lose_without(array, dense):
    result = prune_to_budget(
        trained(), INPUTS, array, f"{dense / 4} mJ", calibration=digits()[0][:TRAINING]
    )
    bare = apply_plan(trained(), result.plan)
    assert parameters(bare) == parameters(result.model)
    assert accuracy(result.model) > accuracy(bare) + 5


def test_the_saved_plan_and_weights_make_the_same_model_from_a_fresh_one(halved, tmp_path):
    halved.save(tmp_path / "plan.json", tmp_path / "pruned.pt")
    again = apply_plan(trained(), tmp_path / "plan.json", weights=tmp_path / "pruned.pt")
    images, _ = digits()
    assert torch.equal(again(images), halved.model(images))


def test_rounds_with_training_still_give_one_plan_of_the_first_model(array, dense, tmp_path):
    numbers = []

    def finetune(model, masks, number):
        assert masks == {}
        numbers.append(number)
        train(model, epochs=1)

    result = prune(array, f"{dense / 2.5} mJ", finetune=finetune, rounds=2, order="greedy")
    assert numbers == [0, 1]
    assert result.met
    result.save(tmp_path / "plan.json", tmp_path / "pruned.pt")
    again = apply_plan(trained(), tmp_path / "plan.json", weights=tmp_path / "pruned.pt")
    images, _ = digits()
    assert torch.equal(again(images), result.model(images))


@pytest.mark.parametrize("order", ["energy", "greedy"])
@pytest.mark.parametrize("criterion", ["output_error", "magnitude"])
def test_every_order_and_criterion_meets_the_budget(array, dense, order, criterion):
    result = prune(array, f"{dense / 1.5} mJ", order=order, criterion=criterion)
    assert result.met
    assert accuracy(result.model) > 85


def test_widths_may_be_held_to_multiples(array, dense):
    result = prune(array, f"{dense / 1.5} mJ", widths=8)
    changed = [result.model[at].out_channels for at in (0, 2)] + [result.model[5].out_features]
    assert all(width % 8 == 0 for width in changed)
    assert changed != [16, 24, 48]


def test_a_runtime_budget_is_met_by_the_runtime(halved):
    ms = predict(trained(), INPUTS, platform="titanx").runtime_ms
    result = prune("titanx", f"{0.9 * ms} ms")
    assert result.plan.quantity == "runtime"
    if result.met:
        assert predict(result.model, INPUTS, platform="titanx").runtime_ms <= 0.9 * ms
    else:
        assert result.floor > 0.9 * ms


def test_a_limit_a_sample_is_that_of_the_call_by_its_samples(array, dense):
    result = prune(array, Budget("energy", dense / 1.5 / len(INPUTS), "mJ", per="sample"))
    assert dense / 2 < result.after.energy_mj <= dense / 1.5


class Residual(nn.Module):
    """Two convolutions whose outputs are added, so that their channels go together."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.deep = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.wide = nn.Conv2d(12, 12, 1)
        self.head = nn.Linear(12 * 4, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.wide(torch.relu(self.deep(x))))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


def test_channels_that_are_added_go_together(array):
    torch.manual_seed(0)
    model = Residual()
    train(model, epochs=4)
    dense = predict(model, INPUTS, platform=array).energy_mj
    result = prune(array, f"{0.75 * dense} mJ", model, score_fn=accuracy)
    pruned = result.model
    assert result.met
    width = pruned.stem.out_channels
    assert width < 12
    assert pruned.norm.num_features == pruned.deep.groups == pruned.wide.out_channels == width
    assert pruned.head.in_features == 4 * width
    assert result.first_score - result.last_score < 15
