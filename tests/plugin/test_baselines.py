"""Baselines: written when asked, held otherwise, missing and stale ones reported."""

from __future__ import annotations

import fnmatch
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_neuralpower.guard.baseline import read_baseline
from pytest_neuralpower.platform.catalog import load_platform

ONE = """
    @pytest.mark.regression(max_percent=2)
    def test_small(neuralpower):
        neuralpower.predict(small(), image())
"""
WIDER = ("nn.Conv2d(3, 64, 3, padding=1)", "nn.Conv2d(3, 96, 3, padding=1)")
WIDER_NEXT = ("nn.Conv2d(64, 128, 3)", "nn.Conv2d(96, 128, 3)")
FOLDER = Path("budgets/baselines/titanx")


@pytest.fixture
def guard(repo, pytester):
    """``guard.run(...)`` on titanx; ``guard.change(...)`` edits the model."""

    class Guarded:
        folder = pytester.path / FOLDER

        def run(self, *args):
            return repo.run("--np-platform=titanx", *args)

        def accept(self, body=ONE):
            repo.write(body)
            self.run("--np-update-baseline").assert_outcomes(passed=body.count("def test_"))

        def change(self, *pairs):
            path = pytester.path / "models.py"
            text = path.read_text()
            for before, after in pairs:
                assert before in text
                text = text.replace(before, after)
            path.write_text(text)

        def names(self):
            return sorted(path.name for path in self.folder.glob("*"))

    return Guarded()


class TestUpdate:
    def test_nothing_is_written_unless_asked(self, guard, repo):
        repo.write(ONE)
        result = guard.run()
        result.assert_outcomes(passed=1)
        result.stdout.fnmatch_lines(
            [
                "*no baseline*",
                "no baseline yet for test_guard.py::test_small",
                "*pytest --np-platform=titanx --np-update-baseline=new",
            ]
        )
        assert not guard.folder.exists()

    def test_update_writes_every_guarded_test_and_nothing_else(self, guard):
        body = (
            ONE
            + """
    @pytest.mark.energy_budget(j=1000)
    def test_budget(neuralpower):
        neuralpower.predict(small(), image())
        neuralpower.predict(small(), image(2))

    def test_free(neuralpower):
        neuralpower.predict(small(), image())
"""
        )
        guard.accept(body)
        assert guard.names() == [
            "test_guard.test_budget.2.yaml",
            "test_guard.test_budget.yaml",
            "test_guard.test_small.yaml",
        ]
        assert read_baseline(guard.folder / "test_guard.test_budget.2.yaml").batch == 2
        guard.run().assert_outcomes(passed=3)

    def test_new_writes_only_what_is_missing(self, guard, repo):
        guard.accept()
        before = (guard.folder / "test_guard.test_small.yaml").read_bytes()
        guard.change(WIDER, WIDER_NEXT)
        repo.write(ONE + ONE.replace("test_small", "test_other"))
        result = guard.run("--np-update-baseline=new")
        result.assert_outcomes(passed=1, failed=1)  # the old one is held as ever
        assert "test_guard.test_other.yaml" in guard.names()
        assert (guard.folder / "test_guard.test_small.yaml").read_bytes() == before

    def test_update_leaves_the_baseline_of_a_test_that_fails(self, guard, repo):
        guard.accept()
        before = (guard.folder / "test_guard.test_small.yaml").read_bytes()
        guard.change(WIDER, WIDER_NEXT)
        repo.write(ONE + "        assert False")
        guard.run("--np-update-baseline").assert_outcomes(failed=1)
        assert (guard.folder / "test_guard.test_small.yaml").read_bytes() == before

    def test_update_leaves_the_baseline_of_a_model_over_its_budget(self, guard, repo):
        guard.accept()
        before = (guard.folder / "test_guard.test_small.yaml").read_bytes()
        guard.change(WIDER, WIDER_NEXT)
        repo.write(ONE.replace("def test", "@pytest.mark.energy_budget(uj=1)\n    def test"))
        result = guard.run("--np-update-baseline")
        result.stdout.fnmatch_lines(["baselines left as they are, their tests did not pass: *"])
        assert (guard.folder / "test_guard.test_small.yaml").read_bytes() == before

    def test_a_path_behind_the_option_is_no_value_of_it(self, guard, repo):
        repo.write(ONE)
        guard.run("--np-update-baseline", "test_guard.py").assert_outcomes(passed=1)
        assert guard.names()

    def test_a_second_update_changes_nothing(self, guard):
        guard.accept()
        stamp = (guard.folder / "test_guard.test_small.yaml").stat().st_mtime_ns
        guard.run("--np-update-baseline").stdout.fnmatch_lines(
            ["baselines: 0 written, 1 unchanged"]
        )
        assert (guard.folder / "test_guard.test_small.yaml").stat().st_mtime_ns == stamp

    def test_a_small_change_is_a_small_diff(self, guard):
        guard.accept()
        path = guard.folder / "test_guard.test_small.yaml"
        before = path.read_text().splitlines()
        guard.change(("nn.Conv2d(64, 128, 3)", "nn.Conv2d(64, 132, 3)"))
        guard.run("--np-update-baseline").assert_outcomes(passed=1)
        after = path.read_text().splitlines()
        changed = [new for old, new in zip(before, after, strict=True) if old != new]
        assert [line.partition(":")[0] for line in changed] == ["totals", '- {"path"']


