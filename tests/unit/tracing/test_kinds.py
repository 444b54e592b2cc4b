"""Each sort of operation becomes the kind, name, tensors and hyper-parameters that it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling
from torch import nn

from pytest_neuralpower.tracing import trace

IMAGE = (2, 4, 8, 8)


class Call(nn.Module):
    """A model of one function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # the real call's
@pytest.mark.parametrize(
    ("module", "shape", "kind", "op", "params"),
    [
        (
            nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), IMAGE, "conv", "conv2d",
            {"stride": (2, 2), "padding": (1, 1), "dilation": (1, 1), "groups": 2,
             "transposed": False},
        ),
        (
            nn.Conv2d(4, 6, 3, padding="same", dilation=2), IMAGE, "conv", "conv2d",
            {"padding": (2, 2), "dilation": (2, 2)},
        ),
        # Two more columns than rows of padding are needed: both sides are told.
        (nn.Conv2d(4, 6, (3, 4), padding="same"), IMAGE, "conv", "conv2d",
         {"padding": (1, 1, 1, 2)}),
        (nn.Conv2d(4, 6, 3, padding="valid"), IMAGE, "conv", "conv2d", {"padding": (0, 0)}),
        (
            nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), IMAGE, "conv",
            "conv_transpose2d", {"transposed": True, "output_padding": (1, 1), "stride": (2, 2)},
        ),
        (nn.Linear(8, 3), IMAGE, "linear", "linear", {}),
        (nn.MaxPool2d(3, 2, 1), IMAGE, "pool", "max_pool2d",
         {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)}),
        (nn.AvgPool2d(2), IMAGE, "pool", "avg_pool2d",
         {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0)}),
        (nn.AdaptiveAvgPool2d(1), IMAGE, "pool", "adaptive_avg_pool2d",
         {"adaptive": True, "kernel": (8, 8)}),
        (nn.AdaptiveMaxPool2d((2, None)), IMAGE, "pool", "adaptive_max_pool2d", {"adaptive": True}),
        (nn.LPPool2d(2, 2), IMAGE, "pool", "lp_pool2d", {"kernel": (2, 2)}),
        (nn.BatchNorm2d(4).eval(), IMAGE, "norm", "batch_norm", {"training": False}),
        (nn.LayerNorm(8), IMAGE, "norm", "layer_norm", {"normalized_shape": (8,)}),
        (nn.GroupNorm(2, 4), IMAGE, "norm", "group_norm", {"groups": 2}),
        (nn.InstanceNorm2d(4), IMAGE, "norm", "instance_norm", {}),
        (nn.RMSNorm(8), IMAGE, "norm", "rms_norm", {"normalized_shape": (8,)}),
        (nn.LocalResponseNorm(2), IMAGE, "norm", "local_response_norm", {"size": 2}),
        (nn.ReLU(inplace=True), IMAGE, "activation", "relu", {}),
        (nn.GELU(), IMAGE, "activation", "gelu", {}),
        (nn.PReLU(), IMAGE, "activation", "prelu", {}),
        (nn.Hardswish(), IMAGE, "activation", "hardswish", {}),
        (nn.Threshold(0.1, 0.0), IMAGE, "activation", "threshold", {}),
        (nn.GLU(1), IMAGE, "activation", "glu", {}),
        (nn.Softmax(-1), IMAGE, "softmax", "softmax", {"dim": 3}),
        (nn.LogSoftmax(1), IMAGE, "softmax", "log_softmax", {"dim": 1}),
        (nn.Upsample(scale_factor=2), IMAGE, "memory", "interpolate", {"mode": "nearest"}),
        (nn.ZeroPad2d(1), IMAGE, "memory", "pad", {"mode": "constant"}),
        (nn.PixelShuffle(2), IMAGE, "memory", "pixel_shuffle", {}),
        (nn.Unfold(3), IMAGE, "memory", "unfold", {}),
        (Call(lambda x: torch.cat([x, x], 1)), IMAGE, "memory", "cat", {"dim": 1}),
        (Call(lambda x: x.transpose(1, 2).contiguous()), IMAGE, "memory", "contiguous", {}),
        (Call(lambda x: x.half()), IMAGE, "memory", "to", {}),
        (Call(lambda x: x[:, torch.tensor([0, 2])]), IMAGE, "memory", "getitem", {}),
        (Call(lambda x: x + 1), IMAGE, "elementwise", "add", {}),
        (Call(lambda x: 2 / x), IMAGE, "elementwise", "div", {}),
        (Call(lambda x: x.clamp(min=0)), IMAGE, "elementwise", "clamp", {}),
        (Call(lambda x: x.mean((2, 3))), IMAGE, "reduction", "mean", {}),
        (Call(lambda x: x.max()), IMAGE, "reduction", "max", {}),
        (Call(lambda x: x.max(axis=1, keepdims=True)[0]), IMAGE, "reduction", "max", {}),
        (Call(lambda x: x @ x), IMAGE, "matmul", "matmul", {}),
        (Call(lambda x: x.topk(2)[0]), IMAGE, "uncovered", "topk", {}),
        (nn.Bilinear(4, 4, 5), (2, 4), "matmul", "bilinear", {"reduced": 16}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)  # fmt: skip
