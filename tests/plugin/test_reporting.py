"""What a session shows: the summary, --np-top, --np-strict and JUnit."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from pytest_neuralpower.cli import app

THREE = """
    @pytest.mark.energy_budget(uj=1)
    def test_over(neuralpower):
        neuralpower.predict(small(), image())

    @pytest.mark.energy_budget(j=1000)
    @pytest.mark.runtime_budget(s=1)
    def test_within(neuralpower):
        neuralpower.predict(small(), image())

    def test_no_budget(neuralpower):
        neuralpower.predict(small(), image())
"""


def test_the_summary_has_each_guarded_test(repo):
    repo.write(THREE + "\n    def test_unguarded(): pass\n")
    result = repo.run("--np-platform=titanx")
    result.assert_outcomes(passed=3, failed=1)
    tests, figures = summary(result)[::2], summary(result)[1::2]  # too long for a line each
    assert [line.split() for line in tests] == [
        ["-", "test_guard.py::test_no_budget"],
        ["OVER", "test_guard.py::test_over"],
        ["ok", "test_guard.py::test_within"],
    ]
    assert "of 1,000 J" in figures[2]
    assert "of 1.00 s" in figures[2]
    assert all("titanx" in line for line in figures)


def summary(result) -> list[str]:
    """Lines of the summary section."""
    start = next(i for i, line in enumerate(result.outlines) if "(neuralpower) ==" in line)
    section = result.outlines[start + 1 :]
    return section[: next(i for i, line in enumerate(section) if line.startswith("==") or not line)]


LONG = """
    import pytest

    @pytest.mark.parametrize("case", ["of_a_rather_long_name_that_goes_on_and_on_and_on"])
    @pytest.mark.energy_budget(j=1000)
    def test_of_a_long_name_as_well(neuralpower, case):
        neuralpower.predict(small(), image())
"""


def test_a_long_id_is_shortened_and_shown_whole_when_verbose(repo):
    repo.write(LONG)
    found = summary(repo.run("--np-platform=titanx"))
    assert len(found) == 2
    assert max(map(len, found)) <= 80
    assert found[0].startswith("ok  …::test_of_a_long_name_as_")
    assert found[0].endswith("on_and_on]")
    assert " of 1,000 J" in found[1]
    assert summary(repo.run("--np-platform=titanx", "-v"))[0] == (
        "ok  test_guard.py::test_of_a_long_name_as_well"
        "[of_a_rather_long_name_that_goes_on_and_on_and_on]"
    )


def test_short_lines_have_all_of_a_test(repo):
    repo.write("def test_one(neuralpower): neuralpower.predict(small(), image())")
    (line,) = summary(repo.run("--np-platform=titanx"))
    assert line.startswith(
        "-  126 mJ  536 µs  236 W  19% not measured  titanx  test_guard.py::test_one"
    )


def test_quiet_leaves_the_summary_out(repo):
    repo.write(THREE)
    text = repo.run("--np-platform=titanx", "-q").stdout.str()
    assert "predicted energy and runtime (neuralpower)" not in text
    assert "1 failed, 2 passed" in text


def test_the_summary_is_absent_when_nothing_was_predicted(repo):
    repo.write("def test_one(): pass")
    result = repo.run("--np-platform=titanx")
    result.assert_outcomes(passed=1)
    assert "predicted energy and runtime (neuralpower)" not in result.stdout.str()


def test_top_limits_the_layers_and_says_how_to_see_the_rest(repo):
    repo.write(THREE)
    result = repo.run("--np-platform=titanx", "--np-top=2")
    result.stdout.fnmatch_lines(
        [
            "  the 2 most expensive of 4 layers:",
            "  every layer: pytest --np-platform=titanx --np-top=0 test_guard.py::test_over",
        ]
    )
    result.stdout.no_fnmatch_line("*relu*")


def test_top_zero_shows_every_layer(repo):
    repo.write(THREE)
    result = repo.run("--np-platform=titanx", "--np-top=0")
    result.stdout.fnmatch_lines(["  layers:", "*relu*"])
    result.stdout.no_fnmatch_line("*every layer:*")


UNCOVERED = """
    import torch

    class Spectrum(torch.nn.Module):
        def forward(self, x):
            return torch.linalg.svdvals(x)

    def test_spectrum(neuralpower):
        prediction = neuralpower.predict(Spectrum(), image())
        assert prediction.share("uncovered") > 0.3
        assert all(layer.energy_mj > 0 for layer in prediction.layers)