class TestHeld:
    def test_the_same_model_passes(self, guard):
        guard.accept()
        result = guard.run()
        result.assert_outcomes(passed=1)
        result.stdout.fnmatch_lines(["*as baseline*"])

    def test_a_dearer_model_fails_and_says_why(self, guard):
        guard.accept()
        guard.change(WIDER, WIDER_NEXT)
        result = guard.run()
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(
            [
                "costs more than its baseline: Sequential on titanx",
                "  energy   * allowed: +*",
                "           change between * 90% sure to be more",
                "  why, of the model:",
                "*more operations: +50.0% (weights *",
                f"  baseline: {FOLDER}/test_guard.test_small.yaml",
                "  accept:   pytest --np-platform=titanx --np-update-baseline "
                "test_guard.py::test_small",
            ]
        )
        result.stdout.fnmatch_lines(["WORSE*", "*on baseline*"])

    def test_a_cheaper_model_passes_and_shows(self, guard):
        guard.accept()
        guard.change(("nn.Conv2d(64, 128, 3)", "nn.Conv2d(64, 32, 3)"))
        result = guard.run("--np-report=report.md")
        result.assert_outcomes(passed=1)
        result.stdout.fnmatch_lines(["*-*% on baseline*"])
        assert "fewer operations" in Path("report.md").read_text()

    def test_another_batch_says_so(self, guard):
        guard.accept()
        guard.change(("def image(batch=8)", "def image(batch=16)"))
        guard.run().stdout.fnmatch_lines(["  the batch changed from 8 to 16: per sample *"])

    def test_the_tests_own_failure_wins(self, guard, repo):
        guard.accept()
        guard.change(WIDER, WIDER_NEXT)
        repo.write(ONE + "        assert 1 == 2")
        result = guard.run()
        result.stdout.fnmatch_lines(["*assert 1 == 2*"])
        result.stdout.no_fnmatch_line("*costs more than its baseline*")

    def test_a_broken_budget_and_a_dearer_model_show_both(self, guard, repo):
        body = ONE.replace("def test_small", "@pytest.mark.energy_budget(j=1)\n    def test_small")
        guard.accept(body)
        guard.change(WIDER, WIDER_NEXT)
        repo.write(body.replace("j=1", "uj=1"))
        result = guard.run()
        result.stdout.fnmatch_lines(["energy budget exceeded*", "costs more than its baseline*"])
        result.stdout.fnmatch_lines(["OVER*"])

    def test_a_recalibrated_platform_is_no_regression(self, guard, pytester, repo):
        half, whole = _two_calibrations(pytester.path)
        repo.write(ONE)
        shutil.copy(half, "mine.json")
        repo.run("--np-platform=mine.json", "--np-update-baseline").assert_outcomes(passed=1)
        shutil.copy(whole, "mine.json")
        result = repo.run("--np-platform=mine.json", "--np-report=report.json")
        result.assert_outcomes(passed=1)
        found = json.loads(Path("report.json").read_text())["predictions"][0]["comparison"]
        assert found["recalibrated"]
        assert found["layers"] == []
        assert found["energy"]["calibration"] > 0.1 * found["energy"]["stored"]
        assert found["energy"]["base"] == pytest.approx(found["energy"]["head"])
        guard.change(WIDER, WIDER_NEXT)
        result = repo.run("--np-platform=mine.json")
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(["*energy * in all: calibration +*, model +*"])

    def test_a_name_of_its_own_survives_another_name_of_the_test(self, guard, repo):
        named = ONE.replace("max_percent=2", "max_percent=2, baseline='resnet'")
        guard.accept(named)
        assert guard.names() == ["resnet.yaml"]
        guard.change(WIDER, WIDER_NEXT)
        repo.write(named.replace("test_small", "test_renamed"))
        guard.run().assert_outcomes(failed=1)

    def test_several_platforms_have_a_baseline_each(self, guard, repo):
        repo.write(ONE)
        two = ("--np-platform=titanx-tf", "--np-update-baseline")
        guard.run(*two).assert_outcomes(passed=2)
        assert guard.names() == ["test_guard.test_small.yaml"]
        assert (guard.folder.parent / "titanx-tf" / "test_guard.test_small.yaml").exists()
        guard.run().assert_outcomes(passed=1)


