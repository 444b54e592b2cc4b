"""The one error of the analytic Eyeriss model."""

from __future__ import annotations

from pytest_neuralpower.errors import NeuralPowerError

__all__ = ["EyerissError"]


class EyerissError(NeuralPowerError, ValueError):
    """A shape, a zero count or a row of the 25-column table describes no possible layer."""
