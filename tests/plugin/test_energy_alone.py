"""Budgets on a platform that knows energy and no runtime."""

from __future__ import annotations

TEST = """
    import pytest, torch

    @pytest.mark.{marker}
    def test_small(neuralpower):
        neuralpower.predict(torch.nn.Conv2d(3, 8, 3), torch.empty(2, 3, 32, 32))
"""


def run(pytester, marker, *options):
    pytester.makepyfile(test_guard=TEST.format(marker=marker))
    return pytester.runpytest_inprocess("--np-platform=eyeriss", *options)


def test_an_energy_budget_is_kept_and_no_runtime_is_shown(pytester):
    result = run(pytester, "energy_budget(mj=5)")
    result.assert_outcomes(passed=1)
    (line,) = [line for line in result.outlines if line.startswith("ok ")]
    assert " of 5.00 mJ" in line
    assert " ms" not in line.replace("mJ", "")
    assert " W" not in line


def test_a_broken_energy_budget_says_what_the_energy_is_and_has_no_runtime_column(pytester):
    result = run(pytester, "energy_budget(uj=1)")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "energy budget exceeded: Conv2d on eyeriss",
            "*(array and DRAM at 2.2 pJ a MAC, no idle)",
            "*share*energy  operation *",
        ]
    )
    assert "idle included" not in result.stdout.str()


def test_a_runtime_budget_is_one_clear_line(pytester):
    result = run(pytester, "runtime_budget(ms=5)")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "runtime budget: platform 'eyeriss' knows energy alone; use energy_budget(mj=...) "
            "or a platform with runtime*"
        ]
    )


def test_a_power_budget_is_one_clear_line(pytester):
    result = run(pytester, "power_budget(w=5)")
    result.stdout.fnmatch_lines(["power budget: platform 'eyeriss' knows energy alone*"])
