"""``kill -9`` inside a write: nothing that was written before is lost, nothing is half there, and
no other file is left. ``make fuzz`` kills a hundred times each, ``make test`` four times."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_neuralpower.calibrate.fit.profile import read_profile
from pytest_neuralpower.calibrate.measure.profile_writer import ProfileWriter, trials_done

KILLS = 100 if "NEURALPOWER_FUZZ" in os.environ else 4

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9")

#: Each writes over and over, and says so before and after; texts tell by themselves if whole.
WRITERS = {
    "baselines": """
from pytest_neuralpower.guard.baseline import write_baseline
def write(number):
    write_baseline(folder / "titanx" / f"net{number % 3}.yaml", text(number))
""",
    "reports": """
from pytest_neuralpower.files import write_atomically
def write(number):
    write_atomically(folder / "report.json", text(number))
""",
}

LOOP = """
import sys
from pathlib import Path
folder = Path(sys.argv[1])
def text(number):
    return f"{number} " * 60_000 + "end\\n"
WRITER
number = int(sys.argv[2])
while True:
    number += 1
    print("begin", number, flush=True)
    write(number)
    print("done", number, flush=True)
"""


def whole(text: str) -> int:
    """The number of a text that is whole."""
    *numbers, end = text.split()
    assert end == "end"
    assert len(numbers) == 60_000
    assert len(set(numbers)) == 1
    return int(numbers[0])


def killed_inside(command: list[str], rng: random.Random) -> list[str]:
    """What a process printed until it was killed, at most 4 ms into one of its writes."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines, after = [], rng.randint(2, 12)
        for line in process.stdout:
            lines.append(line.strip())
            if line.startswith("begin") and len(lines) > after:
                break
        time.sleep(rng.uniform(0, 0.004))
        process.send_signal(signal.SIGKILL)
        *rest, _ = process.stdout.read().split("\n")  # a torn line says nothing
        return [*lines, *rest]


@pytest.mark.parametrize("kind", WRITERS)
def test_files_are_as_before_or_as_after(tmp_path: Path, kind: str) -> None:
    rng, program, number = random.Random(kind), LOOP.replace("WRITER", WRITERS[kind]), 0
    left: set[str] = set()
    for _ in range(KILLS):
        command = [sys.executable, "-c", program, str(tmp_path), str(number)]
        lines = killed_inside(command, rng)
        done = [int(line.split()[1]) for line in lines if line.startswith("done")]
        begun = [int(line.split()[1]) for line in lines if line.startswith("begin")]
        number = begun[-1]
        paths = [path for path in tmp_path.rglob("*") if path.is_file()]
        files = [path for path in paths if not path.name.endswith(".part")]
        # Between its last two steps a process may leave a name, which the next one removes.
        strays = {path.name for path in paths} - {path.name for path in files}
        assert len(strays) <= 1
        assert not strays & left
        left = strays
        names = {"report.json"} if kind == "reports" else {f"net{each}.yaml" for each in range(3)}
        assert {path.name for path in files} <= names
        found = {path.name: whole(path.read_text()) for path in files}
        # What was said to be done is there, or what was begun after it.
        assert max(found.values()) >= done[-1]
        assert set(found.values()) <= set(range(number + 1))


PROFILE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_profile_writer import CALM, measured, trial, writer
number = int(sys.argv[2])
with writer(Path(sys.argv[1])) as profile:
    while True:
        number += 1
        each = trial(f"n{number}")
        print("begin", each.id, flush=True)
        profile.write(each, measured(each), CALM)
        print("done", each.id, flush=True)
"""


def test_a_profile_keeps_every_trial_that_was_written(tmp_path: Path) -> None:
    beside = Path(__file__).parents[1] / "unit" / "calibrate" / "measure"
    path, rng = tmp_path / "profile.csv", random.Random("profile")
    known: set[str] = set()
    for _ in range(KILLS):
        command = [sys.executable, "-c", PROFILE, str(path), str(len(known)), str(beside)]
        lines = killed_inside(command, rng)
        known |= {line.split()[1] for line in lines if line.startswith("done")}
        with ProfileWriter(path, provenance={"device": "Toy"}, dtype="float32"):
            pass  # what the next process does first: it cuts off a torn end
        assert known <= trials_done(path)
        known = set(trials_done(path))
        assert len(read_profile(path).measurements) == 3 * len(known)
        assert [each.name for each in tmp_path.iterdir()] == ["profile.csv"]