def _two_calibrations(folder):
    """Two platforms of one name, the first of a device that is twice as fast at everything."""
    platform = load_platform("titanx")
    content = platform.to_json()
    content["name"] = "mine"
    whole, half = folder / "whole.json", folder / "half.json"
    from pytest_neuralpower.platform.file import write

    write(whole, content)
    runtimes = [model["runtime"] for model in content["families"].values()]
    for runtime in (*runtimes, *content["inferred"].values()):
        runtime["ceilings"]["peak_gflops"] *= 2
        runtime["ceilings"]["bandwidth_gbs"] *= 2
        runtime["ceilings"]["launch_ms"] /= 2
        for regime in runtime.get("inner", {}).get("regimes", ()):
            regime["scale"] /= 2
            regime["time_over_roofline"] = [end / 2 for end in regime["time_over_roofline"]]
    write(half, content)
    return half, whole


class TestTolerance:
    CHANGE = (("nn.Conv2d(64, 128, 3)", "nn.Conv2d(64, 132, 3)"),)  # about 1.5%

    @pytest.mark.parametrize(
        "limits",
        [
            ("", "", 1),
            ("max_percent=50", "", 0),
            ("max_percent=50", "max_percent=0", 1),
            ("max_percent=0", "max_mj=1000", 0),
            ("", "max_percent=50, layer_max_percent=0.1", 1),
            ("max_percent=50 layer_max_percent=50 layer_max_mj=0.5", "", 0),
        ],
    )
    @pytest.mark.parametrize("how", ["option", "ini"])
    def test_the_marker_overrides_the_default(self, guard, pytester, limits, how):
        default, marker, failed = limits
        guard.accept(ONE.replace("max_percent=2", marker))
        guard.change(*self.CHANGE)
        args = ()
        if default and how == "ini":
            pytester.makeini(f"[pytest]\nnp_tolerance = {default}\n")
        elif default:
            args = [f"--np-tolerance={each}" for each in default.split()]
        guard.run(*args).assert_outcomes(passed=1 - failed, failed=failed)

    def test_growth_per_sample_lets_a_larger_batch_pass(self, guard):
        guard.accept(ONE.replace("max_percent=2", "per='sample'"))
        guard.change(("def image(batch=8)", "def image(batch=16)"))
        guard.run().assert_outcomes(passed=1)

    def test_the_closest_marker_counts(self, guard):
        body = f"""
    pytestmark = pytest.mark.regression(max_percent=50)
    {ONE}
    @pytest.mark.regression(max_percent=0)
    def test_strict(neuralpower):
        neuralpower.predict(small(), image())
"""
        body = body.replace("@pytest.mark.regression(max_percent=2)\n", "\n", 1)
        guard.accept(body)
        guard.change(*self.CHANGE)
        guard.run().assert_outcomes(passed=1, failed=1)


