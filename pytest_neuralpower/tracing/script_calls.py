"""TorchScript: its code runs outside Python, so each call is listed at ATen level."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pytest_neuralpower.tracing.fallbacks import map_outline, map_tensors
from pytest_neuralpower.tracing.signals import NeedsForward
from pytest_neuralpower.tracing.torch_private import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    without_torch_function,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_neuralpower.tracing.recorder import Recorder
    from pytest_neuralpower.tracing.state import WriteJournal

__all__ = ["call_script_module", "watched_script_functions"]


def call_script_module(
    recorder: Recorder,
    journal: WriteJournal,
    module: torch.nn.Module,
    call: Callable[..., Any],
    *,
    args: Any,
    kwargs: Any,
) -> Any:
    """Call a scripted or traced module; its buffers are written by compiled code."""
    with without_torch_function():
        for buffer in module.buffers():
            journal.keep(buffer)
    recorder.seen.update(id(parameter) for parameter in module.parameters())
    return _call_script(recorder, call, args, kwargs)


def _call_script(recorder: Recorder, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    from pytest_neuralpower.tracing.aten_mode import AtenRecorder  # noqa: PLC0415 - few need it

    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)

    def to_fake(tensor: Tensor) -> Tensor:
        if not tensor.is_meta:
            return tensor
        with fake_mode:
            return torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu"
            )

    def from_fake(tensor: Tensor) -> Tensor:
        return recorder.new(tuple(tensor.shape), tensor.dtype, tensor.stride())

    with without_torch_function():
        given, named = map_tensors(to_fake, args), map_tensors(to_fake, kwargs)
        try:
            # The profiling executor would fuse what we want to see.
            unoptimised = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
            with unoptimised, fake_mode, AtenRecorder(recorder):
                result = call(*given, **named)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise NeedsForward(f"a TorchScript call depends on values ({error})") from error
        return map_outline(from_fake, result)


@contextmanager
def watched_script_functions(recorder: Recorder) -> Iterator[None]:
    """Calls of ``torch.jit.script`` functions, listed while this is active."""
    function_type: Any = torch.jit.ScriptFunction
    original = function_type.__call__
    owner = threading.get_ident()

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != owner:
            return original(function, *args, **kwargs)
        return _call_script(
            recorder, lambda *given, **named: original(function, *given, **named), args, kwargs
        )

    function_type.__call__ = call
    try:
        yield
    finally:
        function_type.__call__ = original
