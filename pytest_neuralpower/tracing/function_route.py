"""The function route: run the model's Python on tensors without data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pytest_neuralpower.tracing.function_mode import FunctionTracer
from pytest_neuralpower.tracing.inputs import abstract_inputs
from pytest_neuralpower.tracing.leaf_modules import LEAVES
from pytest_neuralpower.tracing.module_paths import ModulePaths, watched_calls
from pytest_neuralpower.tracing.recorder import Recorder
from pytest_neuralpower.tracing.state import WriteJournal, global_state, module_state

__all__ = ["trace_functions"]


def trace_functions(model, args, kwargs, tensors):
    device = tensors[0].device if tensors else torch.device("cpu")
    if device.type == "meta":
        device = torch.device("cpu")
    recorder = Recorder(device.type)
    journal = WriteJournal()
    paths = ModulePaths(model)
    handler = ModuleCalls(recorder, paths)
    with global_state(), module_state(paths.modules), torch.no_grad():
        try:
            given, named = abstract_inputs(args), abstract_inputs(kwargs)
            with watched_calls(handler), FunctionTracer(recorder, journal, device):
                model(*given, **named)
        finally:
            journal.undo()
    return recorder


class ModuleCalls:
    def __init__(self, recorder, paths):
        self.recorder = recorder
        self.paths = paths

    def __call__(self, original, module, args, kwargs):
        recorder = self.recorder
        caller = recorder.path
        path = recorder.path = self.paths.of(module, caller)
        leaf = LEAVES.get(type(module))
        if leaf is not None and len(args) == 1 and not kwargs:
            own = module.__dict__
            if not own["_forward_hooks"] and not own["_forward_pre_hooks"] and "forward" not in own:
                try:
                    with torch._C.DisableTorchFunction():
                        x = args[0]
                        if x.is_meta or leaf is LEAVES[nn.Embedding]:
                            out = leaf(recorder, module, x)
                            recorder.path = caller
                            return out
                except Exception:
                    pass
        try:
            return original(module, *args, **kwargs)
        finally:
            recorder.path = caller
