"""The whole numbers of a layer as one tuple, and a layer with other numbers."""

from __future__ import annotations

from typing import Any

from pytest_neuralpower.layers import Layer, Params, ParamValue, TensorSpec

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
    inputs, done = _tensors(layer.inputs, sizes, 0)
    weights, done = _tensors(layer.weights, sizes, done)
    outputs, done = _tensors(layer.outputs, sizes, done)
    params = layer.params
    if done < len(sizes):
        params = _params(params, sizes, done)
    return Layer(layer.kind, layer.op, layer.path, inputs, weights, outputs, layer.dtype, params)


def _tensors(
    tensors: tuple[TensorSpec, ...], sizes: tuple[int, ...], done: int
) -> tuple[tuple[TensorSpec, ...], int]:
    """The tensors with the sizes from place ``done`` on, and the place after them."""
    found = []
    for shape, dtype in tensors:
        end = done + len(shape)
        found.append(TensorSpec(sizes[done:end], dtype))
        done = end
    return tuple(found), done


def _params(params: Params, sizes: tuple[int, ...], done: int) -> Params:
    found: list[tuple[str, ParamValue]] = []
    for name, value in params:
        if _is_size(value):
            found.append((name, sizes[done]))
            done += 1
        elif _is_sizes(value):
            end = done + len(value)  # type: ignore[arg-type]
            found.append((name, sizes[done:end]))
            done = end
        else:
            found.append((name, value))
    return tuple(found)


def form(layer: Layer) -> Layer:
    """What layers that differ in sizes alone have in common: the layer with every size 0."""
    return write_sizes(layer, (0,) * len(read_sizes(layer)))
