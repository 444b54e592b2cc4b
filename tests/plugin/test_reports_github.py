"""``--np-report=github``: a step summary, and annotations at the tests that broke."""

from __future__ import annotations

import pytest

BROKEN = """
    @pytest.mark.parametrize("case", ["50%, or: less"])
    @pytest.mark.energy_budget(uj=1)
    def test_over(neuralpower, case):
        neuralpower.predict(small(), image())

    @pytest.mark.energy_budget(j=1000)
    def test_within(neuralpower):
        neuralpower.predict(small(), image())
"""


@pytest.fixture
def summary(pytester, monkeypatch):
    """The step summary's file, into which an earlier step has written."""
    path = pytester.path / "step_summary.md"
    path.write_text("earlier\n", encoding="utf-8")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    monkeypatch.setenv("GITHUB_WORKSPACE", str(pytester.path))
    return path


def commands(result) -> list[str]:
    return [line for line in result.outlines if line.startswith("::")]


def test_the_summary_gets_the_markdown_report_once(repo, summary, pytester):
    repo.write(BROKEN)
    repo.run("--np-platform=titanx", "--np-report=github", "--np-report=report.md")
    assert summary.read_text("utf-8") == "earlier\n" + (pytester.path / "report.md").read_text(
        "utf-8"
    )


def test_an_annotation_stands_at_the_test_that_broke_and_nowhere_else(repo, summary):
    repo.write(BROKEN)
    (command,) = commands(repo.run("--np-platform=titanx", "--np-report=github"))
    head, _, message = command.removeprefix("::").partition("::")
    assert head == ("error file=test_guard.py,line=4,title=budget exceeded%3A Sequential on titanx")
    assert message.startswith("energy budget exceeded: Sequential on titanx%0A  budget     1.00 µJ")


def test_what_github_would_read_as_a_command_is_escaped(repo, summary, pytester):
    (pytester.path / "a,b:c").mkdir()
    pytester.syspathinsert()
    repo.write(
        """
        class Net(__import__("torch").nn.Module):
            def forward(self, x):
                return x + 1

        Net.__name__ = "A%, B: C"

        @pytest.mark.energy_budget(uj=1)
        def test_over(neuralpower):
            neuralpower.predict(Net(), image())
        """,
        "a,b:c/test_odd",
    )
    (command,) = commands(repo.run("--np-platform=titanx", "--np-report=github"))
    head = command.removeprefix("::").partition("::")[0]
    assert "file=a%2Cb%3Ac/test_odd.py," in head
    assert head.endswith("title=budget exceeded%3A A%25%2C B%3A C on titanx")


def test_paths_start_at_the_checkout_where_pytest_runs_in_a_folder_of_it(
    repo, summary, pytester, monkeypatch
):
    monkeypatch.setenv("GITHUB_WORKSPACE", str(pytester.path.parent))
    repo.write(BROKEN)
    (command,) = commands(repo.run("--np-platform=titanx", "--np-report=github"))
    assert f"file={pytester.path.name}/test_guard.py," in command


def test_outside_a_workflow_one_line_says_so(repo, monkeypatch):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    repo.write("def test_one(neuralpower): neuralpower.predict(small(), image())")
    result = repo.run("--np-platform=titanx", "--np-report=github")
    assert result.ret == pytest.ExitCode.OK
    found = [line for line in result.outlines if "GITHUB_STEP_SUMMARY" in line]
    assert found == [
        "no step summary: GITHUB_STEP_SUMMARY is not set; run it in a GitHub workflow, or write a "
        "file with --np-report=report.md"
    ]


def test_a_summary_that_cannot_be_written_fails_the_session(repo, summary, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary.parent))
    repo.write("def test_one(neuralpower): neuralpower.predict(small(), image())")
    result = repo.run("--np-platform=titanx", "--np-report=github")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["step summary * cannot be written (Is a directory)"])


def test_a_summary_that_github_would_refuse_is_cut_to_its_verdict(repo, summary):
    summary.write_text("x" * (1024 * 1024 - 200), encoding="utf-8")
    repo.write(BROKEN)
    repo.run("--np-platform=titanx", "--np-report=github")
    added = summary.read_text("utf-8").lstrip("x")
    assert added.startswith("### Predicted energy and runtime: 1 of 2")
    assert "--np-report=report.md" in added
    assert summary.stat().st_size <= 1024 * 1024


def test_github_and_a_file_of_an_unknown_suffix_are_told_apart(repo):
    result = repo.run("--np-platform=titanx", "--np-report=gitlab")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: --np-report=gitlab: no format*allowed: .json, .md, .html, or the word github"]
    )
