"""Guard a PyTorch model's energy and runtime in pytest, predicted without the device.

The public names load on first use, so that an idle plugin imports neither torch nor numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_neuralpower.errors import (
        BudgetError,
        NeuralPowerError,
        PlatformError,
        TraceError,
    )
    from pytest_neuralpower.intervals import difference_interval, ratio_interval
    from pytest_neuralpower.layers import Layer, Trace
    from pytest_neuralpower.platform import Platform, list_platforms, load_platform
    from pytest_neuralpower.prediction import LayerPrediction, Prediction
    from pytest_neuralpower.predictor import predict
    from pytest_neuralpower.remedy.advice import advise
    from pytest_neuralpower.remedy.apply_plan import apply_plan
    from pytest_neuralpower.remedy.prune import prune_to_budget
    from pytest_neuralpower.session import (
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
    "list_platforms",
    "load_platform",
    "predict",
    "prune_to_budget",
    "ratio_interval",
    "trace",
]

_HOMES = {
    "BaselineExceeded": "session",
    "BaselineMissing": "session",
    "BudgetError": "errors",
    "BudgetExceeded": "session",
    "Layer": "layers",
    "LayerPrediction": "prediction",
    "NeuralPower": "session",
    "NeuralPowerError": "errors",
    "Platform": "platform",
    "PlatformError": "errors",
    "Prediction": "prediction",
    "PredictionUntrusted": "session",
    "Trace": "layers",
    "TraceError": "errors",
    "advise": "remedy.advice",
    "apply_plan": "remedy.apply_plan",
    "difference_interval": "intervals",
    "list_platforms": "platform",
    "load_platform": "platform",
    "predict": "predictor",
    "prune_to_budget": "remedy.prune",
    "ratio_interval": "intervals",
    "trace": "tracing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
