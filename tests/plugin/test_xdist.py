"""Sessions on two workers are as those in one process.

Each worker loads torch, for seconds: a session here shows as much as it can.
"""

from __future__ import annotations

import json
from xml.etree import ElementTree

CONFTEST = """
    from msgspec.structs import replace
    from pytest_neuralpower import load_platform

    def pytest_neuralpower_platform(name):
        if name == "lab":
            return replace(load_platform("titanx"), name="lab", device="a lab's board")

    def table(report):
        return "".join(f"{each['test']},{each['energy_mj']}\\n" for each in report["predictions"])

    def pytest_neuralpower_report_formats(config):
        return {".csv": table}
"""

TESTS = """
    from torch import nn

    @pytest.mark.parametrize("batch", [1, 2, 3, 4])
    @pytest.mark.regression(max_percent=0)
    @pytest.mark.runtime_budget(s=1, per="sample")
    def test_dearer(neuralpower, batch):
        neuralpower.predict(small(), image(batch))

    @pytest.mark.energy_budget(uj=1)
    def test_over(neuralpower):
        assert neuralpower.platform.device == "a lab's board"
        model = nn.Sequential(nn.Conv2d(3, 33, 3), nn.Conv2d(33, 33, 3), nn.Conv2d(33, 8, 3))
        neuralpower.predict(model, image())
        neuralpower.predict(model, image(16))

    @pytest.mark.energy_budget(j=1000)
    def test_within(neuralpower):
        neuralpower.predict(small(), image())

    def test_without_budget(neuralpower):
        neuralpower.predict(small(), image())

    def test_unguarded():
        pass
"""

REPORTS = ("report.json", "report.md", "report.html", "report.csv")


def shown(result) -> dict[str, list[str]]:
    """The summary and each failed test's section, without names of workers."""
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in result.outlines:
        if "(neuralpower) ==" in line or line.startswith("____"):
            lines = sections.setdefault(line.strip("_= "), [])
        elif line.startswith("===") or not line:
            lines = []
        elif not line.startswith("[gw"):
            lines.append(line)
    return sections


def properties(path) -> dict[str, dict[str, str]]:
    """What JUnit's XML says of each test, by test."""
    return {
        case.get("name"): {each.get("name"): each.get("value") for each in case.iter("property")}
        for case in ElementTree.parse(path).getroot().iter("testcase")
    }


def test_figures_and_reports_of_every_format_are_the_same(repo, pytester, monkeypatch):
    pytester.makeconftest(CONFTEST)
    repo.write(TESTS)
    summary, models = pytester.path / "step_summary.md", pytester.path / "models.py"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    repo.run("--np-platform=lab", "--np-update-baseline", "-k", "dearer").assert_outcomes(passed=4)
    models.write_text(models.read_text().replace("Conv2d(64, 128, 3)", "Conv2d(64, 132, 3)"))

    def session(*workers: str):
        summary.write_text("earlier\n")
        reports = [f"--np-report={name}" for name in (*REPORTS, "github")]
        result = repo.run("--np-platform=lab", "--junit-xml=junit.xml", *reports, *workers)
        result.assert_outcomes(passed=3, failed=5)
        files = {name: (pytester.path / name).read_bytes() for name in (*REPORTS, summary.name)}
        commands = sorted(line for line in result.outlines if line.startswith("::"))
        return files, properties(pytester.path / "junit.xml"), commands, shown(result)

    files, junit, commands, text = session()
    assert (files, junit, commands, text) == session("-n2")
    report = json.loads(files["report.json"])
    assert [each["outcome"] for each in report["predictions"]] == [
        *["regressed"] * 4, *["over"] * 2, "ok", "unbounded",
    ]  # fmt: skip
    assert files["step_summary.md"] == b"earlier\n" + files["report.md"]
    assert files["report.csv"].count(b"\n") == 8
    assert b"33 -> 32" in files["report.html"]  # advice is not cut off by time
    assert junit["test_over"]["neuralpower.2.outcome"] == "over"
    assert len(commands) == 6
    assert "costs more than its baseline: Sequential on lab" in text["test_dearer[3]"]
    assert "energy budget exceeded: Sequential on lab" in text["test_over"]
    summary_lines = text["predicted energy and runtime (neuralpower)"]
    assert sum(line.startswith("WORSE") for line in summary_lines) == 4


