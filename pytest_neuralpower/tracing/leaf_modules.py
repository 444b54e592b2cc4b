"""Plain leaf modules of torch: what their forward would call, called directly.

Only for modules of exactly these types, without hooks and with their own forward: a subclass or
a hook may do anything.
"""

# ruff: noqa: A002, ARG001
# A leaf takes what its module is called with, by the name that torch gives it.

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from torch import nn

from pytest_neuralpower.tracing.rules import (
    conv,
    elementwise,
    embedding,
    linear,
    memory,
    norm,
    pooling,
    reduction,
)
from pytest_neuralpower.tracing.signals import NoRule

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from pytest_neuralpower.tracing.recorder import Recorder

__all__ = ["LEAVES"]


def _convolution(op: str) -> Callable[[Recorder, Any, Tensor], Any]:
    def leaf(recorder: Recorder, module: Any, input: Tensor) -> Tensor:
        if module.padding_mode != "zeros":
            raise NoRule
        own = module._parameters
        return conv.conv(
            recorder, op, input, own["weight"], own["bias"],
            module.stride, module.padding, module.dilation, module.groups,
        )  # fmt: skip

    return leaf


def _transposed(op: str) -> Callable[[Recorder, Any, Tensor], Any]:
    def leaf(recorder: Recorder, module: Any, input: Tensor) -> Tensor:
        own = module._parameters
        return conv.conv_transpose(
            recorder, op, input, own["weight"], own["bias"], module.stride, module.padding,
            module.output_padding, module.groups, module.dilation,
        )  # fmt: skip

    return leaf


def _linear(recorder: Recorder, module: Any, input: Tensor) -> Any:
    own = module._parameters
    return linear.linear(recorder, input, own["weight"], own["bias"])


def _batch_norm(dims: tuple[int, ...]) -> Callable[[Recorder, Any, Tensor], Any]:
    def leaf(recorder: Recorder, module: Any, input: Tensor) -> Any:
        if input.ndim not in dims:
            raise NoRule
        own, buffers = module._parameters, module._buffers
        mean, variance = buffers.get("running_mean"), buffers.get("running_var")
        training = module.training or mean is None
        return norm.batch_norm(
            recorder, input, mean, variance, own["weight"], own["bias"], training
        )

    return leaf


def _layer_norm(recorder: Recorder, module: Any, input: Tensor) -> Any:
    own = module._parameters
    return norm.layer_norm(recorder, input, module.normalized_shape, own["weight"], own["bias"])


def _group_norm(recorder: Recorder, module: Any, input: Tensor) -> Any:
    own = module._parameters
    return norm.group_norm(recorder, input, module.num_groups, own["weight"], own["bias"])


def _embedding(recorder: Recorder, module: Any, input: Tensor) -> Any:
    if module.max_norm is not None:
        raise NoRule
    return embedding.embedding(recorder, input, module._parameters["weight"])


def _max_pool(dims: int) -> Callable[[Recorder, Any, Tensor], Any]:
    op = f"max_pool{dims}d"

    def leaf(recorder: Recorder, module: Any, input: Tensor) -> Any:
        return pooling.pool(
            recorder, op, dims, input, module.kernel_size, module.stride, module.padding,
            module.dilation, module.ceil_mode, module.return_indices,
        )  # fmt: skip

    return leaf


def _avg_pool(dims: int) -> Callable[[Recorder, Any, Tensor], Any]:
    op = f"avg_pool{dims}d"

    def leaf(recorder: Recorder, module: Any, input: Tensor) -> Any:
        return pooling.pool(
            recorder, op, dims, input, module.kernel_size, module.stride, module.padding, 1,
            module.ceil_mode,
        )  # fmt: skip

    return leaf


def _adaptive_avg_pool(dims: int) -> Callable[[Recorder, Any, Tensor], Any]:
    op = f"adaptive_avg_pool{dims}d"

    def leaf(recorder: Recorder, module: Any, input: Tensor) -> Any:
        return pooling.adaptive_pool(recorder, op, dims, input, module.output_size)

    return leaf


def _activation(op: str) -> Callable[[Recorder, Any, Tensor], Any]:
    def leaf(recorder: Recorder, module: Any, input: Tensor) -> Any:
        return elementwise.activation(recorder, op, input, module.__dict__.get("inplace", False))

    return leaf


def _softmax(recorder: Recorder, module: Any, input: Tensor) -> Any:
    if module.dim is None:
        raise NoRule  # torch picks a dimension and warns
    return reduction.softmax(recorder, "softmax", input, module.dim)


def _dropout(recorder: Recorder, module: Any, input: Tensor) -> Any:
    if module.training:
        raise NoRule
    return input


def _identity(recorder: Recorder, module: Any, input: Tensor) -> Any:
    return input


def _flatten(recorder: Recorder, module: Any, input: Tensor) -> Any:
    return memory.flatten(recorder, input, module.start_dim, module.end_dim)


LEAVES: Final[dict[type, Callable[[Recorder, Any, Tensor], Any]]] = {
    nn.Conv1d: _convolution("conv1d"),
    nn.Conv2d: _convolution("conv2d"),
    nn.Conv3d: _convolution("conv3d"),
    nn.ConvTranspose1d: _transposed("conv_transpose1d"),
    nn.ConvTranspose2d: _transposed("conv_transpose2d"),
    nn.ConvTranspose3d: _transposed("conv_transpose3d"),
    nn.Linear: _linear,
    nn.BatchNorm1d: _batch_norm((2, 3)),
    nn.BatchNorm2d: _batch_norm((4,)),
    nn.BatchNorm3d: _batch_norm((5,)),
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.Embedding: _embedding,
    nn.MaxPool1d: _max_pool(1),
    nn.MaxPool2d: _max_pool(2),
    nn.MaxPool3d: _max_pool(3),
    nn.AvgPool1d: _avg_pool(1),
    nn.AvgPool2d: _avg_pool(2),
    nn.AvgPool3d: _avg_pool(3),
    nn.AdaptiveAvgPool1d: _adaptive_avg_pool(1),
    nn.AdaptiveAvgPool2d: _adaptive_avg_pool(2),
    nn.AdaptiveAvgPool3d: _adaptive_avg_pool(3),
    nn.ReLU: _activation("relu"),
    nn.ReLU6: _activation("relu6"),
    nn.LeakyReLU: _activation("leaky_relu"),
    nn.ELU: _activation("elu"),
    nn.SELU: _activation("selu"),
    nn.GELU: _activation("gelu"),
    nn.SiLU: _activation("silu"),
    nn.Mish: _activation("mish"),
    nn.Hardswish: _activation("hardswish"),
    nn.Hardsigmoid: _activation("hardsigmoid"),
    nn.Hardtanh: _activation("hardtanh"),
    nn.Sigmoid: _activation("sigmoid"),
    nn.Tanh: _activation("tanh"),
    nn.Softplus: _activation("softplus"),
    nn.Softmax: _softmax,
    nn.Dropout: _dropout,
    nn.Dropout1d: _dropout,
    nn.Dropout2d: _dropout,
    nn.Dropout3d: _dropout,
    nn.AlphaDropout: _dropout,
    nn.Identity: _identity,
    nn.Flatten: _flatten,
}
