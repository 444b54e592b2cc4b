"""Nothing measured is lost: torn ends are cut, a full disk leaves the profile as it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pytest_neuralpower.calibrate.fit.profile import read_profile
from pytest_neuralpower.calibrate.fit.rows import MeasuredRow, conv_layer, linear_layer
from pytest_neuralpower.calibrate.measure.conditions import Conditions
from pytest_neuralpower.calibrate.measure.profile_writer import ProfileWriter, trials_done
from pytest_neuralpower.calibrate.measure.trial import Trial
from pytest_neuralpower.errors import ProfileError

CONV = conv_layer((1, 3, 8, 8), cout=4, kernel=(3, 3), stride=(1, 1), padding=(1, 1))
LINEAR = linear_layer(1, 256, 10)
CALM = Conditions()


def measured(trial: Trial, factor: float = 1.0) -> list[MeasuredRow]:
    common = {"trial": trial.id, "network": trial.network, "pass_": trial.pass_}
    return [
        MeasuredRow(layer=None, runtime_ms=1.1 * factor, index=-1, calls=2, **common),
        MeasuredRow(layer=CONV, runtime_ms=0.7 * factor, index=0, **common),
        MeasuredRow(layer=LINEAR, runtime_ms=0.4 * factor, index=1, **common),
    ]


def trial(network: str, pass_: int = 1, what: str = "network", index: int = -1) -> Trial:
    return Trial(network, what, "plain", 7, pass_, index)  # type: ignore[arg-type]


def writer(path: Path) -> ProfileWriter:
    return ProfileWriter(path, provenance={"device": "Toy", "dtype": "float32"}, dtype="float32")


def fill(path: Path, *trials: Trial) -> None:
    with writer(path) as profile:
        for each in trials:
            profile.write(each, measured(each), CALM)


def test_measured_rows_come_back_as_layers_and_networks(tmp_path: Path) -> None:
    fill(tmp_path / "p.csv", trial("n0"), trial("n1"))
    found = read_profile(tmp_path / "p.csv")
    assert found.provenance == {"device": "Toy", "dtype": "float32"}
    assert [row.layer for row in found.rows] == [CONV, LINEAR, CONV, LINEAR]
    assert [network.network for network in found.networks] == ["n0", "n1"]
    assert found.networks[0].runtime_ms == 1.1
    layers = found.networks[0].layers
    assert [row.runtime_ms for row, _ in layers] == pytest.approx([0.7, 0.4])
    assert [calls for _, calls in layers] == [1, 1]


def test_of_several_passes_the_least_counts_and_closing_trials_are_not_fitted(
    tmp_path: Path,
) -> None:
    path = tmp_path / "p.csv"
    with writer(path) as profile:
        for pass_, factor in ((1, 1.0), (2, 0.9), (0, 0.5)):
            profile.write(trial("n0", pass_), measured(trial("n0", pass_), factor), CALM)
        profile.write(trial("sentinel"), measured(trial("sentinel")), CALM)
    rows = read_profile(path).rows
    assert [row.runtime_ms for row in rows] == pytest.approx([0.63, 0.36])


def test_a_trial_that_was_run_again_counts_as_it_was_the_last_time(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    with writer(path) as profile:
        profile.write(trial("n0"), measured(trial("n0")), CALM)
        profile.write(trial("n0"), measured(trial("n0"), 2.0), CALM)
    assert [row.runtime_ms for row in read_profile(path).rows] == pytest.approx([1.4, 0.8])


def test_power_of_a_layer_alone_joins_its_time_in_place(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    alone = trial("n0", what="layer", index=1)
    row = MeasuredRow(alone.id, "n0", LINEAR, 0.2, index=1, power_w=150.0)
    fill(path, trial("n0"))
    with writer(path) as profile:
        profile.write(alone, [row], CALM)
    rows = read_profile(path).rows
    assert [row.runtime_ms for row in rows] == pytest.approx([0.7, 0.4])
    assert [row.power_w for row in rows] == [None, 150.0]


def test_rows_of_a_throttled_trial_are_kept_with_their_flaw(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    with writer(path) as profile:
        profile.write(
            trial("n0"),
            measured(trial("n0")),
            Conditions(temperature_c=91.0, clock_mhz=800.0, throttles=("heat",)),
        )
    assert [row.flaw for row in read_profile(path).rows] == ["the device was throttled (heat)"] * 2


def test_what_was_skipped_is_noted_and_not_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    fill(path, trial("n0"))
    with writer(path) as profile:
        profile.skip(trial("n1"), "out of\nmemory, 3 GB")
    assert trials_done(path) == {"n0/1", "n1/1"}
    assert "# skipped n1/1: out of memory, 3 GB\n" in path.read_text()
    assert len(read_profile(path).rows) == 2


def test_a_profile_cut_anywhere_keeps_every_whole_trial(tmp_path: Path) -> None:
    """Whatever byte a killed process stopped at, opening it again repairs it."""
    path = tmp_path / "p.csv"
    fill(path, trial("n0"))
    first = path.stat().st_size
    fill(path, trial("n1"))
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with writer(path):
            pass
        done = trials_done(path)
        assert done == ({"n0/1"} if end >= first else frozenset()), end
        if done:
            assert len(read_profile(path).rows) == 2
    path.write_bytes(whole)
    fill(path)
    assert trials_done(path) == {"n0/1", "n1/1"}


def test_a_profile_of_other_columns_is_never_cut(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("kind,inputs,outputs,runtime_ms\nnorm,8x8,8x8,1\n")
    with pytest.raises(ProfileError, match="its columns are not those of a calibration"):
        writer(path)
    assert path.read_text().endswith("norm,8x8,8x8,1\n")


FULL = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_profile_writer import CALM, measured, trial, writer
path = Path(sys.argv[1])
profile = writer(path)
size = path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1000, size + 1000))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for number in range(99):
    try:
        profile.write(trial(f"n{number}"), measured(trial(f"n{number}")), CALM)
    except OSError as error:
        print(number, error.strerror)
        break
"""


def test_a_file_that_cannot_grow_keeps_its_whole_trials(tmp_path: Path) -> None:
    """The system's limit on a file's size cuts a write in the middle, as a full disk does."""
    path = tmp_path / "p.csv"
    code = [sys.executable, "-c", FULL, str(path), str(Path(__file__).parent)]
    out = subprocess.run(code, check=True, capture_output=True, text=True).stdout
    number, reason = out.split(maxsplit=1)
    assert reason == "File too large\n"
    assert int(number) >= 1
    assert trials_done(path) == {f"n{each}/1" for each in range(int(number))}
    assert path.read_bytes().endswith(b"\n")