"""


def test_an_uncovered_operation_is_listed_flagged_and_never_free(repo):
    repo.write(UNCOVERED)
    repo.run("--np-platform=titanx").assert_outcomes(passed=1)


@pytest.mark.parametrize("how", ["option", "ini"])
def test_strict_fails_on_too_much_uncovered_energy(repo, pytester, how):
    repo.write(UNCOVERED)
    if how == "ini":
        pytester.makeini("[pytest]\nnp_strict = true\n")
    result = repo.run("--np-platform=titanx", *(["--np-strict"] if how == "option" else []))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "prediction not trusted: Spectrum on titanx",
            "  *% is uncovered or inferred or extrapolated; --np-strict allows 5.0%",
            "*linalg_svdvals*8x3x64 *U*",
            "  U: linalg_svdvals (*% of the energy): no formula, may take any time",
        ]
    )


def test_strict_with_a_wide_limit_passes(repo):
    repo.write(UNCOVERED)
    result = repo.run("--np-platform=titanx", "--np-strict", "--np-strict-limit=100")
    result.assert_outcomes(passed=1)


def test_junit_counts_the_failure_and_carries_the_figures(repo, pytester):
    repo.write(THREE)
    repo.run("--np-platform=titanx", "--junit-xml=report.xml", "-o", "junit_family=xunit1")
    suite = ElementTree.parse(pytester.path / "report.xml").getroot().find("testsuite")
    assert (suite.get("failures"), suite.get("errors"), suite.get("tests")) == ("1", "0", "3")
    over = suite.find("testcase[@name='test_over']")
    found = {item.get("name"): item.get("value") for item in over.iter("property")}
    assert found["neuralpower.platform"] == "titanx"
    assert float(found["neuralpower.energy_mj"]) > 0
    assert float(found["neuralpower.energy_budget_mj_per_call"]) == pytest.approx(1e-3)
    assert over.find("failure").text.startswith("energy budget exceeded: Sequential on titanx")


def test_the_same_session_gives_the_same_figures_twice(repo):
    repo.write(THREE)
    first, again = (summary(repo.run("--np-platform=titanx")) for _ in range(2))
    assert len(first) == 6
    assert first == again


def test_the_printed_command_shows_every_layer(repo):
    repo.write("""
        @pytest.mark.parametrize("name", ['with "quotes" & blanks'])
        @pytest.mark.energy_budget(uj=1)
        def test_over(neuralpower, name):
            neuralpower.predict(small(), image())
    """)
    text = repo.run("--np-platform=titanx", "--np-platform=titanx-tf", "--np-top=1").stdout.str()
    command = re.search(r"every layer: pytest (.+)", text).group(1)
    again = repo.run(*shlex.split(command))
    again.assert_outcomes(failed=1)
    again.stdout.fnmatch_lines(["  layers:", "*relu*"])


def test_the_printed_strict_limit_is_wide_enough(repo):
    repo.write(UNCOVERED)
    text = repo.run("--np-platform=titanx", "--np-strict").stdout.str()
    command = re.search(r"pytest (.+--np-strict-limit.+)", text).group(1)
    repo.run(*shlex.split(command)).assert_outcomes(passed=1)


def test_the_tightest_of_two_budgets_is_in_the_summary(repo):
    repo.write("""
        @pytest.mark.energy_budget(uj=1)
        @pytest.mark.energy_budget(j=1000, per="sample")
        def test_two(neuralpower):
            neuralpower.predict(small(), image())
    """)
    result = repo.run("--np-platform=titanx")
    result.stdout.fnmatch_lines(["OVER  test_guard.py::test_two", "* of 1.00 µJ *"])


def test_a_test_that_failed_by_itself_is_still_listed(repo):
    repo.write("""
        @pytest.mark.energy_budget(j=1000)
        def test_wrong(neuralpower):
            neuralpower.predict(small(), image())
            assert False
    """)
    result = repo.run("--np-platform=titanx")
    result.stdout.fnmatch_lines(["failed  test_guard.py::test_wrong", "* of 1,000 J *"])


def test_a_prediction_prints_short(repo):
    repo.write("""
        def test_repr(neuralpower):
            prediction = neuralpower.predict(small(), image())
            assert len(repr(prediction)) < 100
            assert "Sequential on titanx" in repr(prediction)
            assert repr(prediction.top(1)[0]).startswith("<conv2d ")
    """)
    repo.run("--np-platform=titanx").assert_outcomes(passed=1)


def test_a_report_compares_with_itself_and_with_another_batch(repo, monkeypatch):
    repo.write(
        """
        import os

        def test_net(neuralpower):
            neuralpower.predict(small(), image(int(os.environ.get("BATCH", 1))))
        """
    )
    repo.run("--np-platform=titanx", "--np-report=before.json")
    monkeypatch.setenv("BATCH", "4")
    repo.run("--np-platform=titanx", "--np-report=after.json")
    same = CliRunner().invoke(app, ["compare", "before.json", "before.json"])
    assert same.exit_code == 0, same.output
    assert "unchanged" in same.output
    other = CliRunner().invoke(app, ["compare", "before.json", "after.json"])
    assert other.exit_code == 1
    assert "the batch changed from 1 to 4" in other.output


def test_build_refuses_arguments_that_a_factory_does_not_take_in_one_line(repo):
    repo.write(
        """
        def test_net(neuralpower):
            neuralpower.build(small, widht=3)
        """
    )
    result = repo.run("--np-platform=titanx")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*small could not be called: got an unexpected keyword*'widht'"])
    result.stdout.no_fnmatch_line("*model_source.py*")


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "xdist"])
def test_a_ci_prints_a_failure_once_and_its_figures_in_the_short_summary(
    repo, monkeypatch, workers
):
    monkeypatch.setenv("CI", "true")
    repo.write(
        """
        @pytest.mark.energy_budget(mj=25)
        def test_over(neuralpower): neuralpower.predict(small(), image())
        """
    )
    result = repo.run("--np-platform=titanx", "--np-report=r.md", *workers)
    text = result.stdout.str()
    assert text.count("energy budget exceeded") == 1
    (row,) = [line for line in Path("r.md").read_text().splitlines() if line.startswith("| ❌")]
    assert "(sure)" in row
    assert "| 19% |" in row
    result.stdout.fnmatch_lines(["FAILED test_guard.py::test_over - 126 mJ > 25 mJ on titanx"])