ACCEPTED = """
    import pytest
    from models import image, small

    pytestmark = pytest.mark.regression

    def test_kept(neuralpower):
        neuralpower.predict(small(), image())
        neuralpower.predict(small(), image(2))

    def test_broken(neuralpower): neuralpower.predict(small(), image())
    def test_fails(neuralpower): neuralpower.predict(small(), image())
    def test_gone(neuralpower): neuralpower.predict(small(), image())
    def test_left_out(neuralpower): neuralpower.predict(small(), image())
    def test_skipped(neuralpower): neuralpower.predict(small(), image())
"""

LATER = """
    import pytest
    from models import image, small

    pytestmark = pytest.mark.regression

    def test_kept(neuralpower):
        neuralpower.predict(small(), image())
        neuralpower.predict(small(), image(2))

    def test_broken(neuralpower): neuralpower.predict(small(), image())
    def test_fails(neuralpower): assert False
    @pytest.mark.skip
    def test_left_out(neuralpower): pass
    def test_skipped(neuralpower): pytest.skip("no")
"""

FILE = """\
defaults:
  platforms: [titanx, titanx-tf]
  tolerance: {max_percent: 0}
models:
  small:
    model: models.py:small
    inputs: [[8, 3, 64, 64]]
    budgets:
      energy:
        - {uj: 1, platform: titanx}
        - {j: 1000, platform: titanx-tf}
"""


def test_baselines_are_written_whole_and_only_the_stale_one_is_reported(repo, pytester):
    pytester.makepyfile(test_guard=ACCEPTED)
    (pytester.path / "nets.budget.yaml").write_text(FILE)
    update = repo.run("--np-platform=titanx", "--np-update-baseline", "-n2")
    update.assert_outcomes(passed=7, failed=1)
    folder = pytester.path / "budgets" / "baselines"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) == [
        "titanx-tf/nets.small.yaml",
        "titanx/test_guard.test_broken.yaml",
        "titanx/test_guard.test_fails.yaml",
        "titanx/test_guard.test_gone.yaml",
        "titanx/test_guard.test_kept.2.yaml",
        "titanx/test_guard.test_kept.yaml",
        "titanx/test_guard.test_left_out.yaml",
        "titanx/test_guard.test_skipped.yaml",
    ]
    broken = folder / "titanx" / "test_guard.test_broken.yaml"
    broken.write_text(broken.read_text().replace("totals: {", "totals: {["))
    pytester.makepyfile(test_guard=LATER)
    result = repo.run("--np-platform=titanx", "-n2")
    result.assert_outcomes(passed=2, failed=3, skipped=2)
    result.stdout.fnmatch_lines(
        [
            "1 baseline is stale: *",
            "  git rm budgets/baselines/titanx/test_guard.test_gone.yaml",
        ]
    )
    (line,) = shown(result)["test_broken"]
    assert line.startswith(f"baseline {broken}:")
    assert "not YAML" in line


def test_baselines_of_tests_that_a_plugin_leaves_out_are_not_reported(repo, pytester):
    pytester.makepyfile(test_guard=ACCEPTED)
    repo.run("--np-platform=titanx", "--np-update-baseline").assert_outcomes(passed=6)
    pytester.makeconftest("""
        def pytest_collection_modifyitems(config, items):
            config.hook.pytest_deselected(items=items[1:])
            items[:] = items[:1]
    """)
    result = repo.run("--np-platform=titanx", "-n1")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*stale*")


def test_without_a_platform_guarded_tests_fail_with_the_list(repo):
    repo.write("""
        @pytest.mark.energy_budget(mj=1)
        def test_marked(neuralpower):
            neuralpower.predict(small(), image())

        def test_asked_for_late(request):
            request.getfixturevalue("neuralpower")
    """)
    result = repo.run("-n1")
    result.assert_outcomes(errors=1, failed=1)
    sections = shown(result)
    for name in ("ERROR at setup of test_marked", "test_asked_for_late"):
        (line,) = sections[name]
        assert "no platform chosen; shipped" in line
        assert "--np-platform=NAME" in line
