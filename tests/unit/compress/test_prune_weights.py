"""Pruning single weights to a budget on the array, on a network trained on digits."""

from __future__ import annotations

import pytest
import torch
from digits_networks import accuracy, calibration, digits, train, trained

from pytest_neuralpower import load_platform, trace
from pytest_neuralpower.compress.plan import apply_plan
from pytest_neuralpower.compress.prune import prune_to_budget
from pytest_neuralpower.errors import BudgetError, CompressError
from pytest_neuralpower.eyeriss import Zeros

INPUTS = torch.zeros(4, 1, 8, 8)


@pytest.fixture(scope="module")
def array():
    return load_platform("eyeriss")


@pytest.fixture(scope="module")
def dense(array):
    """The energy of the call before pruning, with the zeros of its maps."""
    result = prune(array, "1 J")
    assert result.history == ()
    return result.before.energy_mj


def prune(platform, budget, model=None, **options):
    options.setdefault("granularity", "weight")
    return prune_to_budget(
        trained() if model is None else model, INPUTS, platform, budget,
        calibration=calibration(), **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def halved(array, dense):
    return prune(array, f"{dense / 2} mJ", score_fn=accuracy, max_drop=5.0)


def test_meets_the_budget_and_keeps_the_accuracy_without_training(halved, dense):
    assert halved.met
    assert halved.after.energy_mj <= dense / 2 * (1 + 1e-9)
    assert halved.first_score > 90
    assert halved.first_score - halved.last_score <= 2.0
    assert accuracy(halved.model) == halved.last_score


def test_the_energy_is_what_the_array_says_of_the_weights_that_are_left(halved, array):
    """Counted here again, from the model alone, for the layer with no map before it."""
    layers = trace(halved.model, INPUTS)
    first = layers[0]
    weight = halved.model[0].weight
    share = (calibration() == 0).double().mean().item()
    maps = halved.model[0](calibration())
    zeros = Zeros(
        int(share * first.inputs[0].numel),
        int((weight == 0).sum()),
        int((maps <= 0).double().mean().item() * first.outputs[0].numel),
    )
    alone = array.predict([first], zeros={"0": zeros})
    assert halved.after.layers[0].energy_mj == pytest.approx(alone.energy_mj, rel=1e-3)


def test_the_masks_of_the_plan_are_the_zeros_of_the_model(halved):
    for name, mask in halved.plan.masks.items():
        assert torch.equal(dict(halved.model.named_parameters())[name] != 0, mask.tensor())


def test_the_given_model_is_left_as_it_was_unless_asked(array, dense):
    model = trained()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    prune(array, f"{dense / 1.5} mJ", model)
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())
    result = prune(array, f"{dense / 1.5} mJ", model, inplace=True)
    assert result.model is model
    assert (model[5].weight == 0).any()


def test_the_same_call_gives_the_same_bits(array, dense):
    one, other = (prune(array, f"{dense / 1.5} mJ") for _ in range(2))
    assert one.plan.pruned_weights == other.plan.pruned_weights


def test_the_saved_plan_and_weights_make_the_same_model_from_a_fresh_one(halved, tmp_path):
    halved.save(tmp_path / "plan.json", tmp_path / "pruned.pt")
    again = apply_plan(trained(), tmp_path / "plan.json", weights=tmp_path / "pruned.pt")
    images, _ = digits()
    assert torch.equal(again(images), halved.model(images))


@pytest.mark.parametrize("criterion", ["output_error", "magnitude"])
def test_least_squares_keeps_more_accuracy_than_weights_left_as_they_are(array, dense, criterion):
    lost = {
        reconstruct: accuracy(
            prune(array, f"{dense / 2.3} mJ", criterion=criterion, reconstruct=reconstruct).model
        )
        for reconstruct in ("least_squares", None)
    }
    assert lost["least_squares"] > lost[None]


def test_a_round_that_loses_too_much_is_undone_and_a_smaller_step_tried(array, dense):
    scores = iter([90.0, 50.0, 89.0, 50.0, 50.0, 50.0, 50.0])
    result = prune(array, f"{dense / 2} mJ", score_fn=lambda _: next(scores), max_drop=2.0)
    assert not result.met
    assert [each.kept for each in result.history][:2] == [False, True]
    kept = [each for each in result.history if each.kept]
    assert result.after.energy_mj == pytest.approx(kept[-1].reached)
    assert result.last_score == 89.0
    assert dense / 2 < result.after.energy_mj < dense
    assert result.history[1].target > result.history[0].target


@pytest.mark.parametrize(("score", "kept"), [(88.0, True), (87.99, False)])
def test_a_score_may_fall_by_max_drop_and_no_more(array, dense, score, kept):
    scores = iter([90.0, score, *[90.0] * 9])
    result = prune(array, f"{dense / 1.5} mJ", score_fn=lambda _: next(scores), max_drop=2.0)
    assert result.history[0].kept is kept


