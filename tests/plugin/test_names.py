"""Names that are no identifiers, of classes, modules, models in budget files and layers of stored
baselines: no line of theirs begins in what is printed, and nothing in it is obeyed."""

from __future__ import annotations

import json
import re

import pytest

HOSTILE = ["x\n::error file=a::made up", "\x1b[2J\x1b[31mred", "a`b ``` <script>|</details>"]

TEST = """
    import torch

    class Net(torch.nn.Sequential):
        pass

    Net.__name__ = Net.__qualname__ = {name!r}

    @pytest.mark.energy_budget({budget})
    def test_net(neuralpower):
        net = Net()
        net.add_module({name!r}, torch.nn.Conv2d(3, 8, 3))
        neuralpower.predict(net.eval(), torch.empty(1, 3, 32, 32))
"""


def check(text: str) -> None:
    assert not re.search(r"^\s*::error", text, re.MULTILINE)
    assert "\x1b[2J" not in text


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("budget", ["uj=1", "j=100"])
def test_of_a_class_and_its_module(repo, pytester, name, budget):
    repo.write(TEST.format(name=name, budget=budget))
    reports = ["report.md", "report.json", "report.html"]
    result = repo.run(
        "--np-platform=titanx", "-v", "--junitxml=junit.xml",
        *(f"--np-report={report}" for report in reports),
    )  # fmt: skip
    assert ("energy budget exceeded" in result.stdout.str()) == (budget == "uj=1")
    for report in (*reports, "junit.xml"):
        check((pytester.path / report).read_text("utf-8"))
    check(result.stdout.str())
    assert "<script>|" not in (pytester.path / "report.html").read_text("utf-8")
    found = json.loads((pytester.path / "report.json").read_text("utf-8"))
    assert found["predictions"][0]["model"].isprintable()


def test_the_markdown_of_a_failure_stays_in_its_fence(repo, pytester):
    repo.write(TEST.format(name=HOSTILE[2], budget="uj=1"))
    repo.run("--np-platform=titanx", "--np-report=report.md")
    text = (pytester.path / "report.md").read_text("utf-8")
    fence = next(line for line in text.splitlines() if line.startswith("```"))
    assert fence == "````"
    assert text.count(f"\n{fence}\n") == 2
    inside = text.split(f"\n{fence}\n")[1]
    assert "``` <script>" in inside
    assert "<script>" not in text.replace(inside, "")


def test_of_a_model_in_a_budget_file(repo, pytester):
    name = json.dumps("x\n::error::made up `a` <b> | \x1b[2J")
    (pytester.path / "a.budget.yaml").write_text(
        f'models:\n  {name}: {{model: "torch.nn:Identity", inputs: [[1, 2]], '
        "budgets: {energy: {mj: 1}}}\n"
    )
    result = repo.run("--np-platform=titanx", "-v", "--np-report=report.md", "--np-report=github")
    check(result.stdout.str())
    assert "x\\n::error" in result.stdout.str()
    check((pytester.path / "report.md").read_text("utf-8"))


def test_of_a_layer_in_a_stored_baseline(repo, pytester):
    repo.write(
        """
        import torch

        @pytest.mark.regression(max_percent=1)
        def test_net(neuralpower):
            net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()).eval()
            neuralpower.predict(net, torch.empty(1, 3, 32, 32))
        """
    )
    repo.run("--np-platform=titanx", "--np-update-baseline=new")
    (path,) = (pytester.path / "budgets/baselines/titanx").iterdir()
    text = path.read_text("utf-8")
    # Another layer of old is gone: its path is what the comparison names.
    hostile = text.replace('"path": "1"', '"path": "x\\n::error::made up \\u001b[2J"')
    path.write_text(hostile.replace('"op": "relu"', '"op": "a\\n::error::b"'), "utf-8")
    result = repo.run("--np-platform=titanx", "--np-report=report.md", "--np-tolerance=max_mj=0")
    check(result.stdout.str())
    report = (pytester.path / "report.md").read_text("utf-8")
    check(report)
    assert "x\\n::error" in report
