"""What toy platforms take kinds to cost that nothing was measured of."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_neuralpower.estimators import Bounded, Prior, Sparse
from pytest_neuralpower.estimators.features import FAMILIES
from pytest_neuralpower.estimators.physics import Ceilings

__all__ = ["flat_prior", "flat_priors"]


def flat_prior(hardware: Mapping[str, float], *, log_factor: float = 0.0) -> Prior:
    """``exp(log_factor)`` times the roofline for every layer, as one other device runs them."""
    ceilings = Ceilings.of(hardware)
    factor = Sparse(
        (), ceilings, "roofline_ms", intercept_=log_factor, bounds_=(log_factor, log_factor)
    )
    return Prior(factor, between=0.3, within=0.4, devices=("Other",))


def flat_priors(hardware: Mapping[str, float], *, log_factor: float = 0.0) -> dict[str, Bounded]:
    """The price of every family by :func:`flat_prior`."""
    prior = flat_prior(hardware, log_factor=log_factor)
    return {name: Bounded(name, Ceilings.of(hardware), prior) for name in FAMILIES}
