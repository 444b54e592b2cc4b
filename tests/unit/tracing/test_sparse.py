"""Products with a sparse matrix cost the values that it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling
from torch import nn

from pytest_neuralpower import predict
from pytest_neuralpower.tracing import trace

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")

NODES, EDGES, WIDTH = 30, 75, 8

#: Distinct: each node has two or three neighbours.
_AT = torch.arange(EDGES) * 7 % (NODES * NODES)
INDICES = torch.stack([torch.arange(EDGES) % NODES, (torch.arange(EDGES) * 7 + 3) % 29])

Product = Callable[[Any, torch.Tensor], torch.Tensor]


def adjacency(layout: torch.layout) -> torch.Tensor:
    dense = torch.zeros(NODES * NODES)
    dense[_AT] = 1.0
    return dense.reshape(NODES, NODES).to_sparse(layout=layout)


class Graph(nn.Module):
    """One linear layer, then a product with its matrix or a given one."""

    def __init__(self, product: Product, matrix: torch.Tensor | None = None) -> None:
        super().__init__()
        self.fc = nn.Linear(16, WIDTH, bias=False)
        self.product = product
        self.register_buffer("matrix", matrix)

    def forward(self, x: torch.Tensor, matrix: torch.Tensor | None = None) -> torch.Tensor:
        return self.product(self.matrix if matrix is None else matrix, self.fc(x))


LINEAR = NODES * 16 * WIDTH
PRODUCTS: dict[str, Product] = {
    "torch.sparse.mm": torch.sparse.mm,
    "mm": torch.mm,
    "@": lambda matrix, x: matrix @ x,
    "transposed": lambda matrix, x: matrix.t() @ x,
    "addmm": lambda matrix, x: torch.addmm(x, matrix, x),
    "torch.sparse.addmm": lambda matrix, x: torch.sparse.addmm(x, matrix, x),
    "linear": lambda matrix, x: F.linear(x.t(), matrix),
}


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.parametrize("held", [False, True], ids=["input", "buffer"])
@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
def test_product_costs_its_nonzeros(layout: torch.layout, held: bool, product: Product) -> None:
    matrix, x = adjacency(layout), torch.randn(NODES, 16)
    model = Graph(product, matrix if held else None)
    args = (x,) if held else (x, matrix)
    model(*args)  # torch takes it
    result = trace(model, *args)
    assert result.route == "function"
    assert result.macs == LINEAR + EDGES * WIDTH


@pytest.mark.parametrize(
    ("layout", "indices"),
    [(torch.sparse_coo, 2 * EDGES), (torch.sparse_csr, NODES + 1 + EDGES)],
)
def test_indices_are_read_and_zeros_are_not(layout: torch.layout, indices: int) -> None:
    *_, layer = trace(Graph(torch.mm), torch.randn(NODES, 16), adjacency(layout))
    assert layer.cost.bytes_in == 4 * (EDGES + NODES * WIDTH) + 8 * indices
    assert layer.cost.bytes_out == 4 * NODES * WIDTH


@pytest.mark.parametrize("layout", [torch.sparse_bsr, torch.sparse_bsc])
def test_blocks_cost_the_zeros_in_them_too(layout: torch.layout) -> None:
    dense = torch.zeros(NODES, NODES)
    dense[:6, 9] = 1.0  # two blocks
    matrix = dense.to_sparse(layout=layout, blocksize=(3, 5))
    *_, layer = trace(Graph(torch.mm), torch.randn(NODES, 16), matrix)
    assert layer.macs == 2 * 3 * 5 * WIDTH
    lines = NODES // (3 if layout is torch.sparse_bsr else 5)
    assert layer.cost.bytes_in == 4 * (2 * 15 + NODES * WIDTH) + 8 * (lines + 1 + 2)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_two_sparse_matrices_cost_the_values_that_meet(layout: torch.layout) -> None:
    matrix = adjacency(layout)
    dense = matrix.to_dense()
    *_, layer = trace(Graph(lambda matrix, _: matrix @ matrix), torch.randn(NODES, 16), matrix)
    assert layer.op == "sparse_mm"
    assert layer.macs == int((dense.sum(0) * dense.sum(1)).sum())
    assert layer.outputs[0].numel == int((dense @ dense).count_nonzero())


def test_vector_meets_each_value_once() -> None:
    model = Graph(lambda matrix, x: torch.mv(matrix, x[:, 0]), adjacency(torch.sparse_csr))
    assert trace(model, torch.randn(NODES, 16)).macs == LINEAR + EDGES


def test_matrix_made_of_activations_is_sparse_too() -> None:
    def product(_: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.sparse_coo_tensor(INDICES, x[INDICES[0], 0], (NODES, NODES)) @ x

    result = trace(Graph(product), torch.randn(NODES, 16))
    assert result.route == "forward"
    assert result.macs == LINEAR + EDGES * WIDTH


def test_large_graph_is_no_dense_matrix() -> None:
    """A million nodes: dense, they would be four terabytes."""
    nodes = 1_000_000
    indices = torch.stack([torch.arange(nodes), torch.arange(nodes).flip(0)])
    matrix = torch.sparse_coo_tensor(indices, torch.ones(nodes), (nodes, nodes))
    x = torch.empty(nodes, 16, device="meta")
    with torch.device("meta"):
        model = Graph(torch.mm)
    assert trace(model, x, matrix).macs == nodes * (16 * WIDTH + WIDTH)
    assert predict(model, x, matrix, platform="titanx").runtime_ms < 1000
