"""Whole calls as evidence: tables of timed networks, and the platforms that they make."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pytest_neuralpower.calibrate.fit.adapt import adapt
from pytest_neuralpower.calibrate.fit.datasheet import datasheet_platform
from pytest_neuralpower.cli import app
from pytest_neuralpower.errors import NeuralPowerError
from pytest_neuralpower.estimators.features import family
from pytest_neuralpower.model_source import load_model, parse_inputs
from pytest_neuralpower.platform.catalog import load_fitted, load_platform
from pytest_neuralpower.tracing import trace

NETWORKS = """
from torch import nn


def cnn(width, depth, act="ReLU"):
    layers = [nn.Conv2d(3, width, 3, padding=1)]
    for _ in range(depth):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), getattr(nn, act)()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def mlp(width, depth):
    layers = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.LayerNorm(width), nn.GELU()]
    return nn.Sequential(*layers)
"""

#: How much longer than the prior the device of these tests runs a family.
TRUTH = {"conv": 1.7, "norm": 0.8, "linear": 1.3, "activation": 2.0}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A table of 40 calls on a device of which the truth is known."""
    (tmp_path / "networks.py").write_text(NETWORKS)
    device = datasheet_platform("rtx4090")
    random = np.random.default_rng(3)
    table = tmp_path / "runs.csv"
    with table.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["model", "arguments", "inputs", "runtime_ms", "energy_mj", "family"])
        for number in range(40):
            width, depth = int(random.integers(32, 512)), int(random.integers(1, 9))
            name = ("cnn", "mlp")[number % 2]
            side = int(random.integers(28, 112))
            shape = f"256,3,{side},{side}" if name == "cnn" else f"{3000 * side},{width}"
            model = load_model(f"{tmp_path}/networks.py:{name}", {"width": width, "depth": depth})
            positional, _ = parse_inputs([shape])
            layers = device.predict(trace(model.eval(), *positional)).layers
            time = sum((each.runtime_ms or 0) * TRUTH.get(family(each.layer), 1) for each in layers)
            time *= random.normal(1, 0.01)
            arguments = f"width={width} depth={depth}"
            call = (f"networks.py:{name}", arguments, shape)
            out.writerow([*call, f"{time:.6f}", f"{time * 200:.6f}", f"family {number}"])
    return table


def test_calls_teach_what_kinds_of_layers_take(runs: Path) -> None:
    platform = datasheet_platform("rtx4090", networks=runs)
    accuracy = platform.accuracy["calls"]
    assert accuracy["calls"] == accuracy["families"] == 40
    assert accuracy["prior"]["mape"] > 15
    assert accuracy["held_out"]["mape"] < 4
    model = load_model(f"{runs.parent}/networks.py:cnn", {"width": 200, "depth": 5, "act": "SiLU"})
    positional, _ = parse_inputs(["256,3,60,60"])
    traced = trace(model.eval(), *positional)
    before, after = (
        {each.layer.path: each.runtime_ms or 0 for each in device.predict(traced).layers}
        for device in (datasheet_platform("rtx4090"), platform)
    )
    assert after["1"] / before["1"] == pytest.approx(TRUTH["conv"], rel=0.05)


def test_a_processor_takes_longer_where_its_cache_ends(tmp_path: Path) -> None:
    (tmp_path / "networks.py").write_text(NETWORKS)
    device = datasheet_platform("i7-12700h")  # 24 MB of cache
    table = tmp_path / "runs.csv"
    with table.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["model", "arguments", "inputs", "runtime_ms", "family"])
        for number, width in enumerate(np.geomspace(100, 4000, 30).astype(int)):
            rows, depth = (64, 700)[number % 2], 1 + number % 5
            model = load_model(f"{tmp_path}/networks.py:mlp", {"width": width, "depth": depth})
            layers = device.predict(trace(model.eval(), *parse_inputs([f"{rows},{width}"])[0]))
            time = sum(
                (each.runtime_ms or 0) * (3 if each.layer.cost.bytes_moved > 6e6 else 1)
                for each in layers.layers
            )
            name = f"width={width} depth={depth}"
            out.writerow(["networks.py:mlp", name, f"{rows},{width}", f"{time:.6f}", number])
    platform = datasheet_platform("i7-12700h", networks=table)
    assert platform.accuracy["calls"]["held_out"]["mape"] < 8
    for width, factor in ((300, 1), (3000, 3)):
        model = load_model(f"{tmp_path}/networks.py:mlp", {"width": width, "depth": 1})
        traced = trace(model.eval(), *parse_inputs([f"700,{width}"])[0])
        before, after = (found.predict(traced).layers[0] for found in (device, platform))
        assert (after.runtime_ms or 0) / (before.runtime_ms or 1) == pytest.approx(factor, rel=0.15)


