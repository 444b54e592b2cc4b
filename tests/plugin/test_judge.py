"""``np_judge``: which end of the interval a budget is held against, and what people read of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pytest_neuralpower import load_platform
from pytest_neuralpower.platform.file import VERSION, content_hash

GUARDED = """
    @pytest.mark.runtime_budget(ms={limit!r})
    def test_small(neuralpower):
        neuralpower.predict(small(), image())
"""

PRINTED = """
    def test_interval(neuralpower):
        prediction = neuralpower.predict(small(), image())
        print("interval", *prediction.runtime_interval_ms[:2], prediction.runtime_ms)
"""


@pytest.fixture
def limits(repo):
    """A budget in each place around the small model's interval on titanx, in ms."""
    repo.write(PRINTED, "test_interval")
    text = repo.run("--np-platform=titanx", "-s", "test_interval.py").stdout.str()
    found = re.search(r"interval (\S+) (\S+) (\S+)", text)
    low, high, point = map(float, found.groups())
    return {
        "beneath": low * 0.9,
        "under_point": (low + point) / 2,
        "over_point": (point + high) / 2,
        "beyond": high * 1.1,
    }


@pytest.mark.parametrize(
    ("judge", "failing"),
    [
        ("point", ["beneath", "under_point"]),
        ("certain", ["beneath"]),
        ("safe", ["beneath", "over_point", "under_point"]),
    ],
)
def test_each_judge_fails_what_it_should(repo, limits, judge, failing):
    for place, limit in limits.items():
        repo.write(GUARDED.format(limit=limit), f"test_{place}")
    files = [f"test_{place}.py" for place in limits]
    result = repo.run("--np-platform=titanx", f"--np-judge={judge}", *files)
    found = [line for line in result.outlines if line.startswith("FAILED")]
    assert sorted(re.findall(r"test_(\w+)\.py", " ".join(found))) == failing


def test_the_point_is_the_default_and_the_ini_file_may_say_otherwise(repo, limits, pytester):
    repo.write(GUARDED.format(limit=limits["over_point"]))
    repo.run("--np-platform=titanx", "test_guard.py").assert_outcomes(passed=1)
    pytester.makeini("[pytest]\nnp_judge = safe\n")
    repo.run("--np-platform=titanx", "test_guard.py").assert_outcomes(failed=1)
    repo.run("--np-platform=titanx", "--np-judge=point", "test_guard.py").assert_outcomes(passed=1)


def test_the_failure_says_how_sure_it_is(repo, limits, line):
    repo.write(GUARDED.format(limit=limits["beneath"]))
    result = repo.run("--np-platform=titanx", "test_guard.py")
    assert line(result, "  interval   ").endswith(": 90% sure to be over")
    repo.write(GUARDED.format(limit=limits["under_point"]))
    result = repo.run("--np-platform=titanx", "test_guard.py")
    assert re.search(
        r" \(90%\): not sure, the limit is \d+% of the way up$",
        line(result, "  interval   "),
    )


def test_a_budget_kept_but_not_safely_is_said_to_be_so(repo, limits):
    repo.write(GUARDED.format(limit=limits["over_point"]))
    result = repo.run("--np-platform=titanx", "--np-judge=safe", "test_guard.py")
    result.stdout.fnmatch_lines(
        [
            "runtime budget not safe: Sequential on titanx",
            "  predicted  * per call, *% under (by *)",
            "  interval   *",
            "  judged by  its upper end (np_judge=safe)",
        ]
    )


def test_the_printed_command_judges_alike(repo, limits):
    """A test that only a judge fails passes without it."""
    repo.write(GUARDED.format(limit=limits["over_point"]))
    text = repo.run("--np-platform=titanx", "--np-judge=safe", "--np-top=1").stdout.str()
    command = re.search(r"every layer: pytest (.+)", text).group(1)
    assert command == "--np-platform=titanx --np-judge=safe --np-top=0 test_guard.py::test_small"
    repo.run(*command.split()).assert_outcomes(failed=1)


def test_the_summary_says_how_sure_it_is(repo, limits):
    for place in ("under_point", "beyond"):
        repo.write(GUARDED.format(limit=limits[place]), f"test_{place}")
    result = repo.run("--np-platform=titanx", "test_under_point.py", "test_beyond.py")
    result.stdout.fnmatch_lines(["OVER  test_under_point.py::*", "* ms (not sure)  *"])
    result.stdout.fnmatch_lines(["ok    test_beyond.py::*", "* ms (sure)  *"])


def test_a_platform_without_intervals_is_judged_by_its_point_alone(repo, pytester, line):
    data = {
        "format": "pytest-neuralpower platform",
        "version": VERSION,
        **load_platform("titanx").to_json(),
    }
    del data["intervals"]
    path = Path(pytester.path / "bare.json")
    path.write_text(json.dumps({**data, "sha256": content_hash(data)}))
    repo.write(GUARDED.format(limit=1e3))
    repo.run(f"--np-platform={path}").assert_outcomes(passed=1)
    result = repo.run(f"--np-platform={path}", "--np-judge=certain")
    result.assert_outcomes(failed=1)
    assert line(result, "needs intervals").endswith(
        "runtime budget: np_judge=certain needs intervals and platform 'bare' has none; "
        "use --np-judge=point or a platform with intervals"
    )


@pytest.mark.parametrize("how", ["option", "ini"])
def test_an_unknown_judge_is_refused_with_those_there_are(repo, pytester, line, how):
    repo.write("def test_one(): pass")
    if how == "ini":
        pytester.makeini("[pytest]\nnp_judge = maybe\nnp_platform = titanx\n")
        assert "np_judge='maybe': allowed: point, certain, safe" in line(repo.run(), "maybe")
    else:
        result = repo.run("--np-judge=maybe")
        assert "point" in line(result, "maybe")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
