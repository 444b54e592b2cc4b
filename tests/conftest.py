"""The calibration of this machine's own processor that several tests use, measured once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

# A module that a test changes within a second, to one of the same size, would be taken from its
# compiled file.
sys.dont_write_bytecode = True
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"

# How long an example takes depends on what else the machine does, and tells nothing.
hypothesis.settings.register_profile(
    "suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")

#: Minutes to measure: enough for some thirty networks on an idle core.
MINUTES = "0.25"
#: Networks measured before the process is interrupted, and killed.
_BEFORE_SIGNAL = 4


@dataclass(frozen=True)
class Calibration:
    """A calibration that was interrupted, killed, and finished.

    ``second`` is what a process beside it printed; ``interrupted`` and ``finished`` are what the
    first and the last one printed; ``torn`` is the profile as the killed one left it.
    """

    folder: Path
    platform: Path
    second: str
    first_pid: int
    interrupted: str
    torn: bytes
    finished: str
    seconds: float


def _uncounted_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


@pytest.fixture
def uncounted_environment() -> dict[str, str]:
    """The environment of a process in which coverage counts no lines.

    Counting takes most of what a calibration measures and of the fit after it, and writes files.
    """
    return _uncounted_environment()


def _start(folder: Path, *args: str) -> subprocess.Popen[str]:
    command = "from pytest_neuralpower.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", command, "calibrate", folder.name, *args],
        cwd=folder.parent,
        env=_uncounted_environment() | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _wait_for_networks(folder: Path, process: subprocess.Popen[str], count: int) -> None:
    profile = folder / "profile.csv"
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if profile.exists() and profile.read_bytes().count(b"\nnetwork,") >= count:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raise AssertionError("nothing is measured")


@pytest.fixture(scope="session")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """This processor, calibrated for real: interrupted, resumed, killed, resumed."""
    began = time.monotonic()
    folder = tmp_path_factory.mktemp("calibration") / "mine"
    first = _start(folder, "--device", "cpu", "--quick", "--minutes", MINUTES)
    _wait_for_networks(folder, first, _BEFORE_SIGNAL)
    second = _start(folder, "--resume").communicate()[0]
    first.send_signal(signal.SIGINT)
    interrupted = first.communicate()[0]
    assert first.returncode == 130, interrupted
    killed = _start(folder, "--resume")
    _wait_for_networks(folder, killed, 2 * _BEFORE_SIGNAL)
    killed.kill()
    killed.communicate()
    torn = (folder / "profile.csv").read_bytes()
    last = _start(folder, "--resume")
    finished = last.communicate()[0]
    assert last.returncode == 0, finished
    return Calibration(
        folder, folder / "mine.json", second, first.pid, interrupted, torn, finished,
        time.monotonic() - began,
    )  # fmt: skip