class TestMissing:
    def test_a_ci_fails_and_names_the_command(self, guard, repo, monkeypatch):
        monkeypatch.setenv("CI", "true")
        repo.write(ONE)
        result = guard.run()
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(
            [
                f"no baseline yet: {FOLDER}/test_guard.test_small.yaml is missing, *",
                "  pytest --np-platform=titanx --np-update-baseline=new test_guard.py::test_small",
            ]
        )
        assert not guard.folder.exists()

    def test_a_budget_alone_demands_no_baseline(self, guard, repo, monkeypatch):
        monkeypatch.setenv("CI", "true")
        repo.write(ONE.replace("regression(max_percent=2)", "energy_budget(j=1000)"))
        guard.run().assert_outcomes(passed=1)

    def test_once_others_have_one_a_budget_demands_one_too(self, guard, repo, monkeypatch):
        guard.accept()
        monkeypatch.setenv("CI", "true")
        more = ONE.replace("regression(max_percent=2)", "energy_budget(j=1000)")
        repo.write(ONE + more.replace("test_small", "test_budget"))
        guard.run().assert_outcomes(passed=1, failed=1)


class TestStale:
    TWO = ONE + ONE.replace("test_small", "test_other")
    LINE = f"  git rm {FOLDER}/test_guard.test_other.yaml"

    def test_that_of_a_test_that_is_gone_is_reported(self, guard, repo):
        guard.accept(self.TWO)
        repo.write(ONE)
        guard.run().stdout.fnmatch_lines(["1 baseline is stale: *", self.LINE])

    def test_that_of_a_test_that_is_guarded_no_more_is_reported(self, guard, repo):
        guard.accept(self.TWO)
        repo.write(ONE + "\n    def test_other(): pass\n")
        guard.run().stdout.fnmatch_lines([self.LINE])

    @pytest.mark.parametrize(
        "args",
        [("-k", "small"), ("-m", "regression"), ("test_guard.py::test_small",), ("-x",),
         ("--deselect", "test_guard.py::test_other"), ("--ignore", "test_more.py")],
    )  # fmt: skip
    def test_a_partial_run_reports_none(self, guard, repo, args):
        guard.accept(self.TWO)
        repo.write(ONE + "\n    def test_wrong(): assert False\n")
        guard.run(*args).stdout.no_fnmatch_line("*stale*")

    @pytest.mark.parametrize(
        "body",
        [
            "\n    @pytest.mark.skip\n    def test_other(neuralpower): pass\n",
            "\n    def test_other(neuralpower): pytest.skip('no')\n",
            "\n    def test_other(neuralpower): assert False\n",
        ],
    )
    def test_a_test_that_is_skipped_or_fails_keeps_its_own(self, guard, repo, body):
        guard.accept(self.TWO)
        repo.write(ONE + body)
        guard.run().stdout.no_fnmatch_line("*stale*")

    def test_one_of_another_folder_is_left_alone(self, guard, pytester):
        guard.accept(self.TWO)
        pytester.mkdir("sub").joinpath("test_sub.py").write_text(
            "import sys; sys.path.insert(0, '.')\nfrom models import *\n"
            "def test_sub(neuralpower):\n    neuralpower.predict(small(), image())\n"
        )
        guard.run("sub").stdout.no_fnmatch_line("*stale*")


