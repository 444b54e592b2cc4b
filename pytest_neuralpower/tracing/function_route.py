"""The function route: the model's Python runs on tensors without data."""

from __future__ import annotations

import sys
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from pytest_neuralpower.tracing.function_mode import FunctionTracer
from pytest_neuralpower.tracing.inputs import abstract_inputs, input_tensors
from pytest_neuralpower.tracing.module_calls import ModuleCalls
from pytest_neuralpower.tracing.module_paths import watched_calls
from pytest_neuralpower.tracing.recorder import Recorder
from pytest_neuralpower.tracing.script_calls import watched_script_functions
from pytest_neuralpower.tracing.state import WriteJournal, global_state, module_state

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from torch import nn

    from pytest_neuralpower.tracing.module_paths import ModulePaths

__all__ = ["eager_only", "home_device", "trace_functions"]


def trace_functions(model: nn.Module, args: Any, kwargs: Any, paths: ModulePaths) -> Recorder:
    """Layers by shape rules.

    Raises
    ------
    NeedsAten, NeedsForward
        Another route must be taken.
    """
    device = home_device(model, args, kwargs)
    recorder = Recorder(device.type)
    journal = WriteJournal()
    calls = ModuleCalls(recorder, paths, journal, compute=False)
    with global_state(), module_state(paths.modules), torch.no_grad(), eager_only():
        given, named = abstract_inputs(args), abstract_inputs(kwargs)
        try:
            with (
                watched_calls(calls.replacement),
                watched_script_functions(recorder),
                FunctionTracer(recorder, journal, device),
            ):
                model(*given, **named)
        finally:
            journal.undo()
    _note_unseen(recorder, calls)
    return recorder


def home_device(model: nn.Module, args: Any, kwargs: Any) -> torch.device:
    """Where the model would run: where its inputs are, or its first parameter; never meta."""
    for tensor in input_tensors((args, kwargs)):
        if tensor.device.type != "meta":
            return tensor.device
    parameter = next(model.parameters(), None)
    if parameter is not None and parameter.device.type != "meta":
        return parameter.device
    return torch.device("cpu")


def eager_only() -> AbstractContextManager[Any]:
    """Run functions that ``torch.compile`` made as they were written."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and importing it costs seconds
        return nullcontext()
    return _forced_eager()


@contextmanager
def _forced_eager() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):
        yield


def _note_unseen(recorder: Recorder, calls: ModuleCalls) -> None:
    """A module that ran, but whose parameters reached no operation that we saw.

    A parameter that merely goes unused is no reason to warn: it must be named by the module's
    forward, or the module must have listed nothing at all.
    """
    for module, path in calls.entered.values():
        names = [name for name, one in module._parameters.items() if one is not None]
        if any(id(module._parameters[name]) in recorder.seen for name in names) or not names:
            continue
        code = getattr(type(module).forward, "__code__", None)
        named = code is not None and any(name in code.co_names for name in names)
        below = f"{path}." if path else ""
        if named or not any(
            layer.path == path or layer.path.startswith(below) for layer in recorder.layers
        ):
            label = f"{path!r} ({type(module).__name__})" if path else type(module).__name__
            recorder.notes[
                f"{label} ran, but none of its parameters was read by an operation that could be "
                "seen: an extension (pybind, Triton) may have done work that is not listed."
            ] = None
