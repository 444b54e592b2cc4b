"""A disk that fills while two workers run: what was there stays whole, nothing else is left."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits of files are POSIX")

PREFACE = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""

TESTS = """
    import torch

    @pytest.mark.parametrize("width", [8, 16])
    @pytest.mark.regression(max_percent=1)
    def test_net(neuralpower, width):
        layers = [torch.nn.Conv2d(width, width, 3, padding=1) for _ in range(EXTRA)]
        neuralpower.predict(torch.nn.Sequential(*layers).eval(), torch.empty(1, width, 32, 32))
"""


def test_baselines_and_reports_stay_as_they_were(repo, pytester):
    repo.write(TESTS.replace("EXTRA", "4"))
    options = ("--np-platform=titanx", "--np-update-baseline", "--np-report=report.json")
    repo.run(*options).assert_outcomes(passed=2)
    kept = ("budgets/baselines/titanx", ".")
    before = {
        path: path.read_bytes()
        for folder in kept
        for path in (pytester.path / folder).iterdir()
        if path.suffix in (".yaml", ".json")
    }
    assert len(before) == 3
    repo.write(TESTS.replace("EXTRA", "9"))  # more than 1,000 bytes each
    words = [sys.executable, "-c", PREFACE, "-p", "no:cacheprovider", "-n", "2", *options]
    # Whatever measures coverage has a file of its own to write, which the limit would hold, too.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(
        words, cwd=pytester.path, env=env, capture_output=True, text=True, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "cannot be written (File too large)" in said
    assert "report report.json cannot be written (File too large)" in said
    assert "Traceback" not in said
    for path, content in before.items():
        assert path.read_bytes() == content
    left = {path for folder in kept for path in (pytester.path / folder).iterdir()}
    assert not [path for path in left if path.name.startswith(".test") or ".part" in path.name]
