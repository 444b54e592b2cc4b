"""The whole numbers of a layer as one tuple, and a layer with other numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_neuralpower.layers import Layer, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["form", "read_sizes", "write_sizes"]


def _is_size(value: Any) -> bool:
    return type(value) is int  # a bool is no size


def _is_sizes(value: Any) -> bool:
    return type(value) is tuple and all(type(each) is int for each in value)


def read_sizes(layer: Layer) -> tuple[int, ...]:
    """Every dimension of every tensor and every whole number among the hyper-parameters."""
    sizes: list[int] = []
    for tensors in (layer.inputs, layer.weights, layer.outputs):
        for tensor in tensors:
            sizes += tensor.shape
    for _, value in layer.params:
        if _is_size(value):
            sizes.append(value)  # type: ignore[arg-type]
        elif _is_sizes(value):
            sizes += value  # type: ignore[arg-type]
    return tuple(sizes)


def write_sizes(layer: Layer, sizes: tuple[int, ...]) -> Layer:
    """``layer`` with other numbers, in the order of :func:`read_sizes`."""
    left = iter(sizes)
    return Layer(
        layer.kind,
        layer.op,
        layer.path,
        _tensors(layer.inputs, left),
        _tensors(layer.weights, left),
        _tensors(layer.outputs, left),
        layer.dtype,
        tuple((name, _param(value, left)) for name, value in layer.params),
    )


def _tensors(tensors: tuple[TensorSpec, ...], left: Iterator[int]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(tuple([next(left) for _ in tensor.shape]), tensor.dtype) for tensor in tensors
    )


def _param(value: Any, left: Iterator[int]) -> Any:
    if _is_size(value):
        return next(left)
    if _is_sizes(value):
        return tuple([next(left) for _ in value])
    return value


def form(layer: Layer) -> Layer:
    """What layers that differ in sizes alone have in common: the layer with every size 0."""
    return write_sizes(layer, (0,) * len(read_sizes(layer)))
