"""What a verification says of its drifts."""

from __future__ import annotations

from pytest_neuralpower.calibrate.measure.verify import Drift, Verification

CONV = Drift("conv", 10.0, 10.1, 0.2)


def test_kinds_that_are_not_judged_are_explained() -> None:
    """However far they drifted, they judge nothing."""
    found = Verification("mine", "CPU", True, (CONV, Drift("norm", 0.1, 0.9, None)), 1)
    assert found.holds
    assert found.unjudged == (
        "kinds without a limit (-) took less than 5% of the time each: too little to judge"
    )


def test_nothing_is_explained_where_every_kind_is_judged() -> None:
    assert not Verification("mine", "CPU", True, (CONV,), 1).unjudged
