"""Misuse of the commands that measure: one line each, exit code 2, nothing written."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from pytest_neuralpower.calibrate.measure.plan import CalibrationOptions

MISUSE = {
    "name": (["a/b"], "NAME 'a/b': letters, digits, '.', '_' and '-' only, such as my-gpu"),
    "device": (["x", "--device", "tpu"], "--device tpu: it is cpu, cuda, cuda:N or cuda:all"),
    "no_such_gpu": (
        ["x", "--device", "cuda:99"],
        "--device cuda:99: torch sees no such device here; there is cpu",
    ),
    "dtype": (
        ["x", "--dtype", "int8"],
        "--dtype int8: it is one of float32, bfloat16, float16",
    ),
    "mode": (["x", "--mode", "compiled"], "--mode compiled: it is one of eager, graph"),
    "graph_on_a_cpu": (
        ["x", "--device", "cpu", "--mode", "graph"],
        "--mode graph: cpu replays no CUDA graphs; leave it out, or use --device cuda:0",
    ),
    "meter": (
        ["x", "--meter", "wattmeter"],
        "--meter wattmeter: it is one of auto, nvml, rapl, ina3221, zeus, none",
    ),
    "watts": (["x", "--watts", "0"], "--watts 0: the power under load in watts, above 0"),
    "watts_and_meter": (
        ["x", "--watts", "65", "--meter", "rapl"],
        "--watts 65 stands in for a meter: leave it out, or drop --meter rapl",
    ),
    "meter_of_other_devices": (
        ["x", "--device", "cpu", "--meter", "nvml"],
        "nvml: it does not measure 'cpu'; meters of it: rapl, ina3221, zeus",
    ),
    "two_presets": (["x", "--quick", "--thorough"], "--quick and --thorough: give one of them"),
    "minutes": (["x", "--minutes", "0"], "--minutes 0: from 0.1 to 1440"),
    "nothing_to_resume": (
        ["x", "--device", "cpu", "--resume"],
        "--resume: there is no profile x/profile.csv; leave it out to start one",
    ),
    "backend_of_one": (
        ["x", "--backend", "dask"],
        "--backend dask is for many devices: add --device cuda:all, or --workers N",
    ),
    "per_device_of_one": (["x", "--per-device"], "--per-device is for many devices: add --device"),
    "backend": (
        ["x", "--workers", "2", "--backend", "spark"],
        "--backend spark: it is one of loky, dask, ray",
    ),
    "backend_of_one_unknown": (
        ["x", "--device", "cpu", "--backend", "spark"],
        "--backend spark: it is one of loky, dask, ray",
    ),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("args", "says"), MISUSE.values(), ids=MISUSE)
def test_misuse_is_one_line(neuralpower, here, args, says) -> None:
    code, out, err = neuralpower("calibrate", *args)
    assert (code, out) == (2, "")
    assert err.startswith(f"neuralpower: {says}")
    assert len(err.splitlines()) == 1
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("number", "code", "why"),
    [(signal.SIGINT, 130, "stopped"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_before_the_first_trial_is_one_line(neuralpower, here, number, code, why) -> None:
    # Loaded before: a module that is interrupted while it loads may not load again in this process.
    for module in (
        "torch",
        "pytest_neuralpower.calibrate.fit.fit",
        "pytest_neuralpower.calibrate.measure.run",
    ):
        importlib.import_module(module)

    def interrupt() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if (here / "new" / ".calibrating.pid").exists():
                os.kill(os.getpid(), number)
                return
            time.sleep(0.005)

    other = threading.Thread(target=interrupt)
    other.start()
    found, _, err = neuralpower("calibrate", "new", "--device", "cpu", "--minutes", "0.1")
    other.join()
    assert found == code
    assert err.splitlines()[-1] == (f"neuralpower: {why} before anything was measured; start again")
    assert not list(here.iterdir())


def test_a_profile_is_never_overwritten(neuralpower, here) -> None:
    profile = here / "x" / "profile.csv"
    profile.parent.mkdir()
    profile.write_text("kind,inputs,outputs,runtime_ms\nnorm,8x8,8x8,1\n")
    code, _, err = neuralpower("calibrate", "x", "--device", "cpu")
    assert code == 2
    assert err.startswith("neuralpower: x/profile.csv holds measured rows already: go on with")
    assert profile.read_text().endswith("norm,8x8,8x8,1\n")


@pytest.mark.parametrize(
    ("header", "args", "says"),
    [
        (
            "# dtype: float32",
            ["--dtype", "bfloat16"],
            "measured with --dtype float32, this is bfloat16",
        ),
        ("# device: Cray-1", [], "measured with device Cray-1, this is "),
        ("# torch: 1.0.0", [], "measured with torch 1.0.0, this is 2."),
        ("# meter: nvml", [], "measured with --meter nvml, this is none"),
        ("# mode: graph", ["--mode", "eager"], "measured with --mode graph, this is eager"),
    ],
)
def test_rows_of_two_devices_are_never_mixed(neuralpower, here, header, args, says) -> None:
    profile = here / "x" / "profile.csv"
    profile.parent.mkdir()
    profile.write_text(f"{header}\n# torch_device: cpu\nkind,inputs,outputs,runtime_ms\n")
    code, _, err = neuralpower("calibrate", "x", "--resume", "--meter", "none", *args)
    assert code == 2
    assert says in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ('{"seed": 1', "profile x/profile.csv: plan: "),
        ('{"seed": 1, "device": "cpu", "dtype": "int8"}', "'int8'"),
        ('{"seed": 1, "device": "cpu", "dtype": "float32"}', "hardware"),
    ],
)
def test_a_plan_that_cannot_be_read_is_one_line(neuralpower, here, plan, says) -> None:
    profile = here / "x" / "profile.csv"
    profile.parent.mkdir()
    profile.write_text(f"# torch_device: cpu\n# plan: {plan}\nkind,inputs,outputs,runtime_ms\n")
    code, _, err = neuralpower("calibrate", "x", "--resume", "--meter", "none")
    assert code == 2
    assert says in err
    assert err.endswith("; measure into another folder (--out)\n")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("command", ["verify", "measure"])
def test_a_platform_from_tables_cannot_be_measured_again(neuralpower, call, command) -> None:
    given = ["titanx"] if command == "verify" else [*call, "--platform", "titanx"]
    code, _, err = neuralpower(command, *given)
    assert code == 2
    assert err.startswith("neuralpower: titanx comes from tables, not from a device measured here")
    assert len(err.splitlines()) == 1


def test_watts_are_an_estimate_and_no_meter_is_opened() -> None:
    options = CalibrationOptions("x", watts=65)
    assert (options.meter, options.watts) == ("none", 65)
    assert options.again == "neuralpower calibrate x --resume"


@pytest.mark.parametrize("missing", ["scipy", "sklearn", "joblib", "filelock"])
def test_what_fitting_needs_is_looked_for_before_anything_is_measured(here, missing) -> None:
    script = (
        f"import sys; sys.modules[{missing!r}] = None; "
        "from pytest_neuralpower.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "calibrate", "mine", "--device", "cpu", "--quick"],
        capture_output=True, text=True, check=False, cwd=here,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("neuralpower: fitting needs ")
    assert len(done.stderr.splitlines()) == 1
    assert not list(here.iterdir())
