"""The forward route: one real forward, every operation listed as it runs."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pytest_neuralpower.tracing.function_mode import FunctionTracer
from pytest_neuralpower.tracing.function_route import eager_only, home_device
from pytest_neuralpower.tracing.inputs import input_tensors, map_inputs
from pytest_neuralpower.tracing.module_calls import ModuleCalls
from pytest_neuralpower.tracing.module_paths import ModulePaths, watched_calls
from pytest_neuralpower.tracing.recorder import Recorder
from pytest_neuralpower.tracing.state import WriteJournal, global_state, module_state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

__all__ = ["lacks_values", "trace_forward"]


def lacks_values(model: nn.Module, args: Any, kwargs: Any) -> str | None:
    """What stands in the way of a real forward: the first tensor without data."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            return f"{name!r} is"
    if any(tensor.is_meta for tensor in input_tensors((args, kwargs))):
        return "an input is"
    return None


def trace_forward(model: nn.Module, args: Any, kwargs: Any) -> Recorder:
    """Layers of a real forward, where the model and its inputs are."""
    device = home_device(model, args, kwargs)
    recorder = Recorder(device.type)
    journal = WriteJournal()
    paths = ModulePaths(model)
    calls = ModuleCalls(recorder, paths, journal, compute=True)
    with global_state(), module_state(paths.modules), _gradients(model), eager_only():
        # Copies: a cache is extended, an input may be written to.
        given, named = map_inputs(args, _copy), map_inputs(kwargs, _copy)
        for buffer in model.buffers():
            journal.keep(buffer)  # batch norm writes its statistics inside the kernel
        try:
            with (
                watched_calls(calls.replacement),
                FunctionTracer(recorder, journal, device, compute=True),
            ):
                model(*given, **named)
        finally:
            journal.undo()
    return recorder


def _copy(tensor: Tensor) -> Tensor:
    copied = tensor.detach().clone()
    return copied.requires_grad_() if tensor.requires_grad else copied


@contextmanager
def _gradients(model: nn.Module) -> Iterator[None]:
    """``.grad`` of every parameter, as it was on entry."""
    before = [
        (parameter, parameter.grad, None if parameter.grad is None else parameter.grad.clone())
        for parameter in model.parameters()
    ]
    try:
        yield
    finally:
        for parameter, gradient, values in before:
            parameter.grad = gradient
            if gradient is not None and values is not None:
                gradient.detach().copy_(values)
