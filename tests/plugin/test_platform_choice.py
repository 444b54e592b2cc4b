"""--np-platform, its environment and ini twins, and platform= in a marker."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import pytest_neuralpower

SHIPPED = Path(pytest_neuralpower.__file__).parent / "platforms"


ONE = """
    @pytest.mark.energy_budget(j=1000)
    def test_one(neuralpower):
        neuralpower.predict(small(), image())
"""


def test_each_platform_runs_every_guarded_test_once(repo):
    repo.write(ONE + "\n    def test_unguarded(): pass\n")
    result = repo.run("--np-platform=titanx", "--np-platform=titanx-tf", "-v")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(
        ["*::test_one[[]titanx[]] PASSED*", "*::test_one[[]titanx-tf[]] PASSED*"]
    )


def test_one_platform_leaves_the_test_ids_alone(repo):
    repo.write(ONE)
    repo.run("--np-platform=titanx", "-v").stdout.fnmatch_lines(["*::test_one PASSED*"])


def test_naming_a_platform_twice_runs_it_once(repo):
    repo.write(ONE)
    repo.run("--np-platform=titanx", "--np-platform=titanx").assert_outcomes(passed=1)


def test_a_platform_file_is_taken_by_its_path(repo, pytester):
    shutil.copy(SHIPPED / "titanx.json", pytester.path / "mine.json")
    repo.write(ONE)
    repo.run("--np-platform=./mine.json").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    "ini", ["[pytest]\nnp_platform = titanx-tf\n", "[pytest]\nnp_platform = titanx-tf titanx\n"]
)
def test_the_ini_file_chooses(repo, pytester, ini):
    pytester.makeini(ini)
    repo.write("""
        def test_one(neuralpower):
            assert neuralpower.platform.name in ("titanx", "titanx-tf")
    """)
    repo.run().assert_outcomes(passed=len(ini.split("=")[1].split()))


def test_pyproject_chooses(repo, pytester):
    (pytester.path / "tox.ini").unlink()
    pytester.makepyprojecttoml('[tool.pytest.ini_options]\nnp_platform = "titanx"\nnp_top = 1\n')
    repo.write(ONE)
    repo.run().assert_outcomes(passed=1)


@pytest.mark.skipif(pytest.version_tuple < (9, 0), reason="[tool.pytest] came with pytest 9.0")
def test_native_pyproject_chooses(repo, pytester):
    (pytester.path / "tox.ini").unlink()
    pytester.makepyprojecttoml(
        '[tool.pytest]\nnp_platform = ["titanx"]\nnp_top = 2\nnp_strict = true\n'
        "np_strict_limit = 100.0\n"
    )
    repo.write(ONE)
    repo.run().assert_outcomes(passed=1)


def test_command_line_beats_environment_beats_ini(repo, pytester, monkeypatch):
    pytester.makeini("[pytest]\nnp_platform = titanx\n")
    repo.write("""
        def test_one(neuralpower):
            print("ran on", neuralpower.platform.name)
    """)
    repo.run("-s").stdout.fnmatch_lines(["*ran on titanx"])
    monkeypatch.setenv("NEURALPOWER_PLATFORM", "titanx-tf")
    repo.run("-s").stdout.fnmatch_lines(["*ran on titanx-tf"])
    repo.run("-s", "--np-platform=titanx").stdout.fnmatch_lines(["*ran on titanx"])


def test_a_marker_beats_the_command_line(repo):
    repo.write("""
        @pytest.mark.energy_budget(j=1000, platform="titanx-tf")
        def test_one(neuralpower):
            assert neuralpower.platform.name == "titanx-tf"
            neuralpower.predict(small(), image())
    """)
    repo.run("--np-platform=titanx").assert_outcomes(passed=1)
    repo.run().assert_outcomes(passed=1)


def test_each_platform_is_held_against_its_own_budget(repo):
    repo.write("""
        @pytest.mark.energy_budget(j=1000, platform="titanx")
        @pytest.mark.energy_budget(uj=1, platform="titanx-tf")
        def test_one(neuralpower):
            neuralpower.predict(small(), image())
    """)
    result = repo.run("-v")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*test_one[[]titanx-tf[]] FAILED*"])


def test_a_budget_without_platform_is_for_the_sessions_platforms(repo):
    repo.write("""
        @pytest.mark.energy_budget(j=1000, platform="titanx")
        @pytest.mark.runtime_budget(us=1)
        def test_one(neuralpower):
            neuralpower.predict(small(), image())
    """)
    result = repo.run("--np-platform=titanx-tf", "-v")
    result.stdout.fnmatch_lines(
        ["*test_one[[]titanx[]] PASSED*", "*test_one[[]titanx-tf[]] FAILED*"]
    )


def test_a_path_in_the_ini_file_starts_at_the_ini_file(repo, pytester, monkeypatch):
    shutil.copy(SHIPPED / "titanx.json", pytester.path / "mine.json")
    pytester.makeini("[pytest]\nnp_platform = ./mine.json\n")
    repo.write(ONE)
    folder = pytester.mkdir("below")
    monkeypatch.chdir(folder)
    repo.run("..").assert_outcomes(passed=1)


def test_a_quote_in_the_environment_is_no_crash(repo, monkeypatch):
    monkeypatch.setenv("NEURALPOWER_PLATFORM", "it's")
    repo.write(ONE)
    result = repo.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*unknown platform*it's*"])


def test_two_files_of_one_name_are_refused(repo, pytester):
    other = pytester.mkdir("other") / "titanx.json"
    shutil.copy(SHIPPED / "t4.json", other)
    repo.write(ONE)
    result = repo.run("--np-platform=titanx", f"--np-platform={other}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: platforms titanx and *titanx.json are both called *"])


def test_a_file_that_calls_itself_as_another_keeps_off_its_baselines(repo, pytester):
    shutil.copy(SHIPPED / "titanx.json", pytester.path / "mine.json")
    repo.write(ONE.replace("energy_budget(j=1000)", "regression(max_percent=1)"))
    repo.run("--np-platform=./mine.json", "--np-update-baseline=new")
    folders = [path.name for path in (pytester.path / "budgets/baselines").iterdir()]
    assert folders == ["mine"]
