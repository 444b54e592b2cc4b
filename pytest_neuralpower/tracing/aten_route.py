"""The ATen route: the whole model on fake tensors, where it differentiates or batches inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pytest_neuralpower.tracing.aten_mode import AtenRecorder
from pytest_neuralpower.tracing.function_route import eager_only
from pytest_neuralpower.tracing.inputs import map_inputs
from pytest_neuralpower.tracing.module_calls import ModuleCalls
from pytest_neuralpower.tracing.module_paths import ModulePaths, watched_calls
from pytest_neuralpower.tracing.recorder import Recorder
from pytest_neuralpower.tracing.signals import NeedsForward
from pytest_neuralpower.tracing.state import WriteJournal, global_state, module_state
from pytest_neuralpower.tracing.torch_private import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

__all__ = ["trace_dispatcher"]


def trace_dispatcher(model: nn.Module, args: Any, kwargs: Any) -> Recorder:
    """Layers as the dispatcher sees them, backward operations included.

    Raises
    ------
    NeedsForward
        The model's next step depends on values.
    """
    recorder = Recorder()
    journal = WriteJournal()
    paths = ModulePaths(model)
    calls = ModuleCalls(recorder, paths, journal, compute=True)
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)

    def to_fake(tensor: Tensor) -> Tensor:
        with fake_mode:
            fake = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu"
            )
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(fake, requires_grad=tensor.requires_grad)
        return fake.requires_grad_() if tensor.requires_grad else fake

    # The fakes stand in for parameters and buffers, so nothing real can be written.
    stand_ins = {
        name: to_fake(tensor)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    with global_state(), module_state(paths.modules), eager_only():
        given, named = map_inputs(args, to_fake), map_inputs(kwargs, to_fake)
        try:
            with watched_calls(calls.replacement), fake_mode, AtenRecorder(recorder):
                torch.func.functional_call(model, stand_ins, given, named)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise NeedsForward(f"it depends on values ({error})") from error
        finally:
            journal.undo()
    return recorder
