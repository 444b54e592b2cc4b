"""``neuralpower advise``: which widths to move, for people and for machines."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch_pruning")

NETS = """
from torch import nn

def odd(width=33):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 8, 1),
    )
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    (tmp_path / "odd_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return ("odd_nets.py:odd", "--input", "8,3,64,64", "--platform", "titanx")


def test_names_what_to_shrink_and_what_it_comes_to(neuralpower, model):
    code, out, err = neuralpower("advise", *model)
    assert (code, err) == (0, "")
    assert "shrink 2 33 -> 32" in out
    assert "predicted for one call of 8 samples, not measured" in out
    assert "note: 1 width may not change: it is the model's output" in out


def test_says_whether_the_budget_is_met(neuralpower, model):
    assert "; within the budget of 1,000 mJ" in neuralpower("advise", *model, "--mj", "1000")[1]
    assert (
        "; still over the budget of 0.001 ms" in neuralpower("advise", *model, "--ms", "0.001")[1]
    )


def test_json_has_every_coupled_module(neuralpower, model):
    _, out, _ = neuralpower("advise", *model, "--json", "--arg", "width=33")
    record = json.loads(out)
    (advice,) = [each for each in record["advice"] if each["group"] == "2"]
    assert (advice["width"], advice["to_width"], advice["coupled"]) == (33, 32, ["4"])
    assert record["widths"] == {"2": 32}
    assert record["after"]["energy_mj"] < record["before"]["energy_mj"]
    assert record["after"]["parameters"] < record["before"]["parameters"]


def test_two_budgets_are_refused(neuralpower, model):
    code, _, err = neuralpower("advise", *model, "--mj", "1", "--ms", "1")
    assert code == 2
    assert err == "neuralpower: --mj and --ms: advice is for one budget; give one of them\n"


@pytest.mark.parametrize("budget", ["0", "-3"])
def test_an_impossible_budget_is_refused(neuralpower, model, budget):
    code, _, err = neuralpower("advise", *model, "--mj", budget)
    assert code == 2
    assert len(err.splitlines()) == 1
