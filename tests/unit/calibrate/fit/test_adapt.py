"""A platform adapted to a handful of a user's own calls."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pytest_neuralpower.calibrate.fit.adapt import adapt
from pytest_neuralpower.cli import app
from pytest_neuralpower.errors import NeuralPowerError
from pytest_neuralpower.estimators.features import family
from pytest_neuralpower.model_source import load_model, parse_inputs
from pytest_neuralpower.platform.catalog import load_fitted
from pytest_neuralpower.tracing import trace

CALLS = [
    ("pytorchcv.model_provider:get_model", "name=resnet18", "8,3,224,224"),
    ("pytorchcv.model_provider:get_model", "name=vgg11", "4,3,224,224"),
    ("pytorchcv.model_provider:get_model", "name=mobilenet_w1", "16,3,224,224"),
    ("pytorchcv.model_provider:get_model", "name=densenet121", "4,3,224,224"),
    ("pytorchcv.model_provider:get_model", "name=mobilenetv2_w1", "16,3,224,224"),
    ("pytorchcv.model_provider:get_model", "name=resnet50", "4,3,224,224"),
]


def predicted(call: tuple[str, str, str], platform: object, factors: Mapping[str, float]) -> float:
    target, arguments, shape = call
    model = load_model(target, dict([arguments.split("=")]))
    positional, _ = parse_inputs([shape])
    layers = platform.predict(trace(model.eval(), *positional)).layers  # type: ignore[attr-defined]
    return sum(each.runtime_ms * factors.get(family(each.layer), factors[""]) for each in layers)


def table(path: Path, times: Mapping[tuple[str, str, str], float], watts: float = 0) -> Path:
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["model", "arguments", "inputs", "runtime_ms", "energy_mj"])
        for call, time in times.items():
            out.writerow([*call, f"{time:.6f}", f"{time * watts:.6f}" if watts else ""])
    return path


def test_one_factor_is_found_and_named_on_the_platform(tmp_path: Path) -> None:
    platform = load_fitted("titanx")
    times = {call: predicted(call, platform, {"": 1.4}) for call in CALLS[:3]}
    adapted, found = adapt(platform, table(tmp_path / "runs.csv", times))
    assert found.before == pytest.approx(100 * (1 - 1 / 1.4), abs=0.5)
    assert found.after < 3
    assert adapted.tiers["runtime"] == "adapted"
    judge = CALLS[3]
    wanted = predicted(judge, platform, {"": 1.4})
    assert predicted(judge, adapted, {"": 1.0}) == pytest.approx(wanted, rel=0.03)
    saved = adapted.save(tmp_path / "mine.json")
    assert load_fitted(tmp_path / "mine.json").factors == saved.factors


def test_a_platform_that_is_right_is_left_alone(tmp_path: Path) -> None:
    platform = load_fitted("titanx")
    off = (1.02, 0.97, 1.01)
    times = {
        call: predicted(call, platform, {"": factor})
        for call, factor in zip(CALLS, off, strict=False)
    }
    adapted, found = adapt(platform, table(tmp_path / "runs.csv", times))
    assert adapted is platform
    assert found.chosen == "nothing"
    assert "not adapted" in found.text()


def test_kinds_that_differ_get_factors_of_their_own(tmp_path: Path) -> None:
    platform = load_fitted("titanx")
    truth = {"": 1.0, "norm": 2.2, "conv.depthwise": 1.8, "pool": 1.6}
    times = {call: predicted(call, platform, truth) for call in CALLS}
    adapted, found = adapt(platform, table(tmp_path / "runs.csv", times))
    assert found.chosen == "one factor a kind"
    assert adapted.factors["norm"] > 1.2 * adapted.factors["conv"]


def test_metered_calls_scale_power(tmp_path: Path) -> None:
    platform = load_fitted("titanx")
    times = {call: predicted(call, platform, {"": 1.3}) for call in CALLS[:3]}
    adapted, found = adapt(platform, table(tmp_path / "runs.csv", times, watts=300))
    assert found.power_factor > 1.1
    assert adapted.tiers["power"] == "adapted"


def test_one_call_cannot_be_judged(tmp_path: Path) -> None:
    runs = table(tmp_path / "runs.csv", {CALLS[0]: 5.0})
    with pytest.raises(NeuralPowerError, match=r"1 call cannot be judged"):
        adapt(load_fitted("titanx"), runs)


def test_the_command_measures_what_the_table_lacks(tmp_path: Path) -> None:
    runs, out = tmp_path / "runs.csv", tmp_path / "mine.json"
    relu = 'torch.nn:ReLU,,"256,1024"\ntorch.nn:Linear,in_features=512 out_features=512,"64,512"\n'
    runs.write_text(f"model,arguments,inputs\n{relu}")
    command = ["adapt", "cpu-raptorlake", str(runs), "--measure", "--device", "cpu"]
    found = CliRunner().invoke(app, [*command, "--meter", "none", "--out", str(out)])
    assert found.exit_code in (0, 1), found.output
    with runs.open(newline="") as file:
        assert all(float(line["runtime_ms"]) > 0 for line in csv.DictReader(file))
    assert out.exists() == (found.exit_code == 0)
    assert "left out" in found.output
