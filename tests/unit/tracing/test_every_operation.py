"""Torch's own catalogue of operations: each leaves a layer, or a reason why it costs nothing."""

from __future__ import annotations

import warnings
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from pytest_neuralpower.errors import TraceError
from pytest_neuralpower.tracing import trace
from pytest_neuralpower.tracing.fallbacks import tensors_in
from pytest_neuralpower.tracing.torch_private import storage_of

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("expecttest", reason="torch's catalogue imports it")

#: Samples of each operation.
SAMPLES = 8

#: What makes a tensor without writing to it, or wraps one number.
UNWRITTEN = {
    "empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided",
    "scalar_tensor",
}  # fmt: skip


class Once(nn.Module):
    """Calls one operation; on the forward route if it is given something to read."""

    def __init__(self, function: Any, args: Any, kwargs: Any) -> None:
        super().__init__()
        self.function, self.args, self.kwargs = function, args, kwargs

    def forward(self, given: Any, read: torch.Tensor | None = None) -> Any:
        if read is not None:
            read.item()
        return self.function(given, *self.args, **self.kwargs)


def samples() -> Iterator[tuple[str, Any, Any]]:
    """Name, function and sample of every operation that takes floats (else the next best dtype)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db

        for entry in op_db:
            usable = [torch.float32, torch.complex64, torch.int64, *entry.dtypes]
            dtype = next((one for one in usable if one in entry.dtypes), torch.float32)
            # Past `sample_inputs`, which inspects the stack for every sample.
            made = entry.sample_inputs_func(entry, "cpu", dtype, requires_grad=False)
            for sample in islice(made, SAMPLES):
                yield entry.formatted_name, entry, sample


def reason(name: str, given: Any, result: Any) -> str | None:
    """Why an operation leaves no layer; ``None`` if nothing explains it."""
    results = tensors_in(result)
    known = {storage_of(tensor) for tensor in tensors_in(given)}
    if not results:
        return "no tensor comes out: a value is read"
    if all(not tensor.numel() for tensor in results):
        return "what comes out is empty"
    if all(storage_of(tensor) in known for tensor in results):
        return "what comes out lies in an argument's memory"
    return "nothing is written" if name in UNWRITTEN else None


def has_gaps(value: torch.Tensor) -> bool:
    """A tensor that does not fill its memory."""
    return storage_of(value) is not None and value.untyped_storage().nbytes() != value.nbytes


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("route", ["function", "forward"])
def test_every_operation_leaves_a_layer_or_a_reason(route: str) -> None:
    torch.manual_seed(0)
    vanished: list[str] = []
    traced_operations = set()
    for name, entry, sample in samples():
        try:
            real = entry(sample.input, *sample.args, **sample.kwargs)
        except (RuntimeError, AssertionError):
            continue  # torch itself cannot, on this machine (jiterator needs CUDA)
        if route == "forward" and isinstance(sample.input, torch.Tensor) and has_gaps(sample.input):
            continue  # its input is copied there, without the memory between and around
        probe = (torch.zeros(()),) if route == "forward" else ()
        model = Once(entry, sample.args, sample.kwargs)
        try:
            traced = trace(model, sample.input, *probe)
        except TraceError as error:
            vanished.append(f"{name}: {error}")
            continue
        traced_operations.add(name)
        given = (sample.input, sample.args, sample.kwargs)
        if not len(traced) and reason(entry.name, given, real) is None:
            vanished.append(f"{name} by the {traced.route} route")
    assert not vanished, "\n".join(dict.fromkeys(vanished))
    assert len(traced_operations) > 600
