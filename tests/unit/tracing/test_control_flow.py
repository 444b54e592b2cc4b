"""Operations that take functions list what the functions run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._higher_order_ops import map as mapped
from torch._higher_order_ops import scan, while_loop

from pytest_neuralpower.errors import TraceError
from pytest_neuralpower.tracing import trace

STEP = 4 * 16 * 16  # MACs of the linear layer


class Branches(nn.Module):
    """One linear layer, or two, as an integer says, or an activation does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor, decides: torch.Tensor) -> Any:
        def once(x: torch.Tensor) -> torch.Tensor:
            return self.linear(x)

        def twice(x: torch.Tensor) -> torch.Tensor:
            return self.linear(self.linear(x))

        return torch.cond(decides.sum() > 0, once, twice, (x,))


class Loops(Branches):
    def forward(self, x: torch.Tensor, steps: torch.Tensor) -> Any:
        def more(count: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return count < steps

        def step(count: torch.Tensor, x: torch.Tensor) -> Any:
            return count + 1, self.linear(x)

        return while_loop(more, step, (torch.tensor(0), x))


class Rows(Branches):
    def forward(self, x: torch.Tensor) -> Any:
        def add(total: torch.Tensor, row: torch.Tensor) -> Any:
            return total + row, self.linear(row)

        total, rows = scan(add, torch.zeros(16), mapped(self.linear, x))
        return total, rows


@pytest.mark.parametrize(("decides", "layers"), [(1, 1), (-1, 2)])
@pytest.mark.parametrize("exported", [False, True])
def test_the_branch_taken_is_listed(decides: int, layers: int, exported: bool) -> None:
    x, decides_all = torch.randn(4, 16), torch.full((3,), decides)
    model: nn.Module = Branches().eval()
    if exported:
        model = torch.export.export(model, (x, decides_all)).module()
    traced = trace(model, x, decides_all)
    assert (traced.route, traced.macs) == ("function", layers * STEP)
    really = trace(model, x, decides_all.float())  # now an activation decides
    assert (really.route, really.macs) == ("forward", layers * STEP)


def test_a_loop_is_listed_by_its_steps() -> None:
    assert trace(Loops().eval(), torch.randn(4, 16), torch.tensor(3)).macs == 3 * STEP


def test_map_and_scan_are_listed_row_by_row() -> None:
    assert trace(Rows().eval(), torch.randn(4, 16)).macs == 2 * STEP


def test_values_that_decide_are_asked_for_in_one_line() -> None:
    with torch.device("meta"):
        model = Branches().eval()
    with pytest.raises(TraceError, match="cannot trace Branches without values: it reads the v"):
        trace(model, torch.empty(4, 16), torch.empty(3))
