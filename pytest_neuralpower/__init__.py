"""Guard a PyTorch model's energy and runtime in pytest, predicted without the device.

The public names load on first use, so that an idle plugin imports neither torch nor numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_neuralpower.compress.advice import advise
    from pytest_neuralpower.compress.plan import apply_plan
    from pytest_neuralpower.compress.prune import prune_to_budget
    from pytest_neuralpower.errors import BudgetError, NeuralPowerError, PlatformError, TraceError
    from pytest_neuralpower.layers import Layer, Trace
    from pytest_neuralpower.platform.catalog import list_platforms, load_platform, predict
    from pytest_neuralpower.platform.differences import difference_interval, ratio_interval
    from pytest_neuralpower.platform.generation import Generation
    from pytest_neuralpower.platform.prediction import LayerPrediction, Prediction
    from pytest_neuralpower.platform.protocol import Platform
    from pytest_neuralpower.platform.serving import generate
    from pytest_neuralpower.plugin.session import (
        BaselineExceeded,
        BaselineMissing,
        BudgetExceeded,
        NeuralPower,
        PredictionUntrusted,
    )
    from pytest_neuralpower.tracing import trace

__version__ = "0.1.0"

__all__ = [
    "BaselineExceeded",
    "BaselineMissing",
    "BudgetError",
    "BudgetExceeded",
    "Generation",
    "Layer",
    "LayerPrediction",
    "NeuralPower",
    "NeuralPowerError",
    "Platform",
    "PlatformError",
    "Prediction",
    "PredictionUntrusted",
    "Trace",
    "TraceError",
    "advise",
    "apply_plan",
    "difference_interval",
    "generate",
    "list_platforms",
    "load_platform",
    "predict",
    "prune_to_budget",
    "ratio_interval",
    "trace",
]

_HOMES = {
    "BaselineExceeded": "plugin.session",
    "BaselineMissing": "plugin.session",
    "BudgetError": "errors",
    "BudgetExceeded": "plugin.session",
    "Generation": "platform.generation",
    "Layer": "layers",
    "LayerPrediction": "platform.prediction",
    "NeuralPower": "plugin.session",
    "NeuralPowerError": "errors",
    "Platform": "platform.protocol",
    "PlatformError": "errors",
    "Prediction": "platform.prediction",
    "PredictionUntrusted": "plugin.session",
    "Trace": "layers",
    "TraceError": "errors",
    "advise": "compress.advice",
    "apply_plan": "compress.plan",
    "difference_interval": "platform.differences",
    "generate": "platform.serving",
    "list_platforms": "platform.catalog",
    "load_platform": "platform.catalog",
    "predict": "platform.catalog",
    "prune_to_budget": "compress.prune",
    "ratio_interval": "platform.differences",
    "trace": "tracing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pytest_neuralpower.collector import collector_paused  # noqa: PLC0415 - idle plugin

    with collector_paused():
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