MISUSE = {
    "broken YAML": (
        lambda path: path.write_text(path.read_text().replace("totals: {", "totals: {[")),
        (), 1, "baseline *test_small.yaml:*: not YAML (*); restore the file, or write it again *",
    ),
    "a merge's leftovers": (
        lambda path: path.write_text("<<<<<<< HEAD\n" + path.read_text()),
        (), 1, "baseline *test_small.yaml:1: an unsettled merge conflict (<<<<<<< HEAD); *",
    ),
    "unknown key": (
        lambda path: path.write_text(path.read_text().replace("batch:", "batches: 3\nbatch:")),
        (), 1, "baseline *: unknown key 'batches'; allowed: format, version, test, *",
    ),
    "unknown kind": (
        lambda path: path.write_text(path.read_text().replace('"kind": "pool"', '"kind": "poll"')),
        (), 1, "baseline *test_small.yaml:14: unknown kind of layer 'poll'; allowed: conv, *",
    ),
    "a field is missing": (
        lambda path: path.write_text(path.read_text().replace('"op": "relu", ', "")),
        (), 1, "baseline *test_small.yaml:13: a layer needs the field 'op'; *",
    ),
    "totals of another version": (
        lambda path: path.write_text(path.read_text().replace('_mj": ', '_mj": 9', 1)),
        (), 1, "baseline *: energy_mj of its totals (*) is not that of its layers; *",
    ),
    "a later version": (
        lambda path: path.write_text(path.read_text().replace("version: 1", "version: 2")),
        (), 1, "baseline *: version 2, this release reads up to 1: upgrade pytest-neuralpower",
    ),
    "of another platform": (
        lambda path: path.write_text(path.read_text().replace('"titanx"', '"v100"')),
        (), 1, "baseline * is of platform 'v100', not 'titanx': move it to the folder v100, *",
    ),
    "no baseline at all": (
        lambda path: path.write_text("hello: 1\n"),
        (), 1, "baseline *: not a baseline (its format is not *",
    ),
    "a folder in its place": (
        lambda path: (path.unlink(), path.mkdir()),
        (), 1, "baseline *test_small.yaml: it is a directory*",
    ),
    "conflicting options": (
        None, ("--np-update-baseline", "--np-update-baseline=new"), 4,
        "ERROR: --np-update-baseline and --np-update-baseline=new: the first writes all *",
    ),
    "what to update is misspelt": (
        None, ("--np-update-baseline=nwe",), 4,
        "ERROR: --np-update-baseline=nwe: unknown value 'nwe', did you mean new?; allowed: *",
    ),
    "what to update is none": (
        None, ("--np-update-baseline=every",), 4,
        "ERROR: --np-update-baseline=every: unknown value 'every'; allowed: --np-update-baseline,*",
    ),
    "unknown tolerance": (
        None, ("--np-tolerance=max_precent=2",), 4,
        "ERROR: --np-tolerance: unknown argument, did you mean max_percent?: *; allowed: *",
    ),
    "a tolerance that is no number": (
        None, ("--np-tolerance=max_percent=two",), 4,
        "ERROR: --np-tolerance: max_percent='two' must be a number from 0",
    ),
    "a file in the folder's place": (
        None, ("--np-update-baseline", "--np-baselines=models.py"), 4,
        "ERROR: baselines cannot be written to models.py (models.py is a file): make the *",
    ),
    "a folder that takes no files": (
        None, ("--np-update-baseline", "--np-baselines=/proc/neuralpower"), 4,
        "ERROR: baselines cannot be written to /proc/neuralpower (*): make the folder writable, *",
    ),
    "unknown report format": (
        None, ("--np-report=report.pdf",), 4,
        "ERROR: --np-report=report.pdf: no format for '.pdf'; allowed: .json, *",
    ),
    "one report twice": (
        None, ("--np-report=r.md", "--np-report=./r.md"), 4,
        "ERROR: --np-report=./r.md is given twice; name another file",
    ),
    "a report in no folder": (
        None, ("--np-report=models.py/r.md",), 4,
        "ERROR: --np-report=models.py/r.md: *models.py cannot be written; name another file",
    ),
}  # fmt: skip


