"""``trace``: the layers of one model call, by the cheapest route that can tell."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pytest_neuralpower.errors import TraceError
from pytest_neuralpower.layers import Trace
from pytest_neuralpower.tracing.inputs import abstract_inputs, batch_size, input_tensors
from pytest_neuralpower.tracing.module_paths import ModulePaths
from pytest_neuralpower.tracing.function_route import trace_functions

__all__ = ["trace"]


def trace(model: nn.Module, *args: Any, **kwargs: Any) -> Trace:
    if not isinstance(model, nn.Module):
        raise TraceError(f"trace() needs a torch.nn.Module, got {type(model).__name__}")
    tensors = input_tensors((args, kwargs))
    recorder = trace_functions(model, args, kwargs, tensors)
    return Trace(tuple(recorder.layers), "function", tuple(recorder.fallbacks), tuple(recorder.notes), batch_size(tensors), type(model).__name__)
