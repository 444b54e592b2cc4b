"""From a failing budget test to the pruned model that passes it, by the commands it prints."""

from __future__ import annotations

import shlex
import sys

import pytest
import torch

from pytest_neuralpower import cli

pytest.importorskip("torch_pruning")

NETS = """
    from pathlib import Path

    import torch
    from torch import nn
    from pytest_neuralpower import apply_plan

    def current():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(24, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(128, 10),
        ).eval()
        if Path("plan.json").exists():
            model = apply_plan(model, "plan.json", weights="pruned.pt")
        return model
"""

GUARD = """
    import pytest, torch
    from nets import current

    @pytest.mark.energy_budget(uj={limit})
    def test_fits_its_budget(neuralpower):
        neuralpower.predict(neuralpower.build(current), torch.empty(2, 3, 16, 16))
"""


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command line that was printed: (exit code, output, errors)."""

    def run(text: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", shlex.split(text))
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return int(stopped.value.code or 0), *capsys.readouterr()

    return run


def guard(pytester):
    arguments = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "--np-platform=eyeriss")
    return pytester.runpytest_inprocess(*arguments)


@pytest.fixture
def failing(pytester, monkeypatch):
    """A repository whose budget test fails; the commands that it prints, by their first word."""
    monkeypatch.syspath_prepend(pytester.path)
    pytester.makeini("[pytest]\n")
    pytester.makepyfile(nets=NETS)
    torch.save(torch.rand(200, 3, 16, 16), pytester.path / "inputs.pt")

    def write(limit: float) -> dict[str, str]:
        pytester.makepyfile(test_guard=GUARD.format(limit=limit))
        result = guard(pytester)
        result.assert_outcomes(failed=1)
        found = [line.partition("neuralpower ")[2] for line in result.outlines]
        return {each.split()[0]: f"neuralpower {each}" for each in found if each.split()}

    return write


def test_the_printed_commands_lead_to_a_model_that_passes(failing, command, pytester):
    printed = failing(12.0)
    assert command(printed["advise"])[0] in (0, 1)
    code, out, err = command(printed["prune"])
    assert code == 0, out
    assert err.splitlines()[-1] == (
        "next: where the test builds its model, return "
        'pytest_neuralpower.apply_plan(model, "plan.json", weights="pruned.pt")'
    )
    assert "predicted, not measured" in out
    guard(pytester).assert_outcomes(passed=1)


def test_an_unreachable_budget_names_its_floor(failing, command, pytester):
    code, out, _ = command(failing(0.5)["prune"])
    assert code == 1
    assert "unreachable: the floor is" in out
    assert (out.count(" kept\n"), out.count(" saves nothing more\n")) == (1, 1)
    guard(pytester).assert_outcomes(failed=1)
