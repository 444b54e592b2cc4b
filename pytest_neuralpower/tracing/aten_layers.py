"""Layers of the ATen operations whose configuration matters: products, convolutions, pooling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_neuralpower.layers import TensorSpec
from pytest_neuralpower.tracing.fallbacks import tensors_in
from pytest_neuralpower.tracing.rules.conv import full

if TYPE_CHECKING:
    from pytest_neuralpower.tracing.recorder import Recorder

__all__ = ["LISTERS", "AtenCall"]


class AtenCall(NamedTuple):
    """One ATen operation that has run: its name, what went in and what came out."""

    name: str
    args: tuple[Any, ...]
    result: Any
    is_weight: Callable[[Any], bool]


def _convolution(recorder: Recorder, call: AtenCall) -> None:
    data, weight, bias, stride, padding, dilation, transposed, extra, groups = call.args[:9]
    dims = weight.ndim - 2
    params: list[tuple[str, Any]] = [
        ("dilation", full(dilation, dims)),
        ("groups", groups),
        ("padding", full(padding, dims)),
        ("stride", full(stride, dims)),
        ("transposed", transposed),
    ]
    if transposed:
        params.insert(2, ("output_padding", full(extra, dims)))
    op = f"conv_transpose{dims}d" if transposed else f"conv{dims}d"
    spec = recorder.spec
    weights = [spec(tensor) for tensor in (weight, bias) if tensor is not None]
    recorder.add("conv", op, [spec(data)], weights, [spec(call.result)], tuple(params))


def _product(recorder: Recorder, call: AtenCall) -> None:
    """``mm``, ``addmm``, ``bmm``, ``baddbmm``; by a weight's transpose, a linear layer."""
    added = call.name in ("addmm", "baddbmm")
    left, right = call.args[1:3] if added else call.args[:2]
    spec = recorder.spec
    outputs = [spec(call.result)]
    if call.is_weight(right) and right.ndim == 2:
        inner, outer = right.shape
        weights = [TensorSpec((outer, inner), spec(right).dtype)]
        if added:
            weights.append(spec(call.args[0]))
        recorder.add("linear", "linear", [spec(left)], weights, outputs)
        return
    inputs = [spec(left), spec(right)] + ([spec(call.args[0])] if added else [])
    recorder.add("matmul", call.name, inputs, (), outputs)


def _attention(recorder: Recorder, call: AtenCall) -> None:
    result = call.result
    output = result[0] if isinstance(result, (tuple, list)) else result
    inputs = [recorder.spec(tensor) for tensor in call.args[:3]]
    op = "scaled_dot_product_attention"
    recorder.add("attention", op, inputs, (), [recorder.spec(output)])


def _pooling(recorder: Recorder, call: AtenCall) -> None:
    op = call.name.removesuffix("_with_indices").lstrip("_")
    args = call.args
    dims = int(op[-2])
    params: tuple[tuple[str, Any], ...] = (("adaptive", True),)
    if "adaptive" not in op:
        kernel = full(args[1], dims)
        stride = full(args[2], dims) if len(args) > 2 and args[2] else kernel
        padding = full(args[3], dims) if len(args) > 3 else (0,) * dims
        params = (("kernel", kernel), ("padding", padding), ("stride", stride))
    outputs = [recorder.spec(tensor) for tensor in tensors_in(call.result)]
    recorder.add("pool", op, [recorder.spec(args[0])], (), outputs, params)


def _embedding(recorder: Recorder, call: AtenCall) -> None:
    weight, indices = call.args[:2]
    spec = recorder.spec
    recorder.add("embedding", "embedding", [spec(indices)], [spec(weight)], [spec(call.result)])


def _recurrent(recorder: Recorder, call: AtenCall) -> None:
    """oneDNN's fused LSTM: its layers and directions come one at a time."""
    data, weight = call.args[:2]
    spec = recorder.spec
    recorder.add(
        "rnn",
        "lstm",
        [spec(data)],
        [spec(tensor) for tensor in call.args[1:5]],
        [spec(tensors_in(call.result)[0])],
        (
            ("bidirectional", False),
            ("hidden_size", weight.shape[0] // 4),
            ("mode", "LSTM"),
            ("num_layers", 1),
            ("steps", math.prod(data.shape[:-1])),
        ),
    )


LISTERS: Final[dict[str, Callable[[Recorder, AtenCall], None]]] = {
    "convolution": _convolution,
    "_convolution": _convolution,
    "convolution_overrideable": _convolution,
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm"), _product),
    **dict.fromkeys(
        ("_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
         "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_cudnn_attention",
         "_scaled_dot_product_fused_attention_overrideable", "scaled_dot_product_attention"),
        _attention,
    ),
    **dict.fromkeys(
        ("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d",
         "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "max_pool2d",
         "adaptive_max_pool3d", "avg_pool1d", "max_pool1d", "adaptive_avg_pool1d", "max_pool3d",
         "adaptive_max_pool1d"),
        _pooling,
    ),
    "embedding": _embedding,
    "mkldnn_rnn_layer": _recurrent,
}  # fmt: skip
