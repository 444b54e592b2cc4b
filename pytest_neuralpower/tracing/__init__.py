"""Model and example inputs to layers."""

from __future__ import annotations

from pytest_neuralpower.tracing.tracer import trace

__all__ = ["trace"]
