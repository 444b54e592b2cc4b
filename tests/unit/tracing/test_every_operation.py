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
from pytest_neuralpower.tracing.fallbacks import map_tensors, tensors_in
from pytest_neuralpower.tracing.torch_private import memory_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_neuralpower.layers import Trace

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


def samples(count: int = SAMPLES) -> Iterator[tuple[str, Any, Any]]:
    """Name, function and sample of every operation that takes floats (else the next best dtype)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db

        for entry in op_db:
            usable = [torch.float32, torch.complex64, torch.int64, *entry.dtypes]
            dtype = next((one for one in usable if one in entry.dtypes), torch.float32)
            # Past `sample_inputs`, which inspects the stack for every sample.
            made = entry.sample_inputs_func(entry, "cpu", dtype, requires_grad=False)
            for sample in islice(made, count):
                yield entry.formatted_name, entry, sample


def reason(name: str, given: Any, result: Any) -> str | None:
    """Why an operation leaves no layer; ``None`` if nothing explains it."""
    results = tensors_in(result)
    known = {memory_of(tensor) for tensor in tensors_in(given)}
    if not results:
        return "no tensor comes out: a value is read"
    if all(not tensor.numel() for tensor in results):
        return "what comes out is empty"
    if all(memory_of(tensor) in known for tensor in results):
        return "what comes out lies in an argument's memory"
    return "nothing is written" if name in UNWRITTEN else None


def has_gaps(value: torch.Tensor) -> bool:
    """A tensor that does not fill its memory."""
    strided = value.layout is torch.strided
    return strided and value.untyped_storage().nbytes() != value.nbytes


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


# -- Edges: whatever an operation is given is read, and whatever it returns has a maker.

#: Operations that read nothing of an operand: its shape or dtype alone, or it is overwritten.
UNREAD = {
    "allclose", "cauchy", "equal", "expand_as", "exponential", "full_like", "geometric", "isreal",
    "item", "linspace_tensor_overload", "log_normal", "new_full", "new_ones", "new_zeros",
    "nn_functional_batch_norm", "nn_functional_batch_norm_without_cudnn", "normal_in_place",
    "ones_like", "rand_like", "randint_like", "randn_like", "reshape_as", "resize_as_", "uniform",
    "view_as", "zeros_like",
}  # fmt: skip


class Between(nn.Module):
    """Copies what an operation is given and what it returns."""

    def __init__(self, function: Any, kwargs: Any) -> None:
        super().__init__()
        self.function, self.kwargs = function, kwargs

    def forward(self, given: Any, read: torch.Tensor | None = None) -> None:
        if read is not None:
            read.item()
        copies = map_tensors(lambda tensor: tensor.clone() if floats(tensor) else tensor, given)
        for tensor in tensors_in(self.function(*copies, **self.kwargs)):
            tensor.clone()


def floats(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def lost_edges(name: str, traced: Trace, copies: int, results: int) -> str:
    """What an operation does not read, or who of its results has no maker; empty if all is well."""
    last = len(traced) - results
    if any(layer.op != "clone" for layer in (*traced[:copies], *traced[last:])):
        return "no copies"
    read = {maker for reads in traced.reads[copies:] for maker in reads}
    if name not in UNREAD | UNWRITTEN and not read.issuperset(range(copies)):
        return "an operand is not read"
    if not all(traced.reads[last:]) and name not in UNWRITTEN and "signal_windows" not in name:
        return "a result has no maker"
    return ""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("route", ["function", "forward"])
def test_every_operation_reads_its_operands_and_makes_its_results(route: str) -> None:
    torch.manual_seed(0)
    lost: list[str] = []
    judged = set()
    for name, entry, sample in samples(3):
        given = (sample.input, *sample.args)
        try:
            real = tensors_in(entry(*given, **sample.kwargs))
        except (RuntimeError, AssertionError):
            continue
        if any(each.layout is not torch.strided or not each.numel() for each in tensors_in(given)):
            continue
        if not all(each.numel() for each in real) or any(map(has_gaps, tensors_in(given))):
            continue
        probe = (torch.zeros(()),) if route == "forward" else ()
        traced = trace(Between(entry, sample.kwargs), given, *probe)
        judged.add(name)
        copies = sum(map(floats, tensors_in(given)))
        if problem := lost_edges(entry.formatted_name, traced, copies, len(real)):
            lost.append(f"{name}: {problem}")
    assert not lost, "\n".join(dict.fromkeys(lost))
    assert len(judged) > 550
