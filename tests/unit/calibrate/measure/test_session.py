"""A sitting of a calibration: what ends it, what is left out, and what it shows meanwhile."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from pytest_neuralpower.calibrate.measure.device import Device, open_device
from pytest_neuralpower.calibrate.measure.plan import PlanRecipe, make_plan
from pytest_neuralpower.calibrate.measure.profile_writer import ProfileWriter, trials_done
from pytest_neuralpower.calibrate.measure.progress import Progress, Status
from pytest_neuralpower.calibrate.measure.run import Session, _why_skipped
from pytest_neuralpower.calibrate.measure.trial import Trial, TrialSkipped
from pytest_neuralpower.errors import DeviceLost


@pytest.fixture(scope="module")
def device() -> Device:
    return open_device("cpu", "float32")


def test_when_time_is_up_the_closing_trials_are_still_measured(device, tmp_path: Path) -> None:
    plan = make_plan(
        PlanRecipe(
            seed=3, device="cpu", dtype="float32", hardware=device.bench.hardware,
            memory_bytes=2**30, preset="quick", minutes=0.1,
        )
    )  # fmt: skip
    path, said = tmp_path / "profile.csv", io.StringIO()
    with ProfileWriter(path, provenance=device.facts.lines, dtype="float32") as writer:
        session = Session(device, writer, Progress(said))
        outcome = session.run(plan, done=frozenset(), seconds=0.5)
    assert 0 < outcome.left < len(plan.trials)
    assert outcome.measured + outcome.skipped >= len(plan.closing)
    assert {trial.id for trial in plan.closing} <= trials_done(path)
    assert f"time is up: {outcome.left} trials of the plan are left" in said.getvalue()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TrialSkipped("its output holds a NaN"), "its output holds a NaN"),
        (MemoryError(), "out of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 20 GiB"), "out of memory"),
        (RuntimeError('"gelu" not implemented\nfor Half'), '"gelu" not implemented for Half'),
    ],
)
def test_one_configuration_that_cannot_be_measured_is_skipped(error, reason) -> None:
    assert _why_skipped(error) == reason


def test_a_cuda_error_means_that_the_device_is_lost() -> None:
    with pytest.raises(DeviceLost, match="CUDA error: an illegal memory access"):
        _why_skipped(RuntimeError("CUDA error: an illegal memory access\nCUDA kernel errors ..."))


def test_a_mistake_of_ours_is_never_skipped() -> None:
    with pytest.raises(KeyError):
        _why_skipped(KeyError("template"))


@pytest.mark.parametrize(("change", "suspect"), [(0.2, False), (-0.3, True)])
def test_trials_are_measured_again_for_more_than_a_shared_processors_usual_change(
    device, tmp_path: Path, change, suspect
) -> None:
    said = io.StringIO()
    with ProfileWriter(tmp_path / "p.csv", provenance={}, dtype="float32") as writer:
        session = Session(device, writer, Progress(said))
        assert session._drifted(change, [Trial("n1", "network", "plain", 0)]) == suspect
    assert ("moved by -30.0%, more than 25%: 1 trials are suspect" in said.getvalue()) == suspect


def test_status_tells_what_is_known_and_no_more() -> None:
    bare = Status(done=1, total=9, left_s=65, kind="residual")
    assert (bare.details, bare.left) == ("residual", "1:05")
    full = Status(
        done=1, total=9, left_s=5, kind="dense", repeatability_percent=1.24, temperature_c=61,
        power_w=311.6,
    )  # fmt: skip
    assert full.details == "dense, repeatability 1.2%, 61 °C, 312 W"


def test_without_a_terminal_progress_is_a_line_now_and_then() -> None:
    said = io.StringIO()
    with Progress(said) as progress:
        for done in range(100):
            progress.show(Status(done=done, total=100, left_s=9, kind="plain"))
        progress.say("closing")
    assert said.getvalue() == "closing\n"
