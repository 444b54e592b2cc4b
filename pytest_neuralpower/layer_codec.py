"""One layer as plain data: what a line of a baseline and a layer of a JSON report hold.

    {"path": "layer1.0.conv1", "op": "conv2d", "kind": "conv", "dtype": "float32",
     "in": ["1x64x56x56"], "weights": ["64x64x1x1"], "out": ["1x64x56x56"],
     "params": {"stride": [1, 1]}, "runtime_ms": 0.0421, "power_w": 198.2, "energy_mj": 8.35}

A tensor is its sizes, and its dtype where that is not the layer's: ``8x128:int64``; one without
axes is ``scalar``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeVar

from pytest_neuralpower.layers import ITEMSIZE, KINDS, Layer, Params, TensorSpec
from pytest_neuralpower.platform.prediction import LayerPrediction

__all__ = ["PricedLayer", "flow", "layer_texts", "priced_layer", "rounded"]

_SCALAR: Final = "scalar"
_TEXTS: Final = ("path", "op", "kind", "dtype")
_TENSORS: Final = ("in", "weights", "out")

#: A path that is written in quotes as it is.
_PLAIN: Final = re.compile(r"[\w.]*", re.ASCII)

#: Significant digits of a stored value: fewer than differ from one machine to another.
_DIGITS: Final = 6


class PricedLayer(NamedTuple):
    """A layer with what it was predicted to cost; None is what its platform does not know."""

    layer: Layer
    runtime_ms: float | None
    power_w: float | None
    energy_mj: float | None


#: A layer with its costs, and perhaps more.
Priced = TypeVar("Priced", PricedLayer, LayerPrediction)


def layer_texts(items: Iterable[Priced], more: Callable[[Priced], str] | None = None) -> list[str]:
    """Each layer as JSON that is YAML 1.1 too, values to six significant digits.

    Parameters
    ----------
    items
        Layers with what they cost.
    more
        Writes further fields of a layer, each with a comma before it. What has the same
        configuration and costs the same is written once: models repeat their blocks.
    """
    known: dict[object, str] = {}
    texts = []
    for item in items:
        key = item.layer.configuration, item.runtime_ms, item.power_w, item.energy_mj
        fields = known.get(key)
        if fields is None:
            fields = known[key] = _fields_text(item) + (more(item) if more else "")
        path = item.layer.path
        shown = f'"{path}"' if _PLAIN.fullmatch(path) else flow(path)
        texts.append(f'{{"path": {shown}, {fields}}}')
    return texts


def _fields_text(item: Priced) -> str:
    """All of a layer but its path, without braces."""
    layer = item.layer
    configuration = {
        "op": layer.op,
        "kind": layer.kind,
        "dtype": layer.dtype,
        "in": [_tensor_text(each, layer.dtype) for each in layer.inputs],
        "weights": [_tensor_text(each, layer.dtype) for each in layer.weights],
        "out": [_tensor_text(each, layer.dtype) for each in layer.outputs],
        "params": {name: _plain(value) for name, value in layer.params},
    }
    # What YAML reads otherwise is in few parameters: the rest is written at once.
    simple = all(type(value) in (int, bool, tuple) for _, value in layer.params)
    written = json.dumps(configuration) if simple else flow(configuration)
    costs = [
        "null" if value is None else flow(rounded(value))
        for value in (item.runtime_ms, item.power_w, item.energy_mj)
    ]
    return (
        f'{written[1:-1]}, "runtime_ms": {costs[0]}, "power_w": {costs[1]}, "energy_mj": {costs[2]}'
    )


def flow(value: Any) -> str:
    """JSON that is YAML 1.1 too: its floats need a point."""
    if isinstance(value, float):
        text = repr(value)
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(key)}: {flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    if value is None:
        return "null"
    # YAML takes no control characters as they are.
    return json.dumps(value, ensure_ascii=isinstance(value, str) and not value.isprintable())


def rounded(value: float | None) -> float | None:
    """A value as it is stored."""
    return None if value is None else float(f"{value:.{_DIGITS}g}")


def _tensor_text(tensor: TensorSpec, dtype: str) -> str:
    sizes = "x".join(map(str, tensor.shape)) or _SCALAR
    return sizes if tensor.dtype == dtype else f"{sizes}:{tensor.dtype}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def priced_layer(data: Mapping[str, Any]) -> PricedLayer:
    """The layer that :func:`record` described; fields that it does not know are passed over.

    Raises
    ------
    ValueError
        A field is missing or is none of a layer's; the message names it.
    """
    try:
        path, op, kind, dtype = (data[name] for name in _TEXTS)
        given, weights, made = (data[name] for name in _TENSORS)
        params = data["params"]
        runtime_ms, power_w, energy_mj = data["runtime_ms"], data["power_w"], data["energy_mj"]
    except KeyError as error:
        raise ValueError(f"a layer needs the field {error.args[0]!r}") from None
    except TypeError:
        raise ValueError(f"a layer must be a mapping, not {data!r}") from None
    for name, value in zip(_TEXTS, (path, op, kind, dtype), strict=True):
        if type(value) is not str:
            raise ValueError(f"{name} must be a string, not {value!r}")
    if kind not in KINDS:
        raise ValueError(f"unknown kind of layer {kind!r}; allowed: {', '.join(KINDS)}")
    for name, number in (
        ("runtime_ms", runtime_ms),
        ("power_w", power_w),
        ("energy_mj", energy_mj),
    ):
        if number is not None and not _is_cost(number):
            raise ValueError(f"{name} must be a number from 0, not {number!r}")
    if runtime_ms is None and energy_mj is None:
        raise ValueError("a layer needs a runtime_ms or an energy_mj")
    layer = Layer(
        kind, op, path, _tensors("in", given, dtype), _tensors("weights", weights, dtype),
        _tensors("out", made, dtype), dtype, _params(params),
    )  # fmt: skip
    return PricedLayer(layer, runtime_ms, power_w, energy_mj)


def _is_cost(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < float("inf")


def _tensors(name: str, texts: Sequence[str], dtype: str) -> tuple[TensorSpec, ...]:
    if type(texts) is not list:
        raise ValueError(f"{name} must be a list of shapes, not {texts!r}")
    return tuple([_tensor(text, dtype) for text in texts])


@lru_cache(maxsize=4096)  # a model has few different shapes
def _tensor(text: str, dtype: str) -> TensorSpec:
    try:
        sizes, _, own = text.partition(":")
        shape = () if sizes == _SCALAR else tuple(map(int, sizes.split("x")))
        if min(shape, default=0) < 0 or (own or dtype) not in ITEMSIZE:
            raise ValueError(text)
    except (ValueError, AttributeError):
        raise ValueError(f"{text!r} is no tensor: write 1x64x56x56 or 8x128:int64") from None
    return TensorSpec(shape, own or dtype)


def _params(data: Mapping[str, Any]) -> Params:
    try:
        return tuple(sorted((name, tuple(v) if type(v) is list else v) for name, v in data.items()))
    except (AttributeError, TypeError):
        raise ValueError(f"params must be names with values, not {data!r}") from None
