"""``--np-measure``: on the device itself, each predicted model is measured, too."""

from __future__ import annotations

import re

import pytest

TEST = """
@pytest.mark.runtime_budget(s=100)
def test_small(neuralpower):
    model = small()
    before = [id(each) for each in model.parameters()]
    neuralpower.predict(model, image(1))
    assert [id(each) for each in model.parameters()] == before
    assert not any(each.is_meta for each in model.parameters())
"""
META = """
def test_meta(neuralpower):
    import torch
    neuralpower.predict(neuralpower.build(small), torch.empty(1, 3, 64, 64, device="meta"))
"""


def test_measured_stands_beside_predicted_in_the_summary(repo, calibration, line) -> None:
    repo.write(TEST)
    result = repo.run(f"--np-platform={calibration.platform}", "--np-measure")
    result.assert_outcomes(passed=1)
    found = re.search(
        r"runtime: measured ([\d.]+) (µs|ms|s), predicted ([\d.]+) (µs|ms|s) \([+-][\d.]+%\)",
        line(result, "runtime: measured"),
    )
    assert found
    assert float(found[1]) > 0
    assert "test_small: Sequential on mine" in line(result, "test_small: Sequential")


def test_a_model_without_values_is_measured_with_values_of_its_own(repo, calibration, line) -> None:
    repo.write(META)
    result = repo.run(f"--np-platform={calibration.platform}", "--np-measure")
    result.assert_outcomes(passed=1)
    assert "predicted" in line(result, "runtime: measured")


def test_without_the_option_nothing_is_measured(repo, calibration) -> None:
    repo.write(TEST)
    result = repo.run(f"--np-platform={calibration.platform}")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*measured*ms*")


@pytest.mark.parametrize(
    ("platform", "more", "says"),
    [
        ("titanx", [], "--np-measure: titanx comes from tables, not from a device measured here"),
        ("titanx", ["-n2"], "--np-measure needs the device for one test at a time: leave out -n"),
    ],
)
def test_misuse_is_one_line(repo, line, platform, more, says) -> None:
    repo.write(TEST)
    result = repo.run(f"--np-platform={platform}", "--np-measure", *more)
    assert result.ret == 4
    assert says in line(result, says[:30])