def test_layers_stay_inferred_and_totals_grow_surer(runs: Path) -> None:
    model = load_model(f"{runs.parent}/networks.py:mlp", {"width": 300, "depth": 4})
    positional, _ = parse_inputs(["200000,300"])
    traced = trace(model.eval(), *positional)
    bare = datasheet_platform("rtx4090").predict(traced)
    fitted = datasheet_platform("rtx4090", networks=runs).predict(traced)
    assert all("inferred" in each.flags for each in fitted.layers)
    assert bare.runtime_interval_ms is not None
    assert fitted.runtime_interval_ms is not None

    def width(interval: tuple[float, float, float]) -> float:
        return interval[1] / interval[0]

    assert width(fitted.runtime_interval_ms) < width(bare.runtime_interval_ms)


def test_metered_calls_teach_power(runs: Path) -> None:
    platform = datasheet_platform("rtx4090", networks=runs)
    model = load_model(f"{runs.parent}/networks.py:mlp", {"width": 300, "depth": 4})
    positional, _ = parse_inputs(["200000,300"])
    found = platform.predict(trace(model.eval(), *positional))
    assert found.power_w == pytest.approx(200, rel=0.02)


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("runtime_ms", "-3", "line 3: runtime_ms '-3' must be a number above 0"),
        ("runtime_ms", "inf", "line 3: runtime_ms 'inf' must be a number above 0"),
        ("model", "networks.py:rnn", "line 3: "),
        ("inputs", "16,x", "line 3: "),
        ("arguments", "width", "line 3: --arg width: write name=value"),
    ],
)
def test_a_bad_line_is_named(runs: Path, column: str, value: str, says: str) -> None:
    with runs.open(newline="") as file:
        lines = list(csv.DictReader(file))
    lines[1][column] = value
    with runs.open("w", newline="") as file:
        out = csv.DictWriter(file, lines[0])
        out.writeheader()
        out.writerows(lines)
    with pytest.raises(NeuralPowerError) as raised:
        datasheet_platform("rtx4090", networks=runs)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("column", "factor", "says"),
    [
        ("runtime_ms", 1e-3, r"take 0\.00\d+ times what .* runtime_ms is in ms"),
        ("runtime_ms", 1e3, r"take 1\d+ times what .* another device"),
        ("energy_mj", 1e-3, r"draw 0\.2 W, of a device of 450 W: energy_mj is in mJ"),
    ],
)
def test_other_units_are_refused(runs: Path, column: str, factor: float, says: str) -> None:
    with runs.open(newline="") as file:
        lines = list(csv.DictReader(file))
    with runs.open("w", newline="") as file:
        out = csv.DictWriter(file, list(lines[0]))
        out.writeheader()
        for line in lines:
            other = {"energy_mj": ""} if column == "runtime_ms" else {}
            out.writerow({**line, **other, column: float(line[column]) * factor})
    with pytest.raises(NeuralPowerError, match=says):
        datasheet_platform("rtx4090", networks=runs)
    with pytest.raises(NeuralPowerError, match=r"ms|mJ"):
        adapt(load_fitted("rtx4090"), runs)


