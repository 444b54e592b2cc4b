"""Two processes cannot write one profile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_neuralpower.calibrate.measure.profile_writer import only_writer
from pytest_neuralpower.errors import ProfileError

HOLD = """
import sys, time
from pathlib import Path
from pytest_neuralpower.calibrate.measure.profile_writer import only_writer
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


@pytest.mark.parametrize("folder", ["afile", "afile/folder"])
def test_a_file_in_the_way_is_named(tmp_path: Path, folder: str) -> None:
    (tmp_path / "afile").write_text("")
    with (
        pytest.raises(ProfileError, match=r"cannot be written \(\S+/afile is a file\): choose"),
        only_writer(tmp_path / folder),
    ):
        pass


@pytest.mark.parametrize(("written", "left"), [(False, []), (True, ["new", "folder", "row"])])
def test_a_folder_made_for_nothing_is_removed(
    tmp_path: Path, *, written: bool, left: list[str]
) -> None:
    folder = tmp_path / "new" / "folder"
    with only_writer(folder):
        if written:
            (folder / "row").touch()
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == left


def test_an_empty_folder_of_the_users_stays(tmp_path: Path) -> None:
    with only_writer(tmp_path):
        pass
    assert tmp_path.is_dir()
