"""Nothing that is traced changes: model, inputs, random state, process; also after an error."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pytest_neuralpower.errors import TraceError
from pytest_neuralpower.tracing import trace


class Busy(nn.Module):
    """Changes whatever it can, then fails if asked to."""

    def __init__(self, *, fail: bool = False, read: bool = False) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.fail = fail
        self.read = read
        self.history: list[Any] = [1]
        self.table = {"a": [1, 2]}
        self.names = {"x"}
        self.calls = 0
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("running", torch.zeros(4))
        self.plain = torch.zeros(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.history.append(x)
        self.table["a"].append(3)
        self.table["b"] = x
        self.names.add("y")
        self.count += 1
        self.running.mul_(0.9).add_(x.mean(0))
        self.plain[0] = 5.0
        self.fc.marked = True
        self.register_buffer("late", torch.ones(3))
        self.fc.register_forward_hook(lambda _module, _args, out: out + 1)
        self.norm.eval()
        self.extra = nn.Linear(4, 4)
        self.fc.register_buffer("late", torch.ones(3))
        self.fc.late_module = nn.ReLU()
        torch.manual_seed(99)
        random.random()
        np.random.rand()
        y = self.norm(self.fc(x)) + torch.rand(4) + torch.randn(1)
        if self.read:
            y = y * y.detach().sum().item()
        if self.fail:
            raise ValueError("deliberate")
        return y


def snapshot(model: Busy) -> dict[str, Any]:
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "ids": {name: id(value) for name, value in model.state_dict(keep_vars=True).items()},
        "plain": model.plain.clone(),
        "history": list(model.history),
        "table": {name: list(value) for name, value in model.table.items()},
        "names": set(model.names),
        "calls": model.calls,
        "attributes": set(model.__dict__),
        "leaf": set(model.fc.__dict__),
        "leaf_buffers": list(model.fc._buffers),
        "modules": [name for name, _ in model.named_modules()],
        "hooks": len(model.fc._forward_hooks),
        "training": [module.training for module in model.modules()],
        "grads": [parameter.grad for parameter in model.parameters()],
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "versions": [parameter._version for parameter in model.parameters()],
        "memory": [parameter.data_ptr() for parameter in model.parameters()],
    }


def assert_same(before: Any, after: Any) -> None:
    assert before.keys() == after.keys()
    for name, value in before.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, after[name]), name
        elif isinstance(value, dict):
            assert_same(value, after[name])
        else:
            assert value == after[name], name


@pytest.mark.parametrize("read", [False, True], ids=["function", "forward"])
def test_everything_comes_back(read: bool) -> None:
    model = Busy(read=read)
    x = torch.randn(3, 4)
    before = snapshot(model)
    result = trace(model, x)
    assert result.route == ("forward" if read else "function")
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("read", [False, True], ids=["function", "forward"])
def test_everything_comes_back_after_an_error(read: bool) -> None:
    model = Busy(fail=True, read=read)
    x = torch.randn(3, 4)
    before = snapshot(model)
    with pytest.raises(TraceError, match="deliberate"):
        trace(model, x)
    assert_same(before, snapshot(model))


def test_inputs_are_not_written_to() -> None:
    class Writes(nn.Module):
        def forward(self, x: torch.Tensor, n: torch.Tensor, held: dict[str, Any]) -> torch.Tensor:
            x.zero_()
            n.add_(1)
            held["list"].append(x)
            held["new"] = x
            return x * n

    x, n = torch.ones(3), torch.ones(3, dtype=torch.int64)
    held: dict[str, Any] = {"list": []}
    trace(Writes(), x, n, held)
    assert x.eq(1).all()
    assert n.eq(1).all()
    assert held == {"list": []}


def test_gradients_of_an_earlier_backward_stay() -> None:
    class Backward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            loss = self.fc(x).sum()
            loss.backward()
            return loss * loss.item()  # needs a real forward

    model = Backward()
    model.fc(torch.ones(1, 4)).sum().backward()
    gradient = model.fc.weight.grad
    values = gradient.clone()
    assert trace(model, torch.ones(2, 4)).route == "forward"
    assert model.fc.weight.grad is gradient
    assert torch.equal(gradient, values)


def test_parameters_replaced_by_forward_come_back() -> None:
    class Replaces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = self.fc.weight
            weight.requires_grad = False
            weight.data = weight.data * 2
            weight.view(-1).zero_()
            weight.grad = torch.ones(4, 4)
            self.fc.bias.requires_grad_(False)
            return self.fc(x)

    model = Replaces()
    weight, pointer = model.fc.weight.clone(), model.fc.weight.data_ptr()
    for inputs in (torch.randn(2, 4), torch.zeros(2, 4)):
        trace(model, inputs)
        assert torch.equal(model.fc.weight, weight)
        assert model.fc.weight.data_ptr() == pointer
        assert model.fc.weight.requires_grad
        assert model.fc.bias.requires_grad
        assert model.fc.weight.grad is None


def test_module_call_is_the_original_again() -> None:
    original = nn.Module._call_impl
    call = nn.Module.__call__
    trace(nn.Linear(2, 2), torch.randn(1, 2))
    with pytest.raises(TraceError):
        trace(nn.Linear(2, 2), torch.randn(1, 3))
    assert nn.Module._call_impl is original
    assert nn.Module.__call__ is call


def test_number_of_threads_comes_back() -> None:
    class Masked(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.ones(4).cumsum(0)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        trace(Masked(), torch.randn(4))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_default_dtype_and_gradient_mode_come_back() -> None:
    class Switches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.set_default_dtype(torch.float64)
            torch.set_grad_enabled(False)
            return x + 1

    trace(Switches(), torch.randn(2))
    assert torch.get_default_dtype() is torch.float32
    assert torch.is_grad_enabled()


def test_other_threads_call_modules_as_usual() -> None:
    import threading

    results: list[torch.Tensor] = []

    class Spawns(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            def work() -> None:
                results.append(nn.Linear(2, 2)(torch.ones(1, 2)))

            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            return x * 2

    assert [layer.op for layer in trace(Spawns(), torch.randn(2))] == ["mul"]
    assert not results[0].is_meta


def test_model_in_evaluation_and_its_values_are_never_read() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    assert trace(model, torch.full((2, 4), float("inf"))).route == "function"
