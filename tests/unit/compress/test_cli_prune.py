"""The commands `prune` and `apply-plan`, and their exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from digits_networks import calibration, digits, trained

from pytest_neuralpower import cli

MODEL = f"{Path(__file__).parent / 'digits_networks.py'}:"
CALL = ["--input", "4,1,8,8", "--platform", "eyeriss"]


@pytest.fixture
def neuralpower(monkeypatch, capsys, tmp_path):
    """Run the command in this process, in an empty folder: (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["neuralpower", *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return run


def prune(neuralpower, *args, model="trained"):
    return neuralpower(
        "prune", MODEL + model, *CALL, "--calibration", MODEL + "calibration",
        "--plan", "plan.json", *args,
    )  # fmt: skip


def test_meets_a_budget_and_the_plan_makes_the_same_model_again(neuralpower):
    code, out, err = prune(
        neuralpower, "--budget", "8uJ", "--granularity", "weight", "--weights", "pruned.pt",
        "--score", MODEL + "accuracy", "--max-drop", "3",
    )  # fmt: skip
    assert code == 0
    assert "met" in out
    assert "predicted, not measured" in out
    assert err.splitlines()[-1].startswith(
        'next: pytest_neuralpower.apply_plan(model, "plan.json", weights="pruned.pt") builds it; '
        "budget tests price zeros as any value"
    )
    code, out, _ = neuralpower(
        "apply-plan", MODEL + "trained", "plan.json", "--weights", "pruned.pt", "--out", "again.pt"
    )
    assert code == 0
    assert "bit for bit" in out
    one, other = (torch.load(name, weights_only=True) for name in ("pruned.pt", "again.pt"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    model = trained()
    model.load_state_dict(other)
    assert model(digits()[0]).isfinite().all()


def test_an_unreachable_budget_exits_with_1_names_the_floor_and_writes_the_plan(neuralpower):
    code, out, err = prune(neuralpower, "--budget", "1e-6mJ", "--granularity", "weight")
    assert code == 1
    assert "unreachable: the floor is" in out
    assert "next:" not in err
    assert json.loads(Path("plan.json").read_text())["met"] is False


def test_prints_json(neuralpower):
    code, out, _ = prune(neuralpower, "--budget", "8uJ", "--granularity", "weight", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["after"] <= found["limit"] == 0.008
    assert found["history"][0]["kept"] is True


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--budget", "8 parsecs"], "write a number above 0"),
        (["--budget", "8uJ", "--max-drop", "1"], "needs a score_fn"),
        (["--budget", "8uJ", "--granularity", "layer"], "'channel' or 'weight'"),
        (["--budget", "8uJ", "--state", "none.pt"], "none.pt: there is no such file"),
        (["--budget", "8uJ", "--score", "nowhere.py:score"], "no such file"),
        (["--budget", "8uJ", "--plan", "none/p.json"], "--plan none/p.json: there is no folder"),
        (["--budget", "8uJ", "--weights", "none/p.pt"], "--weights none/p.pt: there is no folder"),
        (["--budget", "8uJ", "--weights", "."], "it is a folder"),
        (["--budget", "3ms"], "knows energy alone; use --budget 12mJ"),
        (["--budget", "8uJ", "--calibration", "junk.pt"], "junk.pt has no tensors saved by torch"),
        (["--budget", "8uJ", "--calibration", MODEL + "accuracy"], "called without arguments"),
    ],
)
def test_a_wrong_question_is_one_line_and_exit_2(neuralpower, args, message):
    Path("junk.pt").write_text("junk")
    code, out, err = prune(neuralpower, *args)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert [each.name for each in Path().iterdir()] == ["junk.pt"]  # nothing was written


def test_a_graph_that_cannot_be_followed_exits_with_3(neuralpower):
    code, _, err = prune(neuralpower, "--budget", "8uJ", model="parametrized")
    assert code == 3
    assert "has a parametrization" in err


def test_a_plan_of_another_model_is_refused(neuralpower):
    assert prune(neuralpower, "--budget", "8uJ", "--granularity", "weight")[0] == 0
    code, _, err = neuralpower(
        "apply-plan", "torch.nn:Linear", "plan.json", "--arg", "in_features=3", "--arg",
        "out_features=2", "--out", "again.pt",
    )  # fmt: skip
    assert code == 2
    assert "made for another Sequential" in err
    assert not Path("again.pt").exists()
    code, _, err = neuralpower("apply-plan", "no:model", "plan.json", "--out", "none/again.pt")
    assert code == 2
    assert "--out none/again.pt: there is no folder none; make it first" in err


def test_calibration_may_be_a_file_of_a_tensor(neuralpower, tmp_path):
    torch.save(calibration()[:100], tmp_path / "images.pt")
    code, _, _ = neuralpower(
        "prune", MODEL + "trained", *CALL, "--calibration", "images.pt", "--plan", "plan.json",
        "--budget", "8uJ", "--granularity", "weight",
    )  # fmt: skip
    assert code == 0