def test_one_operation(
    module: nn.Module, shape: Any, kind: str, op: str, params: dict[str, Any]
) -> None:
    x = torch.randn(*shape)
    args = (x, x) if isinstance(module, nn.Bilinear) else (x,)
    result = trace(module, *args)
    layers = [layer for layer in result if layer.op not in ("tensor", "log")]
    assert [(layer.kind, layer.op) for layer in layers] == [(kind, op)]
    (layer,) = layers
    for name, value in params.items():
        assert layer.param(name) == value
    assert list(layer.params) == sorted(layer.params)
    expected = module(*args)
    assert layer.outputs[0].shape == tuple(expected.shape)
    assert layer.inputs[0].shape == shape or op == "contiguous"
    assert sum(spec.numel for spec in layer.weights) == sum(
        tensor.numel()
        for tensor in (*module.parameters(), *module.buffers())
        if tensor.is_floating_point()
    )
    assert result.fallbacks == ()


def test_views_are_free() -> None:
    def views(x: torch.Tensor) -> torch.Tensor:
        y = x.view(2, -1).unsqueeze(1).expand(2, 3, -1).transpose(0, 1)[0, :, None].squeeze(1)
        first, second = y.chunk(2, dim=-1)
        return first.reshape(2, -1).flatten().T.permute(0).contiguous() if second is None else first

    assert len(trace(Call(views), torch.randn(2, 4, 6))) == 0


def test_flatten_of_a_permuted_tensor_is_a_copy() -> None:
    (layer,) = trace(Call(lambda x: x.transpose(1, 2).flatten(1)), torch.randn(2, 3, 4))
    assert (layer.kind, layer.op) == ("memory", "reshape")


def test_cast_that_changes_nothing_is_free() -> None:
    assert len(trace(Call(lambda x: x.float().to("cpu").contiguous()), torch.randn(2))) == 0


def test_tensor_made_in_forward_is_a_write() -> None:
    result = trace(Call(lambda x: x + torch.zeros(3)), torch.randn(3))
    assert (result[0].op, result[0].inputs) == ("zeros", ())


def test_python_s_own_types_stand_for_dtypes() -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x * torch.ones(3, dtype=int) + torch.zeros(3, dtype=float)

    assert trace(Call(forward), torch.randn(3))[-1].outputs[0] == ((3,), "float64")


def test_parameter_used_directly_is_a_weight() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.ones(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.gamma

    (layer,) = trace(Scale(), torch.randn(2, 4))
    assert (layer.inputs, layer.weights) == (
        (((2, 4), "float32"),), (((4,), "float32"),),
    )  # fmt: skip


def test_large_mask_and_large_integers_are_traced_without_being_made() -> None:
    def causal(x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        length = tokens.shape[1]
        mask = torch.full((length, length), float("-inf")).triu(1)
        return F.softmax(x + mask, dim=-1)

    tokens = torch.ones(1, 3000, dtype=torch.int64)
    result = trace(Call(causal), torch.empty(1, 3000, 3000, device="meta"), tokens)
    assert [layer.op for layer in result] == ["full", "triu", "add", "softmax"]


def test_trace_reads_like_a_sequence() -> None:
    result = trace(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(5, 4))
    assert (len(result), result.route, result.batch, result.model) == (
        2, "function", 5, "Sequential",
    )  # fmt: skip
    assert result[0].path == "0"
    assert result.macs == 60


def _scaled_mm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    one = torch.ones(())
    return torch._scaled_mm(left, right.t(), one, one, out_dtype=torch.bfloat16)


def _functional_scaled_mm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    one, whole = torch.ones(1), F.ScalingType.TensorWise
    return F.scaled_mm(left, right.t(), one, whole, one, whole, output_dtype=torch.bfloat16)


@pytest.mark.parametrize(
    "function",
    [
        _scaled_mm,
        pytest.param(
            _functional_scaled_mm,
            marks=pytest.mark.skipif(not hasattr(F, "scaled_mm"), reason="this torch has none"),
        ),
    ],
)
def test_a_scaled_product_is_computed_in_8_bits(function: Any) -> None:
    operands = [torch.empty(shape, device="meta") for shape in ((64, 32), (16, 32))]
    left, right = (each.to(torch.float8_e4m3fn) for each in operands)
    layer = trace(Call(function), left, right).layers[-1]
    assert (layer.kind, layer.op, layer.dtype) == ("matmul", "scaled_mm", "float8_e4m3fn")
    assert [(each.shape, each.dtype) for each in (*layer.inputs, *layer.outputs)] == [
        ((64, 32), "float8_e4m3fn"), ((32, 16), "float8_e4m3fn"), ((64, 16), "bfloat16"),
    ]  # fmt: skip
