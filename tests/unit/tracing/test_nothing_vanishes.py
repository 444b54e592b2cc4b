"""Operations without a shape rule, transforms, and graphs of ATen calls: all leave their layers."""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling
from torch import nn
from torch.autograd import forward_ad
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    stack_module_state,
    vjp,
    vmap,
)

from pytest_neuralpower.errors import TraceError
from pytest_neuralpower.tracing import trace

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Trace

#: Torch warns of its own code when it differentiates forward or decomposes.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script:DeprecationWarning", "ignore:.*LeafSpec:FutureWarning"
)


class Around(nn.Module):
    """A small network, and a function that is given it."""

    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.function = forward
        self.net = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


class ReadsAValue(Around):
    """Takes the forward route."""

    def forward(self, *args: Any) -> Any:
        if args[0].sum().item() > 1e9:
            return args[0]
        return self.function(self, *args)


def floats(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


def by_every_route(forward: Any, *args: torch.Tensor) -> tuple[Trace, Trace]:
    fast, real = trace(Around(forward), *args), trace(ReadsAValue(forward), *args)
    assert real.route == "forward"
    return fast, real


# --- operations without a shape rule --------------------------------------------------------


@pytest.mark.parametrize(
    ("forward", "args", "macs"),
    [
        (
            lambda _, a, b, c: torch.linalg.multi_dot([a, b, c]),
            (floats(8, 16), floats(16, 4), floats(4, 32)),
            8 * 16 * 4 + 8 * 4 * 32,
        ),
        (
            lambda _, a, b, c: torch.chain_matmul(a, b, c),
            (floats(8, 16), floats(16, 4), floats(4, 32)),
            8 * 16 * 4 + 8 * 4 * 32,
        ),
        (
            lambda _, a, b, c: torch.einsum("bi,ir,ro->bo", a, b, c),
            (floats(8, 16), floats(16, 4), floats(4, 32)),
            8 * 16 * 4 + 8 * 4 * 32,
        ),
        (lambda _, a, b: torch.inner(a, b), (floats(3, 8, 16), floats(4, 16)), 3 * 8 * 4 * 16),
        (
            lambda _, a, b: torch.linalg.matmul(a, b),
            (floats(2, 4, 5), floats(5, 6)),
            2 * 4 * 5 * 6,
        ),
        (
            lambda _, a, b: torch.mm(a, b, out=torch.empty(4, 6)),
            (floats(4, 5), floats(5, 6)),
            4 * 5 * 6,
        ),
        (
            lambda _, a, b, c: torch.addbmm(a, b, c),
            (floats(4, 6), floats(3, 4, 5), floats(3, 5, 6)),
            3 * 4 * 5 * 6,
        ),
        (lambda _, a, b, c: torch.addmv(a, b, c), (floats(4), floats(4, 5), floats(5)), 20),
        # Torch appends both norms to the features, and multiplies.
        (lambda _, a, b: torch.cdist(a, b), (floats(100, 16), floats(40, 16)), 100 * 40 * 18),
    ],
    ids=["multi_dot", "chain", "einsum", "inner", "matmul", "out", "addbmm", "addmv", "cdist"],
)
def test_products_by_another_name_count(
    forward: Any, args: tuple[torch.Tensor, ...], macs: int
) -> None:
    for traced in by_every_route(forward, *args):
        assert traced.macs == macs
        assert all(layer.covered for layer in traced)


@pytest.mark.parametrize(
    ("forward", "args", "op"),
    [
        (lambda _, a, b: torch.cdist(a, b, p=1.0), (floats(9, 4), floats(8, 4)), "cdist"),
        (
            lambda _, a, b: torch.linalg.tensorsolve(a, b),
            (torch.eye(24).reshape(6, 4, 24), floats(6, 4)),
            "linalg_tensorsolve",
        ),
        (lambda _, a: torch.linalg.svdvals(a), (floats(4, 4),), "linalg_svdvals"),
    ],
    ids=["cdist", "tensorsolve", "svdvals"],
)
def test_what_has_no_formula_is_listed(
    forward: Any, args: tuple[torch.Tensor, ...], op: str
) -> None:
    for traced in by_every_route(forward, *args):
        assert [layer.op for layer in traced if not layer.covered] == [op]


@pytest.mark.parametrize(
    "forward",
    [
        lambda _, a: a.squeeze_(0),
        lambda _, a: a.__getitem__(...),
        lambda _, a: torch.Tensor.swapaxes(a, 0, 1),
        lambda _, a: torch.ops.aten.alias(a),
    ],
    ids=["squeeze", "ellipsis", "swapaxes", "alias"],
)
def test_what_lies_in_its_arguments_memory_is_free(forward: Any) -> None:
    assert not len(trace(Around(forward), floats(1, 4)))


@pytest.mark.parametrize(
    ("forward", "shape", "points", "rows"),
    [
        (lambda _, x: torch.fft.rfft(x), (3, 1024), 1024, 3),
        (lambda _, x: torch.fft.irfft(torch.complex(x, x), n=1024), (3, 513), 1024, 3),
        (lambda _, x: torch.fft.fft2(x), (3, 16, 32), 512, 3),
        # Windows of 64 samples, 16 apart, the signal padded by half a window at either end.
        (
            lambda _, x: torch.stft(x, 64, window=torch.ones(64), return_complex=True),
            (2, 1024),
            64,
            2 * 65,
        ),
    ],
    ids=["rfft", "irfft", "fft2", "stft"],
)
def test_fourier_transforms_cost_5_n_log_n(
    forward: Any, shape: tuple[int, ...], points: int, rows: int
) -> None:
    for traced in by_every_route(forward, floats(*shape)):
        (transform,) = [layer for layer in traced if layer.op.startswith("fft_")]
        assert transform.covered
        assert transform.cost.flops == 5 * rows * points * math.log2(points)


def test_ravel_copies_what_has_gaps() -> None:
    """The catalogue's find: every second element could be a view, and is a copy."""
    traced = trace(Around(lambda _, x: x[:, ::2].ravel()), floats(4, 8))
    assert [layer.op for layer in traced] == ["contiguous"]


def test_mesh_of_an_activation_and_a_constant_is_free() -> None:
    traced = trace(Around(lambda _, x: torch.meshgrid(x, torch.ones(3), indexing="ij")), floats(4))
    assert [layer.op for layer in traced] == ["ones"]


def test_results_of_unknown_size_are_listed() -> None:
    traced = trace(Around(lambda _, x: x[x > 0].sum() + torch.nonzero(x).sum()), floats(4, 4))
    assert traced.route == "forward"
    assert "nonzero" in [layer.op for layer in traced]


# --- transforms -----------------------------------------------------------------------------

#: Multiply-accumulates of the network for one row.
ONE = 16 * 32 + 32 * 4


def _tangent(self: Around, x: torch.Tensor) -> torch.Tensor:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        return forward_ad.unpack_dual(self.net(dual)).tangent


def _ensemble(self: Around, x: torch.Tensor) -> torch.Tensor:
    parameters, buffers = stack_module_state([self.net, self.net, self.net])
    return vmap(lambda p, b: functional_call(self.net, (p, b), (x,)))(parameters, buffers)


def _per_sample(self: Around, x: torch.Tensor) -> Any:
    def loss(parameters: Any, row: torch.Tensor) -> torch.Tensor:
        return functional_call(self.net, parameters, (row,)).sum()

    return vmap(grad(loss), (None, 0))(dict(self.net.named_parameters()), x)


@pytest.mark.parametrize(
    ("forward", "shape", "macs"),
    [
        (lambda self, x: vmap(self.net)(x), (5, 16), 5 * ONE),
        (lambda self, x: vmap(vmap(self.net))(x), (5, 3, 16), 15 * ONE),
        (lambda self, x: vmap(self.conv)(x), (5, 3, 8, 8), 5 * 64 * 8 * 27),
        (_ensemble, (5, 16), 3 * 5 * ONE),
        (
            lambda self, x: functional_call(self.net, {"0.bias": torch.zeros(32)}, (x,)),
            (5, 16),
            5 * ONE,
        ),
        # Backward to the input repeats the forward's products; the first layer's are left out
        # where the parameters' gradients are wanted instead, which cost the same again.
        (lambda self, x: grad(lambda z: self.net(z).sum())(x), (5, 16), 2 * 5 * ONE),
        (lambda self, x: grad(lambda z: self.conv(z).sum())(x), (2, 3, 8, 8), 4 * 64 * 8 * 27),
        (_per_sample, (5, 16), 5 * (2 * ONE + 32 * 4)),
        (lambda self, x: vjp(self.net, x)[1](torch.ones(5, 4))[0], (5, 16), 2 * 5 * ONE),
        (lambda self, x: jacrev(self.net)(x), (16,), (1 + 4) * ONE),
        # Tangents of one input are the columns of the first weight: 16 of them pass.
        (lambda self, x: jacfwd(self.net)(x), (16,), (1 + 16 + 1) * ONE),
        (lambda self, x: jvp(self.net, (x,), (torch.ones_like(x),))[1], (5, 16), 3 * 5 * ONE),
        (_tangent, (5, 16), 3 * 5 * ONE),
        (lambda self, x: torch.autograd.functional.jacobian(self.net, x), (16,), (1 + 4) * ONE),
    ],
    ids=[
        "vmap", "vmap twice", "vmap of conv", "ensemble", "functional_call", "grad",
        "grad of conv", "per sample", "vjp", "jacrev", "jacfwd", "jvp", "dual", "jacobian",
    ],
)  # fmt: skip
def test_transforms_count_every_lane_and_derivative(
    forward: Any, shape: tuple[int, ...], macs: int
) -> None:
    for traced in by_every_route(forward, floats(*shape)):
        assert traced.macs == macs


def test_second_derivatives_cost_more_than_first_ones() -> None:
    first, second = (
        trace(Around(lambda self, x, by=by: by(lambda z: self.net(z).sum())(x)), floats(16))
        for by in (grad, hessian)
    )
    assert second.macs > 16 * first.macs / 2


def test_convolution_backward_costs_as_torch_counts_it() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    def gradients(self: Around, x: torch.Tensor) -> Any:
        return torch.autograd.grad(self.conv(x).sum(), [x, *self.conv.parameters()])

    given = floats(2, 3, 8, 8).requires_grad_()
    with FlopCounterMode(mods=None, display=False) as counter:
        gradients(Around(gradients), given * 1)
    assert trace(Around(gradients), given).macs == counter.get_total_flops() // 2


# --- graphs of ATen calls -------------------------------------------------------------------


class Mixed(nn.Module):
    """Convolution, norms, pooling, attention and a look-up."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.table = nn.Embedding(10, 16)
        self.scale = nn.LayerNorm(16)
        self.project = nn.Linear(16, 48)

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> Any:
        y = F.adaptive_avg_pool2d(F.max_pool2d(F.relu(self.norm(self.conv(x))), 2), 1)
        query, key, value = self.project(self.scale(self.table(tokens)))[:, None].chunk(3, -1)
        z = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return torch.cat([y.flatten(1), F.gelu(z).mean((1, 2))], 1).softmax(-1)


@pytest.fixture(scope="module")
def exported() -> tuple[nn.Module, Any, tuple[torch.Tensor, ...]]:
    model = Mixed().eval()
    args = (floats(2, 3, 16, 16), torch.randint(0, 9, (2, 5)))
    return model, torch.export.export(model, args), args


def test_exported_program_has_the_layers_of_its_source(exported: Any) -> None:
    model, program, args = exported
    source, graph = trace(model, *args), trace(program.module(), *args)
    assert graph.route == "function"
    assert [layer.configuration for layer in graph] == [layer.configuration for layer in source]
    assert not graph.fallbacks


def test_decomposed_program_counts_as_its_source(exported: Any) -> None:
    model, program, args = exported
    graph = trace(program.run_decompositions().module(), *args)
    assert graph.macs == trace(model, *args).macs
    assert all(layer.covered for layer in graph)


def test_decomposed_program_keeps_its_linear_layers() -> None:
    """Also those of a transposed input, which it spells as a batched product."""
    model, x = nn.TransformerEncoderLayer(32, 4, 64).eval(), floats(10, 2, 32)
    program = torch.export.export(model, (x,)).run_decompositions()
    source, graph = (
        sum(layer.macs for layer in trace(one, x) if layer.kind == "linear")
        for one in (model, program.module())
    )
    assert graph == source


class Quantised(nn.Module):
    """As torch's own quantisation of exported graphs writes a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(32, 16, dtype=torch.int8))
        self.register_buffer("scales", torch.ones(32))
        self.register_buffer("zeros", torch.zeros(32, dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ops = torch.ops.quantized_decomposed
        x = ops.quantize_per_tensor.default(x, 0.1, 0, -128, 127, torch.int8)
        x = ops.dequantize_per_tensor.default(x, 0.1, 0, -128, 127, torch.int8)
        of_each = (self.weight, self.scales, self.zeros, 0, -127, 127, torch.int8)
        return F.linear(x, ops.dequantize_per_channel.default(*of_each))


@pytest.mark.parametrize("exported", [False, True])
def test_quantised_graph_is_listed_as_it_is_written(exported: bool) -> None:
    importlib.import_module("torch.ao.quantization.fx._decomposed")  # it registers them
    model, x = Quantised().eval(), floats(8, 16)
    traced = trace(torch.export.export(model, (x,)).module() if exported else model, x)
    assert traced.route == "function"
    assert not traced.fallbacks
    assert {(layer.kind, layer.op, layer.dtype) for layer in traced} == {
        ("elementwise", "quantize_per_tensor", "int8"),
        ("elementwise", "dequantize_per_tensor", "float32"),
        ("elementwise", "dequantize_per_channel", "float32"),
        ("linear", "linear", "float32"),
    }
    (note,) = traced.notes
    assert "a backend may compute in 8 bits" in note


def test_program_itself_is_no_module(exported: Any) -> None:
    _, program, args = exported
    with pytest.raises(TraceError, match=r"got ExportedProgram: pass its module\(\)"):
        trace(program, *args)


def test_aten_calls_written_by_hand_count() -> None:
    def forward(self: Around, x: torch.Tensor) -> torch.Tensor:
        linear = self.net[0]
        x = torch.ops.aten.addmm(linear.bias, x, linear.weight.t())
        return torch.ops.aten.linear.default(x, self.net[2].weight)

    for traced in by_every_route(forward, floats(5, 16)):
        assert traced.macs == 5 * ONE
