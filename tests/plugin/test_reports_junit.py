"""Properties of guarded tests in JUnit's XML."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

TESTS = """
    @pytest.mark.energy_budget(j=1000)
    @pytest.mark.runtime_budget(s=1, per="sample")
    def test_one(neuralpower):
        neuralpower.predict(small(), image())

    @pytest.mark.energy_budget(uj=1)
    def test_two(neuralpower):
        neuralpower.predict(small(), image())
        neuralpower.predict(small(), image(16))

    def test_none():
        pass
"""


def properties(path) -> dict[str, dict[str, str]]:
    """By test."""
    return {
        case.get("name"): {each.get("name"): each.get("value") for each in case.iter("property")}
        for case in ElementTree.parse(path).getroot().iter("testcase")
    }


def test_each_guarded_test_has_its_figures_budgets_and_platform(repo, pytester):
    repo.write(TESTS)
    repo.run("--np-platform=titanx", "--junit-xml=junit.xml")
    found = properties(pytester.path / "junit.xml")
    one, two = found["test_one"], found["test_two"]
    assert one["neuralpower.platform"] == "titanx"
    assert len(one["neuralpower.platform_sha256"]) == 64
    assert one["neuralpower.outcome"] == "ok"
    assert float(one["neuralpower.energy_mj"]) == pytest.approx(
        float(one["neuralpower.power_w"]) * float(one["neuralpower.runtime_ms"])
    )
    assert one["neuralpower.energy_budget_mj_per_call"] == "1000000.0"
    assert one["neuralpower.runtime_budget_ms_per_sample"] == "1000.0"
    assert two["neuralpower.1.outcome"] == two["neuralpower.2.outcome"] == "over"
    assert float(two["neuralpower.2.energy_mj"]) > float(two["neuralpower.1.energy_mj"])
    assert found["test_none"] == {}


def test_the_baseline_stands_beside_the_prediction(repo, pytester):
    repo.write(TESTS)
    repo.run("--np-platform=titanx", "--np-update-baseline")
    repo.run("--np-platform=titanx", "--junit-xml=junit.xml")
    one = properties(pytester.path / "junit.xml")["test_one"]
    assert float(one["neuralpower.baseline_energy_mj"]) == pytest.approx(
        float(one["neuralpower.energy_mj"]), rel=1e-4
    )


def test_what_the_platform_does_not_know_is_left_out(repo, pytester):
    repo.write("def test_one(neuralpower): neuralpower.predict(small(), image())")
    repo.run("--np-platform=eyeriss", "--junit-xml=junit.xml")
    one = properties(pytester.path / "junit.xml")["test_one"]
    assert "neuralpower.energy_mj" in one
    assert "neuralpower.runtime_ms" not in one
    assert "neuralpower.power_w" not in one