def test_several_modes_are_refused(tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    table.write_text('model,inputs,runtime_ms,mode\na.py:b,"1,3",1,eager\na.py:b,"1,3",1,compile\n')
    with pytest.raises(NeuralPowerError, match=r"eager \(line 2\), compile \(line 3\)"):
        datasheet_platform("rtx4090", networks=table)


def test_a_column_that_nobody_reads_is_refused(runs: Path) -> None:
    runs.write_text(runs.read_text().replace("energy_mj", "energy_j", 1))
    with pytest.raises(NeuralPowerError, match=r"unknown column 'energy_j'; .*energy_mj"):
        datasheet_platform("rtx4090", networks=runs)


def test_too_few_families_are_refused(runs: Path) -> None:
    runs.write_text("\n".join(runs.read_text().splitlines()[:3]) + "\n")
    with pytest.raises(NeuralPowerError, match="2 families of networks are left, and 3 are needed"):
        datasheet_platform("rtx4090", networks=runs)


def test_calls_that_wait_for_the_host_are_counted_where_they_are_missed(runs: Path) -> None:
    with runs.open(newline="") as file:
        lines = list(csv.DictReader(file))
    with runs.open("w", newline="") as file:
        out = csv.DictWriter(file, lines[0])
        out.writeheader()  # seconds in the column of milliseconds
        out.writerows(line | {"runtime_ms": float(line["runtime_ms"]) / 1e6} for line in lines)
    with pytest.raises(NeuralPowerError, match=r"40 of 40 calls .* 38 µs .* is in ms\); 0 fam"):
        datasheet_platform("rtx4090", networks=runs)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model,inputs,runtime_ms\na.py:b,1,3,32,32,5\n", "line 2: it has more fields than the"),
        ("model,inputs,runtime_ms\n", "the table has no calls"),
        ("model;inputs;runtime_ms\na;1;5\n", "has model, inputs, runtime_ms, parted by commas"),
        (None, "runs.csv: there is no such file"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: str | None, says: str) -> None:
    table = tmp_path / "runs.csv"
    if text is not None:
        table.write_text(text)
    with pytest.raises(NeuralPowerError, match=says):
        datasheet_platform("rtx4090", networks=table)


def test_the_command_writes_a_platform_that_predicts(runs: Path) -> None:
    out = runs.parent / "mine.json"
    command = ["fit", "--datasheet", "rtx4090", "--networks", str(runs), "--out", str(out)]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.output
    assert "families of networks" in found.output
    assert load_platform(out).tiers["runtime"] == "measured"


def test_the_table_says_in_which_mode_its_calls_ran(runs: Path) -> None:
    lines = runs.read_text().splitlines()
    runs.write_text("\n".join([f"{lines[0]},mode", *(f"{line},engine" for line in lines[1:])]))
    assert datasheet_platform("rtx4090", networks=runs).fused == "folded"
    runs.write_text(runs.read_text().replace(",engine", ",tflite"))
    with pytest.raises(NeuralPowerError, match="mode: 'tflite' is not one of eager, compile, eng"):
        datasheet_platform("rtx4090", networks=runs)


def test_calls_with_energy_alone_tell_as_much_as_timed_ones(runs: Path) -> None:
    with runs.open(newline="") as file:
        lines = list(csv.DictReader(file))
    platforms = []
    for timed in (40, 20, 0):
        with runs.open("w", newline="") as file:
            out = csv.DictWriter(file, lines[0])
            out.writeheader()
            for number, line in enumerate(lines):
                out.writerow(line if number < timed else line | {"runtime_ms": ""})
        platforms.append(datasheet_platform("rtx4090", networks=runs))
    every, half, none = (each.accuracy["calls"] for each in platforms)
    assert (half["metered_alone"], none["metered_alone"]) == (20, 40)
    assert half["held_out"]["mape"] == pytest.approx(every["held_out"]["mape"], abs=1.5)
    assert none["held_out"]["mape"] < none["prior"]["mape"]


def test_an_engine_of_quantised_models_prices_layers_as_quantised() -> None:
    sizes = {"in_channels": 64, "out_channels": 64, "kernel_size": 1}
    positional, _ = parse_inputs(["1,64,56,56"])
    layers = trace(load_model("torch.nn:Conv2d", sizes), *positional)
    platform = datasheet_platform("raspberrypi4", dtype="int8", mode="engine")
    found = platform.predict(layers)
    assert {layer.layer.dtype for layer in found.layers} == {"int8"}
    assert "1 of 1 layers priced in int8" in found.notes[-1]
    assert found.runtime_ms < 0.7 * datasheet_platform("raspberrypi4").predict(layers).device_ms
