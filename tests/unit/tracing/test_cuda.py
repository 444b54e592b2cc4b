"""Forwards that ask for CUDA list the same layers on a machine without it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.cuda import Stream, stream, synchronize

from pytest_neuralpower.errors import TraceError
from pytest_neuralpower.tracing import trace

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA answers these itself")


class Forward(nn.Module):
    """A linear layer and a function that uses it."""

    def __init__(self, forward: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.softplus = nn.Softplus()
        self.function = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def dtypes(forward: Callable[[Any, torch.Tensor], Any]) -> dict[str, str]:
    return {layer.op: layer.dtype for layer in trace(Forward(forward), torch.randn(4, 8))}


# --- autocast -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_autocast_for_cuda_lowers_products(dtype: torch.dtype | None) -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", dtype=dtype):
            return self.fc(x)

    lowered = str(dtype or torch.float16).removeprefix("torch.")
    assert dtypes(forward) == {"to": lowered, "linear": lowered}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's own, of the old spelling
def test_old_spelling_of_autocast_is_honoured() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        with torch.cuda.amp.autocast(dtype=torch.bfloat16):
            return self.fc(x)

    assert dtypes(forward)["linear"] == "bfloat16"


@pytest.mark.parametrize(
    ("device", "raised"), [("cuda", "float32"), ("cpu", "bfloat16")], ids=["cuda", "cpu"]
)
def test_each_device_s_list_decides_what_stays_in_float32(device: str, raised: str) -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, dtype=torch.bfloat16):
            y = self.fc(x)
            y.softmax(-1), self.norm(y), self.softplus(y), torch.exp(y), y.sum(-1), y.pow(2)
            return torch.relu(y)

    listed = dtypes(forward)
    for op in ("softmax", "layer_norm", "softplus", "exp", "sum", "pow"):
        assert listed[op] == raised, op
    assert listed["relu"] == listed["linear"] == "bfloat16"


def test_autocast_turned_off_inside_is_off() -> None:
    """As rotary embeddings do it: on the device where their input is."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        with (
            torch.autocast("cuda", dtype=torch.bfloat16),
            torch.autocast(x.device.type, enabled=False),
        ):
            return self.fc(x)

    assert dtypes(forward) == {"linear": "float32"}


def test_layers_of_a_real_forward_are_lowered_too() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            y = self.fc(x)
            return y if y.sum() > 0 else y + 1

    result = trace(Forward(forward), torch.randn(4, 8))
    assert result.route == "forward"
    assert result[0].dtype == "bfloat16"


@without_cuda
@pytest.mark.filterwarnings("ignore:CUDA is not available", "ignore:User provided")
def test_autocast_made_before_the_trace_is_noted() -> None:
    @torch.autocast("cuda")
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)

    result = trace(Forward(forward), torch.randn(4, 8))
    assert any("autocast" in note for note in result.notes)


@without_cuda
def test_autocast_is_torch_s_own_again_after_a_trace() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda"):
            raise ValueError("stop")

    with pytest.raises(TraceError, match="stop"):
        trace(Forward(forward), torch.randn(4, 8))
    assert not torch.is_autocast_enabled("cuda")
    with pytest.warns(UserWarning, match="CUDA"), torch.autocast("cuda"):
        assert not torch.is_autocast_enabled("cuda")


# --- streams, events, ranges ----------------------------------------------------------------


def timed(self: Any, x: torch.Tensor) -> torch.Tensor:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    x = self.fc(x)
    end.record()
    torch.cuda.synchronize()
    assert math.isnan(8 / start.elapsed_time(end))
    return x


def on_a_stream(self: Any, x: torch.Tensor) -> torch.Tensor:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        x = self.fc(x)
        x.record_stream(side)
    torch.cuda.current_stream().wait_event(side.record_event())
    return x


def annotated(self: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.cuda.device(0), torch.cuda.nvtx.range("fc"):
        torch.cuda.nvtx.mark("before")
        return self.fc(x)


def imported(self: Any, x: torch.Tensor) -> torch.Tensor:
    with stream(Stream()):
        x = self.fc(x)
    synchronize()
    return x


def accelerated(self: Any, x: torch.Tensor) -> torch.Tensor:
    torch.Event("cuda").record(torch.accelerator.current_stream())
    torch.accelerator.synchronize()
    return self.fc(x)


@without_cuda
@pytest.mark.parametrize(
    ("forward", "named"),
    [
        (timed, "torch.cuda.Event, torch.cuda.synchronize"),
        (on_a_stream, "torch.cuda.Stream, torch.cuda.current_stream, torch.cuda.stream"),
        (annotated, "torch.cuda.device, torch.cuda.nvtx.range_push, torch.cuda.nvtx.mark"),
        (imported, "torch.cuda.stream, torch.cuda.synchronize"),
        (accelerated, "torch.Event, torch.accelerator.current_stream"),
    ],
)
def test_ordering_of_work_is_ignored_and_noted(forward: Any, named: str) -> None:
    before = dict(vars(torch.cuda)), dict(vars(torch.cuda.nvtx)), dict(vars(torch.Tensor))
    result = trace(Forward(forward), torch.randn(4, 8))
    assert result.route == "function"
    assert [layer.op for layer in result] == ["linear"]
    (note,) = result.notes
    assert named in note
    assert before == (vars(torch.cuda), vars(torch.cuda.nvtx), vars(torch.Tensor))


@without_cuda
def test_any_other_call_of_cuda_is_refused_by_its_name() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        torch.cuda.get_device_properties(0)
        return self.fc(x)

    with pytest.raises(TraceError, match="calls CUDA, which this machine lacks"):
        trace(Forward(forward), torch.randn(4, 8))
