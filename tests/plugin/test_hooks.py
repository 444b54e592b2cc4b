"""Hooks that a conftest implements: platforms, report formats, and each prediction."""

from __future__ import annotations

import json

import pytest

ONE = """
    @pytest.mark.energy_budget(j=1000)
    def test_one(neuralpower):
        assert neuralpower.platform.device == "a lab's board"
        neuralpower.predict(small(), image())
"""

LAB = """
    from msgspec.structs import replace
    from pytest_neuralpower import load_platform

    def pytest_neuralpower_platform(name):
        if name == "lab":
            return replace(load_platform("titanx"), name="lab", device="a lab's board")
"""


def test_a_conftest_provides_a_platform(repo, pytester):
    pytester.makeconftest(LAB)
    repo.write(ONE)
    result = repo.run("--np-platform=lab")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["* lab"])


def test_a_conftest_names_a_platform_by_its_file(repo, pytester):
    pytester.makeconftest("""
        import pytest_neuralpower
        from pathlib import Path

        def pytest_neuralpower_platform(name):
            if name == "ours":
                return Path(pytest_neuralpower.__file__).parent / "platforms" / "titanx.json"
    """)
    repo.write("def test_one(neuralpower): neuralpower.predict(small(), image())")
    repo.run("--np-platform=ours").assert_outcomes(passed=1)


def test_a_name_that_no_conftest_knows_is_left_to_the_shipped_platforms(repo, pytester):
    pytester.makeconftest(LAB)
    repo.write("def test_one(neuralpower): neuralpower.predict(small(), image())")
    repo.run("--np-platform=titanx").assert_outcomes(passed=1)
    result = repo.run("--np-platform=labb")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *'labb'*"])


CSV = """
    def table(report):
        lines = [f"{each['test']},{each['energy_mj']}" for each in report["predictions"]]
        return "".join(f"{line}\\n" for line in lines)

    def pytest_neuralpower_report_formats(config):
        return {".csv": table}
"""


def test_a_conftest_adds_a_report_format(repo, pytester):
    pytester.makeconftest(CSV)
    repo.write("def test_one(neuralpower): neuralpower.predict(small(), image())")
    repo.run("--np-platform=titanx", "--np-report=a.csv", "--np-report=a.json")
    report = json.loads((pytester.path / "a.json").read_text("utf-8"))
    energy = report["predictions"][0]["energy_mj"]
    assert (pytester.path / "a.csv").read_text("utf-8") == f"test_guard.py::test_one,{energy}\n"


def test_a_suffix_that_is_none_is_one_clear_line(repo, pytester):
    pytester.makeconftest(CSV.replace('".csv"', '"csv"'))
    result = repo.run("--np-platform=titanx", "--np-report=a.csv")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: pytest_neuralpower_report_formats: 'csv' is not a suffix; write one like '.csv'"]
    )


def test_a_conftest_sees_each_prediction_with_its_verdict(repo, pytester):
    pytester.makeconftest("""
        def pytest_neuralpower_prediction(item, prediction, record):
            with open("seen.txt", "a") as file:
                print(item.name, len(prediction.layers), record["outcome"], *record, file=file)
    """)
    repo.write("""
        @pytest.mark.energy_budget(uj=1)
        def test_over(neuralpower):
            neuralpower.predict(small(), image())
            neuralpower.predict(small(), image(1))

        def test_free(neuralpower):
            neuralpower.predict(small(), image())
    """)
    repo.run("--np-platform=titanx", "--np-report=a.json").assert_outcomes(passed=1, failed=1)
    fields = list(json.loads((pytester.path / "a.json").read_text("utf-8"))["predictions"][0])
    shown = " ".join(each for each in fields if each not in ("name", "layers"))
    assert (pytester.path / "seen.txt").read_text().splitlines() == [
        f"test_over 4 over {shown}",
        f"test_over 4 over {shown}",
        f"test_free 4 unbounded {shown}",
    ]
