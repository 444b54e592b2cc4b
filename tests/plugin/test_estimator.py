"""``--np-estimator``: predictions by the NeuralPower paper's polynomials."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from pytest_neuralpower.estimators import NeuralPowerPolynomial
from pytest_neuralpower.platform.catalog import load_fitted
from pytest_neuralpower.platform.price import PaperModel

if TYPE_CHECKING:
    from conftest import Repo

TEST = """
@pytest.mark.runtime_budget(ms=30)
def test_small(neuralpower):
    neuralpower.predict(small(), image())
"""


@pytest.fixture
def platform(tmp_path: Path) -> str:
    """``titanx`` with the paper's estimator of conv, by which each one takes 20 ms."""
    titanx = load_fitted("titanx")
    paper = PaperModel(NeuralPowerPolynomial("conv", degree_=1, intercept_=20.0))
    conv = replace(titanx.families["conv"], neuralpower=paper)
    families = {
        name: replace(model, neuralpower=None) for name, model in titanx.families.items()
    } | {"conv": conv}
    replace(titanx, families=families).save(tmp_path / "both.json")
    return str(tmp_path / "both.json")


def test_the_option_decides_what_predicts(repo: Repo, platform: str) -> None:
    repo.write(TEST)
    repo.run(f"--np-platform={platform}", "--np-estimator=best").assert_outcomes(passed=1)
    result = repo.run(f"--np-platform={platform}", "--np-estimator=neuralpower", "--np-top=1")
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    assert "estimator neuralpower prices conv; best prices activation, pool" in text
    assert "both, neuralpower" in text
    assert "--np-estimator=neuralpower --np-top=0" in text  # the command that shows more
    assert "both.json --estimator neuralpower --ms 30" in text  # and that of advice


def test_a_judge_that_needs_intervals_names_the_estimator_without(
    repo: Repo, platform: str
) -> None:
    repo.write(TEST)
    options = f"--np-platform={platform}", "--np-judge=safe"
    result = repo.run(*options, "--np-estimator=neuralpower")
    result.assert_outcomes(failed=1)
    assert (
        "np_judge=safe needs intervals and estimator 'neuralpower' has none; "
        "use --np-judge=point or --np-estimator=best"
    ) in result.stdout.str()
    repo.run(*options, "--np-estimator=best").assert_outcomes(passed=1)


def test_so_does_the_ini_file(repo: Repo, platform: str) -> None:
    repo.write(TEST)
    repo.pytester.makeini("[pytest]\nnp_estimator = neuralpower\n")
    repo.run(f"--np-platform={platform}").assert_outcomes(failed=1)
    repo.run(f"--np-platform={platform}", "--np-estimator=best").assert_outcomes(passed=1)
    repo.pytester.makeini("[pytest]\nnp_estimator = lasso\n")
    result = repo.run(f"--np-platform={platform}")
    assert "np_estimator='lasso': allowed: best, neuralpower" in "\n".join(result.errlines)


def test_a_platform_without_them_is_refused_before_any_test(repo: Repo) -> None:
    repo.write(TEST)
    result = repo.run("--np-platform=eyeriss", "--np-estimator=neuralpower")
    text = "\n".join([*result.outlines, *result.errlines])
    assert "platform eyeriss has no fitted estimators" in text
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_reports_and_baselines_name_the_estimator(repo: Repo, platform: str) -> None:
    repo.write(TEST.replace("ms=30", "ms=3000"))
    run = f"--np-platform={platform}", "--np-report=out.json"
    repo.run(*run, "--np-update-baseline").assert_outcomes(passed=1)
    result = repo.run(*run, "--np-estimator=neuralpower")
    result.assert_outcomes(passed=1)
    assert "as baseline of estimator best" in result.stdout.str()
    found = json.loads(Path("out.json").read_text("utf-8"))["predictions"][0]
    assert found["estimator"] == "neuralpower"
    assert found["comparison"]["estimators"] == ["best", "neuralpower"]
    assert found["comparison"]["recalibrated"]
    assert found["comparison"]["runtime"]["head"] == found["runtime_ms"] > 40
    repo.run(*run, "--np-estimator=neuralpower", "--np-update-baseline").assert_outcomes(passed=1)
    baseline = next(Path("budgets/baselines").rglob("*.yaml")).read_text("utf-8")
    assert 'estimator: "neuralpower"' in baseline or "estimator: neuralpower" in baseline
