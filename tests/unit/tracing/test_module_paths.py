"""Every layer carries the path of the module it ran in, as ``named_modules`` spells it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pytest_neuralpower.tracing import trace
from pytest_neuralpower.tracing.modules import ModulePaths


class Twice(nn.Module):
    """One module under two names, called by each."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def paths(model: nn.Module, *args: Any) -> list[str]:
    return [layer.path for layer in trace(model, *args)]


def test_shared_module_answers_to_each_of_its_names_in_turn() -> None:
    assert paths(Twice(), torch.randn(1, 4)) == ["first", "second"]


def test_names_of_a_shared_module_start_over_on_every_trace() -> None:
    model = Twice()
    assert paths(model, torch.randn(1, 4)) == paths(model, torch.randn(1, 4))


def test_shared_module_takes_the_name_inside_its_caller() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(nn.Sequential(nn.ReLU(), shared), nn.Sequential(shared, nn.ReLU()))
    assert paths(model, torch.randn(1, 4)) == ["0.0", "0.1", "1.0", "1.1"]


def test_module_with_one_name_called_repeatedly_keeps_it() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(3):
                x = self.cell(x)
            return x

    assert paths(Loop(), torch.randn(1, 4)) == ["cell"] * 3


def test_operation_of_the_root_has_the_empty_path() -> None:
    class Root(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x)

    assert paths(Root(), torch.randn(1)) == [""]


def test_module_made_inside_forward_is_named_after_its_caller() -> None:
    class Maker(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.ReLU()(x)

    assert paths(nn.Sequential(Maker()), torch.randn(1)) == ["0.ReLU"]


def test_module_that_holds_itself_is_walked_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].parent = model
    names = ModulePaths(model)
    assert len(names.modules) == 2


def test_paths_agree_with_named_modules() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.Flatten())
    expected = dict(model.named_modules())
    for layer in trace(model, torch.randn(1, 3, 2, 2)):
        assert layer.path in expected
    walked = ModulePaths(model)
    assert [walked.of(module, "") for module in expected.values()] == list(expected)
