"""``neuralpower compare``: what is compared, what is printed, and the exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from pytest_neuralpower.cli import app
from pytest_neuralpower.errors import NeuralPowerError
from pytest_neuralpower.guard.baseline import baseline_of, baseline_text, write_baseline


@pytest.fixture
def store(predicted, tmp_path, monkeypatch):
    """``store(folder, name, widths, ...)`` writes a baseline; the working folder is empty."""
    monkeypatch.chdir(tmp_path)

    def run(folder, name, widths, *, changed=(), **kwargs):
        prediction = predicted(widths, **kwargs)
        found = baseline_of(prediction, test=f"t.py::{name}", torch="2.13")
        found = replace(found, **dict(changed))
        path = Path(folder) / found.platform / f"{name}.yaml"
        write_baseline(path, baseline_text(found))
        return path

    return run


def compare(*args):
    return CliRunner().invoke(app, ["compare", *map(str, args)])


def test_equal_folders_are_ok(store):
    store("a", "net", [32, 32])
    store("b", "net", [32, 32])
    result = compare("a", "b")
    assert result.exit_code == 0
    assert "unchanged" in result.output


def test_a_dearer_model_is_a_regression(store):
    store("a", "net", [32, 32])
    store("b", "net", [32, 64])
    result = compare("a", "b")
    assert result.exit_code == 1
    assert "WORSE" in result.output
    assert "more operations: +100.0%" in result.output
    assert compare("a", "b", "-t", "max_percent=99").exit_code == 0


def test_an_improvement_is_ok_and_shown(store):
    store("a", "net", [32, 64])
    store("b", "net", [32, 32])
    result = compare("a", "b")
    assert result.exit_code == 0
    assert "fewer operations: -50.0%" in result.output


def test_models_of_one_side_are_listed(store):
    store("a", "net", [32])
    store("a", "old", [32], names=["first"])
    store("b", "net", [32])
    store("b", "young", [32, 32, 32], names=["second", "third", "fourth"])
    result = compare("a", "b")
    assert result.exit_code == 0
    assert [line.split()[:2] for line in result.output.splitlines()[1:4]] == [
        ["ok", "net"], ["removed", "old"], ["new", "young"],
    ]  # fmt: skip
    assert all("mJ" in line and "µs" in line for line in result.output.splitlines()[2:4])


def test_a_test_of_another_name_is_found_by_its_layers(store):
    store("a", "net", [32])
    store("a", "one", [32, 32], names=["first", "second"])
    store("b", "net", [32])
    store("b", "two", [32, 64], names=["first", "second"])
    result = compare("a", "b")
    assert result.exit_code == 1
    assert "WORSE  two, new name of one" in result.output
    assert "new name of one" in compare("a", "b", "--markdown").output
    assert compare("b", "a").exit_code == 0  # cheaper under its new name


def test_two_files_are_compared_whatever_they_are_called(store):
    one, other = store("a", "net", [32]), store("a", "wide", [64])
    assert compare(one, other).exit_code == 1


def test_a_recalibration_is_told_from_the_model(store):
    store("a", "net", [32], changed={"platform_sha256": "0" * 64})
    store("b", "net", [32])
    result = compare("a", "b")
    assert result.exit_code == 0
    assert "recalibrated" in result.output
    assert "the model is unchanged" in result.output


def test_markdown_and_json(store):
    store("a", "net", [32, 32])
    store("b", "net", [32, 64])
    markdown = compare("a", "b", "--markdown")
    assert markdown.exit_code == 1
    assert markdown.output.startswith("### Predicted energy and runtime: 1 of 1 cost more")
    assert "| ❌ | `net` | titanx |" in markdown.output
    (found,) = json.loads(compare("a", "b", "--json").output)
    assert found["outcome"] == "regressed"
    assert {each["cause"] for each in found["comparison"]["causes"]} >= {"more operations"}


def git(*args):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run(["git", *identity, *args], check=True, capture_output=True)


@pytest.fixture
def revisions(store):
    """``main~1``, and ``main`` whose model is dearer."""
    git("init", "-b", "main")
    store("budgets/baselines", "net", [32, 32])
    git("add", ".")
    git("commit", "-m", "one")
    store("budgets/baselines", "net", [32, 64])
    git("commit", "-am", "two")


def test_git_revisions_of_a_folder(revisions):
    assert compare("main~1", "main").exit_code == 1
    assert compare("main", "main", "--folder", "budgets/baselines").exit_code == 0
    assert compare("main", "main", "--folder", Path("budgets/baselines").absolute()).exit_code == 0
    assert compare("main~1", "budgets/baselines").exit_code == 1
    for args in (("nowhere", "main"), ("main", "main", "--folder", "elsewhere")):
        result = compare(*args)
        assert isinstance(result.exception, NeuralPowerError)
        assert "git has no baselines of it" in str(result.exception)


def test_a_folder_that_archives_leave_out_and_links_of_a_revision_are_read(revisions):
    Path(".gitattributes").write_text("budgets export-ignore\n")
    Path("linked").symlink_to("budgets/baselines")
    Path("platforms").mkdir()
    Path("platforms/titanx").symlink_to("../budgets/baselines/titanx")
    Path("platforms/round").symlink_to("../platforms")
    git("add", ".")
    git("commit", "-m", "three")
    assert compare("main~2", "main").exit_code == 1
    assert compare("main", "main", "--folder", "linked").exit_code == 0
    assert "net" in compare("main", "main", "--folder", "platforms").output


def test_what_a_clone_of_a_ci_lacks_is_told(revisions, tmp_path, monkeypatch):
    url = tmp_path.as_uri()
    git("branch", "topic")
    git("clone", "--depth=1", url, "shallow")
    git("clone", "--branch=topic", url, "whole")
    monkeypatch.chdir("shallow")
    assert "fetch-depth: 0" in str(compare("HEAD~1", "HEAD").exception)
    monkeypatch.chdir("../whole")
    git("checkout", "--detach")
    assert "write origin/main" in str(compare("main", "HEAD").exception)
    assert compare("origin/main", "HEAD").exit_code == 0


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "cp932"])
def test_output_is_written_in_any_encoding(store, encoding):
    store("a", "net", [32])
    store("b", "net", [64])
    command = [sys.executable, "-c", "from pytest_neuralpower.cli import main; main()"]
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    for extra, text in (((), "us"), (("--markdown",), "❌"), (("--json",), "regressed")):
        done = subprocess.run(
            [*command, "compare", "a", "b", *extra], capture_output=True, env=env, check=False
        )
        assert (done.returncode, done.stderr) == (1, b"")
        written = done.stdout.decode("utf-8" if extra else encoding)
        assert text in written or "µs" in written


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("no.json", "no.json: there is no such file; write a report with pytest --np-"),
        ("other.json", "other.json is not a report of this plugin"),
        ("broken.json", "broken.json cannot be read as a report"),
        ("deep.json", "deep.json cannot be read as a report"),
        ("old.json", "old.json has version 0, this release reads 1"),
        ("half.json", "half.json: a prediction is broken"),
        ("empty", "empty has no baselines"),
        ("apart", "no model is in both"),
    ],
)
def test_what_cannot_be_compared_is_one_line(store, head, message):
    store("a", "net", [32])
    store("apart", "another", [32], names=["elsewhere"])
    Path("empty").mkdir()
    Path("other.json").write_text("{}")
    Path("broken.json").write_text("{")
    Path("deep.json").write_text("[" * 100_000)
    report = {"format": "pytest-neuralpower report", "version": 1, "torch": "2"}
    Path("old.json").write_text(json.dumps({**report, "version": 0}))
    Path("half.json").write_text(json.dumps({**report, "predictions": [{"name": "net"}]}))
    result = compare("a", head)
    assert isinstance(result.exception, NeuralPowerError)  # `main` makes it exit code 2
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)


def test_an_unknown_tolerance_is_shown_as_it_was_written(store):
    store("a", "net", [32])
    result = compare("a", "a", "-t", "max_persent=3")
    assert str(result.exception) == (
        "--tolerance: unknown argument, did you mean max_percent?: max_persent=3; allowed: "
        "max_percent, max_mj, max_ms, layer_max_percent, layer_max_mj, layer_max_ms, per"
    )


def test_two_calibrations_of_a_platform_that_is_not_here_cannot_be_compared(store):
    store("a", "net", [32], changed={"platform": "mine", "platform_sha256": "0" * 64})
    store("b", "net", [32], changed={"platform": "mine"})
    store("a", "grown", [32])
    store("b", "grown", [64])  # a regression, which would be exit code 1
    result = compare("a", "b")
    assert result.exit_code == 2
    assert "give its file with --platform" in result.output


def test_one_calibration_of_a_platform_that_is_not_here_is_compared_as_stored(store):
    store("a", "net", [32], changed={"platform": "mine"})
    store("b", "net", [64], changed={"platform": "mine"})
    assert compare("a", "b").exit_code == 1


def test_the_command_itself_exits_with_2(tmp_path):
    command = [sys.executable, "-c", "from pytest_neuralpower.cli import main; main()"]
    done = subprocess.run(
        [*command, "compare", "a.json", "b.json"], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("neuralpower: a.json: there is no such file; write a report")
    assert done.stderr.count("\n") == 1
