"""The command as a whole: its help, its version and how it answers a mistake."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pytest_neuralpower.cli import COMMANDS, app
from pytest_neuralpower.platform.catalog import load_platform

LINEAR = ["torch.nn:Linear", "--arg", "in_features=4", "--arg", "out_features=2"]


def test_help_lists_the_commands_and_each_has_an_example(neuralpower):
    code, out, _ = neuralpower("--help")
    assert code == 0
    names = [command.name for command in app.registered_commands]
    assert "platforms" in out
    assert {"predict", "trace", "explain", "eyeriss", "epr", "fit"} <= {*names}
    for name in names:
        assert name in out
        assert f"neuralpower {name} " in neuralpower(name, "--help")[1].split("Example:")[1]
    for name in ("list", "show", "new"):
        text = neuralpower("platforms", name, "--help")[1]
        assert f"neuralpower platforms {name} " in text.split("Example:")[1]


def test_every_command_is_registered_once_under_its_own_name():
    names = [command.name for command in app.registered_commands]
    assert len(names) == len(set(names)) == len(COMMANDS)


def test_help_loads_nothing_that_computes():
    code = (
        "import sys, pytest_neuralpower.cli\n"
        "heavy = {'torch', 'numpy', 'sklearn', 'scipy', 'plotly'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "CALL", "--platform", "titanz"], "unknown platform 'titanz'"),
        (["predict", "nope:f", "--input", "1", "--platform", "titanx"], "cannot import 'nope'"),
        (["predict", "CALL", "--platform", "titanx", "--json", "--csv"], "give one of them"),
        (["trace", "CALL", "--json", "--csv"], "--json and --csv: only one format"),
        (["trace", *LINEAR, "--input", "2,5"], "4"),
        (["trace", "torch.nn:ReLU", "--input", "two"], "'two' is no shape"),
        (["trace", "CALL", "--arg", "bias"], "--arg bias: write name=value"),
        (["trace", "CALL", "--arg", "bias=[1"], "is not a YAML value"),
        (["trace", "CALL", "--input", "2,3,32,32"], "too many positional arguments"),
        (["trace", "torch.nn:Conv2d", "--arg", "kernel=3", "--input", "1"], "could not be called"),
        (["explain", "titanx", "cnv"], "did you mean 'conv'"),
        (["fit", "no/such/folder"], "no/such/folder"),
        (["fit"], "give a folder with recipe.yaml, or --datasheet"),
        (["fit", "--datasheet", "titan-rt"], "did you mean 'titan-rtx'"),
        (["fit", "--datasheet", "t4", "--dtype", "bfloat16"], "NVIDIA T4 computes in"),
        (["fit", "--datasheet", "t4", "--mode", "graph"], "not one of eager, compile, engine"),
        (["adapt", "runs.csv", "titanx"], "the platform comes first: adapt titanx runs.csv"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(neuralpower, call, arguments, message):
    words = [part for word in arguments for part in (call if word == "CALL" else [word])]
    code, out, err = neuralpower(*words)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_fit_writes_a_platform_of_a_datasheet_that_predicts(neuralpower, call, tmp_path):
    out = tmp_path / "mine.json"
    code, said, _ = neuralpower("fit", "--datasheet", "titan-rtx", "--out", out)
    assert code == 0
    assert f"wrote {out}" in said
    code, said, _ = neuralpower("predict", *call, "--platform", out)
    assert code == 0
    assert "host-bound: launching 1 operation takes 38.0 µs" in said


@pytest.mark.parametrize(
    "command",
    [
        ("fit", "--datasheet", "t4"),
        ("platforms", "new", "mine", "--like", "t4"),
        ("adapt", "t4", "runs.csv"),
    ],
)
def test_a_file_that_is_there_is_overwritten_only_by_force(neuralpower, tmp_path, command):
    out = tmp_path / "mine.json"
    out.write_text("precious")
    code, said, err = neuralpower(*command, "--out", out)
    assert (code, said, out.read_text()) == (2, "", "precious")
    assert f"{out} is there" in err
    assert "--force" in err
    if command[0] != "adapt":  # which needs calls
        assert neuralpower(*command, "--out", out, "--force")[0] == 0
        assert out.read_text().startswith("{")


def test_a_compiled_platform_of_a_datasheet_has_no_host_and_fuses(neuralpower, tmp_path):
    out = tmp_path / "mine.json"
    assert neuralpower("fit", "--datasheet", "t4", "--mode", "compile", "--out", out)[0] == 0
    platform = load_platform(out)
    assert (platform.host, platform.fused) == (None, "pointwise")
    assert "torch.compile" in platform.mode


def test_version(neuralpower):
    assert neuralpower("--version")[1].startswith("pytest-neuralpower 0.")


def test_a_missing_option_is_a_usage_error(neuralpower, call):
    code, _, err = neuralpower("predict", *call)
    assert code == 2
    assert "--platform" in err
