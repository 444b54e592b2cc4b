"""The command: what it prints for people and machines, and how it answers a mistake."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys

import pytest

from pytest_neuralpower import cli

MODEL = ["torch.nn:Conv2d", "--arg", "in_channels=3", "--arg", "out_channels=8"]
CALL = [*MODEL, "--arg", "kernel_size=3", "--input", "2,3,32,32"]


@pytest.fixture
def neuralpower(monkeypatch, capsys):
    """Run the command in this process: (exit code, standard output, standard error)."""

    def run(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["neuralpower", *args])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return run


def test_help_lists_the_commands_and_each_has_an_example(neuralpower):
    code, out, _ = neuralpower("--help")
    assert code == 0
    for command in ("predict", "trace", "platforms", "explain", "epr", "fit", "accuracy"):
        assert command in out
        assert f"neuralpower {command}" in neuralpower(command, "--help")[1]


def test_help_does_not_load_torch():
    code = "import sys, pytest_neuralpower.cli; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_predict_prints_totals_and_layers(neuralpower):
    code, out, err = neuralpower("predict", *CALL, "--platform", "titanx")
    assert (code, err) == (0, "")
    assert "Conv2d on titanx: " in out
    assert "one call of 2 samples" in out
    assert "2x8x30x30" in out


def test_predict_json_adds_up(neuralpower):
    code, out, _ = neuralpower("predict", *CALL, "--platform", "titanx", "--json")
    record = json.loads(out)
    assert code == 0
    assert record["batch"] == 2
    assert record["energy_mj"] == pytest.approx(sum(row["energy_mj"] for row in record["layers"]))
    assert record["layers"][0]["flops"] == 2 * 2 * 8 * 30 * 30 * 27


def test_csv_has_one_row_a_layer(neuralpower):
    _, out, _ = neuralpower("predict", *CALL, "--platform", "titanx", "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["op"] for row in rows] == ["conv2d"]
    assert json.loads(rows[0]["outputs"]) == [[2, 8, 30, 30]]
    assert float(rows[0]["runtime_ms"]) > 0
    _, out, _ = neuralpower("trace", *CALL, "--csv")
    assert next(csv.DictReader(io.StringIO(out)))["kind"] == "conv"


def test_trace_names_the_route_and_counts(neuralpower):
    code, out, _ = neuralpower("trace", *CALL)
    assert code == 0
    assert "389 k MACs" in out  # 2 x 8 x 30 x 30 x 27
    assert "traced by the function route" in out
    assert json.loads(neuralpower("trace", *CALL, "--json")[1])["route"] == "function"


def test_platforms_lists_the_shipped_ones(neuralpower):
    code, out, _ = neuralpower("platforms")
    assert code == 0
    assert "titanx" in out
    assert "titanx-tf" in out
    names = [entry["name"] for entry in json.loads(neuralpower("platforms", "--json")[1])]
    assert names == sorted(names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", *CALL, "--platform", "titanz"], "unknown platform 'titanz'"),
        (["predict", "nope:f", "--input", "1", "--platform", "titanx"], "cannot import 'nope'"),
        (["trace", *CALL[:-1], "2,5,32,32"], "5"),
        (["trace", *CALL[:-1], "two"], "'two' is no shape"),
        (["trace", *CALL, "--arg", "bias"], "--arg bias: write name=value"),
        (["trace", *CALL, "--arg", "bias=[1"], "is not a YAML value"),
        (["trace", "torch.nn:Conv2d", "--arg", "kernel=3", "--input", "1"], "could not be called"),
        (["explain", "titanx", "rnn"], "rnn"),
        (["fit", "no/such/folder"], "no/such/folder"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(neuralpower, arguments, message):
    code, out, err = neuralpower(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_explain_writes_equations_with_their_terms(neuralpower):
    code, out, _ = neuralpower("explain", "titanx", "conv")
    assert code == 0
    assert "runtime_ms = " in out
    assert "power_w = " in out


def test_version(neuralpower):
    assert neuralpower("--version")[1].startswith("pytest-neuralpower 0.")


def test_a_missing_option_is_a_usage_error(neuralpower):
    code, _, err = neuralpower("predict", *CALL)
    assert code == 2
    assert "--platform" in err