def test_an_unreachable_budget_names_its_floor_and_gives_the_best_it_can(array, dense):
    result = prune(array, f"{dense / 100} mJ")
    assert not result.met
    assert dense / 100 < result.floor
    assert result.after.energy_mj == pytest.approx(result.floor, rel=0.1)


def test_the_users_training_gets_the_masks_and_removed_weights_stay_zero(array, dense):
    seen = []

    def finetune(model, masks, number):
        zeros = {name: (dict(model.named_parameters())[name] == 0).sum() for name in masks}
        seen.append((number, {name: int((~masks[name]).sum() - zeros[name]) for name in masks}))
        train(model, epochs=1)  # it does not hold the masks

    result = prune(array, f"{dense / 2} mJ", finetune=finetune, rounds=2)
    assert [number for number, _ in seen] == [0, 1]
    assert all(not any(gap.values()) for _, gap in seen)
    assert result.met
    for name, mask in result.plan.masks.items():
        assert not dict(result.model.named_parameters())[name][~mask.tensor()].any()


def test_it_says_how_far_its_figures_can_be_trusted(halved, array, dense):
    text = " ".join(halved.statements)
    for part in ("predicted, not measured", "interval", "batch of 4", "eyeriss-65nm"):
        assert part in text
    assert not any("ccuracy" in each for each in halved.warnings)
    blind = prune_to_budget(
        trained(), INPUTS, array, f"{dense / 1.3} mJ", granularity="weight",
        calibration=calibration()[:3],
    )  # fmt: skip
    assert any("Accuracy is unchecked" in each for each in blind.warnings)
    assert any("fewer than 5 sampled rows" in each for each in blind.warnings)


@pytest.mark.parametrize(
    ("platform", "budget", "options", "error", "message"),
    [
        ("titanx", "1 mJ", {}, CompressError, r"saves nothing on titanx.*granularity='channel'"),
        ("eyeriss", "3 ms", {}, BudgetError, r"knows energy alone"),
        ("eyeriss", "3 watts", {}, BudgetError, r"'3 watts': write a number"),
        ("eyeriss", "1 mJ", {"rounds": 0}, CompressError, r"rounds=0: give a whole number"),
        ("eyeriss", "1 mJ", {"max_drop": 1.0}, CompressError, r"needs a score_fn"),
        ("eyeriss", "1 mJ", {"criterion": "luck"}, CompressError, r"'output_error' or 'magnitude'"),
        ("eyeriss", "1 mJ", {"widths": 0}, CompressError, r"'plateau' or a whole number"),
    ],
)
def test_one_line_refuses_what_cannot_be(platform, budget, options, error, message):
    with pytest.raises(error, match=message) as caught:
        prune(platform, budget, **options)
    assert "\n" not in str(caught.value)


def test_refuses_weights_that_are_not_there_or_not_finite(array):
    with torch.device("meta"):
        model = torch.nn.Linear(3, 2)
    with pytest.raises(CompressError, match=r"weight is on the meta device.*load them first"):
        prune(array, "1 mJ", model)
    broken = trained()
    broken[0].bias.data[0] = float("nan")
    with pytest.raises(CompressError, match=r"0\.bias has values that are not finite"):
        prune(array, "1 mJ", broken)


def test_calibration_takes_batches_with_labels_and_ignores_them(array, dense):
    images, labels = digits()
    labelled = [(images[at : at + 100], labels[at : at + 100]) for at in range(0, 400, 100)]
    bare = [batch for batch, _ in labelled]
    one, other = (
        prune_to_budget(
            trained(), INPUTS, array, f"{dense / 1.5} mJ", granularity="weight", calibration=each
        )
        for each in (labelled, bare)
    )
    assert one.plan.pruned_weights == other.plan.pruned_weights
    with pytest.raises(CompressError, match="no batch"):
        prune_to_budget(trained(), INPUTS, array, "1 mJ", calibration=[], granularity="weight")


def test_a_layer_too_large_to_solve_is_pruned_by_magnitude_and_named(array):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9000, 3))
    images = torch.rand(8, 9000)
    result = prune_to_budget(
        model, images[:1], array, "0.014 mJ", granularity="weight", calibration=images
    )
    kept = result.model[1].weight != 0
    assert 0 < kept.double().mean() < 1
    assert model[1].weight[kept].abs().min() >= model[1].weight[~kept].abs().max()
    assert torch.equal(result.model[1].weight[kept], model[1].weight[kept])
    assert any("9000 weights an output are too many" in each for each in result.warnings)