#: What is tried on xdist as well, whose controller refuses it before there are workers.
ON_XDIST = ("conflicting options", "a folder that takes no files")


@pytest.mark.parametrize(
    ("case", "workers"),
    [(case, ()) for case in MISUSE] + [(case, ("-n2",)) for case in ON_XDIST],
)
def test_misuse_is_one_line(guard, case, workers):
    harm, args, code, line = MISUSE[case]
    guard.accept()
    if harm is not None:
        harm(guard.folder / "test_guard.test_small.yaml")
    result = guard.run(*args, *workers)
    text = [*result.outlines, *result.errlines]
    assert result.ret == code
    assert not [each for each in text if "INTERNALERROR" in each or "Traceback" in each]
    assert fnmatch.filter(text, line.replace("[", "[[]")), "\n".join(text)


@pytest.mark.parametrize(
    ("marker", "line"),
    [
        ("regression(5)", "regression: positional argument 5; write regression(max_percent=2)"),
        (
            "regression(percent=5)",
            "regression: unknown argument*: percent=5; allowed: max_percent*",
        ),
        ("regression(max_percent=-1)", "regression: max_percent=-1 must be a number from 0"),
        ("regression(max_percent='1')", "regression: max_percent='1' must be a number from 0"),
        ("regression(per='day')", "regression: per='day'; allowed: 'call', 'sample'"),
        ("regression(baseline='a/b')", "regression: baseline='a/b' must be a plain name: *"),
    ],
)
def test_a_misused_marker_is_one_line(guard, repo, marker, line):
    repo.write(ONE.replace("regression(max_percent=2)", marker))
    result = guard.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines([line.replace("[", "[[]")])


def test_a_guarded_test_that_predicts_nothing_fails(guard, repo):
    repo.write("@pytest.mark.regression\ndef test_nothing(neuralpower): pass")
    result = guard.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["the test has a regression marker but predicted nothing: *"])


def test_two_tests_of_one_name_are_told_apart(guard, repo):
    body = ONE.replace("max_percent=2", "baseline='same'")
    repo.write(body + body.replace("test_small", "test_other"))
    result = guard.run("--np-update-baseline")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["baseline * is of two tests, *: give one another name, *"])


def test_two_sessions_that_update_at_once_leave_whole_files(guard, repo, pytester):
    repo.write(ONE)
    off = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:xdist")
    command = [sys.executable, "-m", "pytest", *off, "--np-platform=titanx", "--np-update-baseline"]
    running = [
        subprocess.Popen(command, cwd=pytester.path, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for each in running:
        output, _ = each.communicate()
        assert each.returncode == 0, output
    assert guard.names() == ["test_guard.test_small.yaml"]  # no temporary file is left either
    guard.run().assert_outcomes(passed=1)


@pytest.mark.parametrize("where", ["option", "ini"])
def test_the_folder_can_be_chosen(guard, repo, pytester, where):
    repo.write(ONE)
    args = ["--np-baselines=accepted"] if where == "option" else []
    if where == "ini":
        pytester.makeini("[pytest]\nnp_baselines = accepted\n")
    guard.run("--np-update-baseline", *args).assert_outcomes(passed=1)
    assert (pytester.path / "accepted/titanx/test_guard.test_small.yaml").exists()


def test_every_field_of_the_report_is_documented(guard, request):
    guard.accept()
    guard.change(WIDER, WIDER_NEXT)
    guard.run("--np-report=r.json")
    documented = (request.config.rootpath / "docs/report-format.md").read_text()

    def fields(value):
        if isinstance(value, dict):
            for key, each in value.items():
                yield key
                if key not in ("params", "provenance"):  # what they name is not ours to fix
                    yield from fields(each)
        elif isinstance(value, list):
            for each in value:
                yield from fields(each)

    names = set(fields(json.loads(Path("r.json").read_text())))
    assert {"version", "layers", "causes", "interval"} <= names
    assert not [name for name in sorted(names) if f"`{name}`" not in documented]
