"""A real calibration of this machine's processor, cut short in every way and finished."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from torch import nn

from pytest_neuralpower import predict
from pytest_neuralpower.calibrate.fit.profile import read_profile
from pytest_neuralpower.calibrate.measure.profile_writer import trials_done
from pytest_neuralpower.calibrate.measure.progress import Progress
from pytest_neuralpower.calibrate.measure.verify import verify
from pytest_neuralpower.platform.catalog import load_platform


def test_a_second_process_is_refused_with_the_first_ones_pid(calibration) -> None:
    assert f"another process (pid {calibration.first_pid})" in calibration.second
    assert len(calibration.second.splitlines()) == 1


def test_ctrl_c_saves_what_is_measured_and_says_how_to_go_on(calibration) -> None:
    last = calibration.interrupted.splitlines()[-1]
    found = re.fullmatch(
        r"neuralpower: interrupted; (\d+) of \d+ trials are saved in mine/profile\.csv; go on "
        r"with: neuralpower calibrate mine --resume",
        last,
    )
    assert found, last
    assert int(found[1]) >= 4


def test_a_killed_process_loses_at_most_the_trial_it_measured(calibration) -> None:
    """What stood in the profile when it was killed stands in the finished one, byte for byte."""
    torn, whole = calibration.torn, (calibration.folder / "profile.csv").read_bytes()
    kept = torn[: torn.rfind(b"\n") + 1]
    assert whole.startswith(kept)
    assert kept.count(b"\nnetwork,") >= 8


def test_no_trial_of_the_plan_is_measured_twice_over_three_sittings(calibration) -> None:
    found = read_profile(calibration.folder / "profile.csv").measurements
    times = {}
    for each in found:
        if each.index < 0 and each.network != "sentinel":
            times[each.trial] = times.get(each.trial, 0) + 1
    rerun = int(re.search(r"(\d+) run again after a drift", calibration.finished)[1])
    assert sum(count - 1 for count in times.values()) <= rerun
    assert len(trials_done(calibration.folder / "profile.csv")) >= 12


def test_the_platform_predicts_and_names_what_it_was_measured_on(calibration) -> None:
    platform = load_platform(calibration.platform)
    found = predict(nn.Conv2d(16, 32, 3), torch.ones(1, 16, 32, 32), platform=platform)
    assert found.runtime_ms > 0
    assert found.energy_mj is None
    assert dict(platform.tiers) == {"runtime": "measured"}
    (record,) = platform.provenance["calibration"]
    assert record["facts"]["torch"] == torch.__version__
    assert record["facts"]["device_uuid"].startswith("CPU-")
    assert record["repeatability"]["p95_percent"] >= record["repeatability"]["median_percent"]
    assert record["networks"] >= 4
    trials = platform.accuracy["intervals"]["trials"]
    assert trials["networks"] == record["networks"]
    assert trials["inside"] >= 0.7 * trials["networks"]  # 90% intervals, few networks


def test_the_card_shows_repeatability_and_a_figure(calibration) -> None:
    card = (calibration.folder / "README.md").read_text(encoding="utf-8")
    assert "Repeatability: median" in card
    assert "![predicted against measured runtime](accuracy.svg)" in card
    figure = (calibration.folder / "accuracy.svg").read_text(encoding="utf-8")
    assert figure.count("<circle") > 100
    assert "networks (" in figure


def test_it_ends_with_what_to_type_next(calibration) -> None:
    assert calibration.finished.splitlines()[-1] == "next: pytest --np-platform=./mine/mine.json"
    assert "energy: none: " in calibration.finished
    assert "rapl: " in calibration.interrupted or "meter: rapl" in calibration.interrupted


def test_verify_measures_the_same_layers_and_tells_a_platform_that_is_off(calibration) -> None:
    """The platform's own times are 30 times too long: no load of this machine hides that."""
    platform = load_platform(calibration.platform)
    (record,) = platform.provenance["calibration"]
    too_long = [
        {**entry, "layers": [[index, kind, 30 * ms] for index, kind, ms in entry["layers"]]}
        for entry in record["verify"]
    ]
    provenance = {**platform.provenance, "calibration": [{**record, "verify": too_long}]}
    found = verify(replace(platform, provenance=provenance), Progress(), seconds=2)
    total = found.drifts[-1]
    assert total.calibrated_ms == pytest.approx(
        30 * sum(ms for entry in record["verify"] for *_, ms in entry["layers"]), rel=0.2
    )
    assert total.change < -0.5
    assert not found.holds
    assert found.same_specimen
    assert 0.1 < 30 * total.measured_ms / total.calibrated_ms < 15


def test_a_file_that_cannot_grow_ends_with_the_command_to_go_on(
    tmp_path: Path, uncounted_environment: dict[str, str]
) -> None:
    """The system's limit on a file's size stops it as a full disk does."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); "
        "from pytest_neuralpower.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "calibrate", "small", "--device", "cpu", "--quick"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=uncounted_environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("neuralpower: the profile cannot be written (File too large); ")
    assert last.endswith("go on with: neuralpower calibrate small --resume")
    saved = trials_done(tmp_path / "small" / "profile.csv")
    assert f"; {len(saved)} of " in last
    assert read_profile(tmp_path / "small" / "profile.csv").rows
