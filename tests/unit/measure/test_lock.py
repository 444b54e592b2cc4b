"""Two processes cannot write one profile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_neuralpower.errors import ProfileError
from pytest_neuralpower.measure.lock import only_writer

HOLD = """
import sys, time
from pathlib import Path
from pytest_neuralpower.measure.lock import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_process_is_told_the_first_ones_pid(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(ProfileError, match=rf"\(pid {other.pid}\): wait for it"),
            only_writer(tmp_path),
        ):
            pass
        os.kill(other.pid, signal.SIGKILL)
    time.sleep(0.1)
    with only_writer(tmp_path):  # the dead process holds nothing
        assert (tmp_path / ".calibrating.pid").read_text() == f"{os.getpid()}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ProfileError, match="cannot be written"),
        only_writer(tmp_path / "file" / "folder"),
    ):
        pass
