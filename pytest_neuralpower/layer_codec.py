"""A layer as text: a line of a baseline, a layer of a JSON report, the cells of a profile.

    {"path": "layer1.0.conv1", "op": "conv2d", "kind": "conv", "dtype": "float32",
     "in": ["1x64x56x56"], "weights": ["64x64x1x1"], "out": ["1x64x56x56"],
     "params": {"stride": [1, 1]}, "runtime_ms": 0.0421, "power_w": 198.2, "energy_mj": 8.35}

A tensor is its sizes, and its dtype where that is not the layer's: ``8x128:int64``; one without
axes is ``scalar``. A cell of a profile has several of them, ``8x64x56x56;8:int64``.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Annotated, Any, Final, NamedTuple, Protocol, TypeVar

import msgspec

from pytest_neuralpower.files import mistake
from pytest_neuralpower.layers import ITEMSIZE, KINDS, Layer, Params, ParamValue, TensorSpec
from pytest_neuralpower.text import escaped

_SCALAR: Final = "scalar"

#: Values of a tensor: sizes are whole numbers of 64 bits, and what is computed of them has a float.
_MOST_VALUES: Final = 2**63 - 1
_MOST_AXES: Final = 64

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


class Priced(Protocol):
    """A layer with its costs, and perhaps more."""

    @property
    def layer(self) -> Layer: ...
    @property
    def runtime_ms(self) -> float | None: ...
    @property
    def power_w(self) -> float | None: ...
    @property
    def energy_mj(self) -> float | None: ...


class Explained(Priced, Protocol):
    """A priced layer that says how: flags, estimator, and ``(low, high, coverage)`` or None."""

    @property
    def flags(self) -> tuple[str, ...]: ...
    @property
    def estimator(self) -> str: ...
    @property
    def runtime_interval_ms(self) -> tuple[float, float, float] | None: ...
    @property
    def energy_interval_mj(self) -> tuple[float, float, float] | None: ...


Item = TypeVar("Item", bound=Priced)


# -- Tensors and hyper-parameters, shared by all formats.


@lru_cache(maxsize=4096)  # a model has few different shapes
def _tensor_text(tensor: TensorSpec, dtype: str) -> str:
    sizes = "x".join(map(str, tensor.shape)) or _SCALAR
    return sizes if tensor.dtype == dtype else f"{sizes}:{tensor.dtype}"


@lru_cache(maxsize=4096)
def _tensor(text: str, dtype: str) -> TensorSpec:
    """What :func:`_tensor_text` wrote; raises ValueError naming what is wrong."""
    sizes, _, own = text.partition(":")
    try:
        shape = () if sizes == _SCALAR else tuple(map(int, sizes.split("x")))
    except ValueError:
        raise ValueError(f"{sizes!r} is not a shape such as 8x64x56x56") from None
    if len(shape) > _MOST_AXES or math.prod(shape) > _MOST_VALUES:
        raise ValueError(f"{sizes!r} has more values than any tensor")
    return TensorSpec(shape, read_dtype(own or dtype))


def read_dtype(name: str) -> str:
    """``name``, if tensors can have it; raises ValueError naming those that they can have."""
    if name not in ITEMSIZE:
        raise ValueError(f"dtype {name!r} is not one of {', '.join(ITEMSIZE)}")
    return name


# -- Cells of a profile.


def tensors_text(tensors: Iterable[TensorSpec], dtype: str) -> str:
    """``8x64x56x56;8:int64``: shapes, each with its dtype where it is not ``dtype``."""
    return ";".join([_tensor_text(tensor, dtype) for tensor in tensors])


def read_tensors(text: str, dtype: str) -> tuple[TensorSpec, ...]:
    """What :func:`tensors_text` wrote; raises ValueError naming a text that is no shape."""
    return tuple([_tensor(part, dtype) for part in filter(None, text.split(";"))])


def params_text(params: Params) -> str:
    """``groups=1;padding=1x1``: a tuple of one ends in ``x``, so that it stays a tuple."""
    return ";".join(f"{name}={_value_text(value)}" for name, value in params)


def read_params(text: str) -> Params:
    """What :func:`params_text` wrote, sorted by name; raises ValueError naming what is wrong."""
    found: dict[str, ParamValue] = {}
    for part in filter(None, text.split(";")):
        name, separator, value = part.partition("=")
        if not separator:
            raise ValueError(f"parameter {part!r} is not name=value")
        found[name] = _value(value)
    return tuple(sorted(found.items()))


def _value_text(value: ParamValue) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "x".join(map(str, value)) + ("x" if len(value) < 2 else "")
    return str(value)


def _value(text: str) -> ParamValue:
    if text in ("true", "false"):
        return text == "true"
    parts = text.removesuffix("x").split("x") if text != "x" else []
    if all(part.lstrip("-").isdigit() for part in parts):
        sizes = tuple(int(part) for part in parts)
        return sizes[0] if len(sizes) == 1 and not text.endswith("x") else sizes
    try:
        return float(text)
    except ValueError:
        return text


# -- Lines of JSON: baselines and reports.


def layer_texts(items: Iterable[Item], more: Callable[[Item], str] | None = None) -> list[str]:
    """Each layer as JSON that is YAML 1.1 too, values to six significant digits.

    Parameters
    ----------
    items
        Layers with what they cost.
    more
        Writes further fields of a layer, each with a comma before it. What has the same
        configuration and costs the same is written once: models repeat their blocks.
    """
    known: dict[object, tuple[Layer, str]] = {}
    texts = []
    for item in items:
        layer = item.layer
        # What costs the same is mostly configured alike: far sooner told than by configurations.
        key = item.runtime_ms, item.power_w, item.energy_mj
        alike, fields = known.get(key, (None, ""))
        if alike is None or alike.configuration != layer.configuration:
            fields = _fields_text(item) + (more(item) if more else "")
            known[key] = layer, fields
        path = layer.path
        shown = f'"{path}"' if _PLAIN.fullmatch(path) else flow(path)
        texts.append(f'{{"path": {shown}, {fields}}}')
    return texts


def layers_json(items: Iterable[Explained]) -> bytes:
    """The layers of a JSON report: an array, one layer a line."""
    return "[{}]".format(",\n".join(layer_texts(items, _more_text))).encode()


def _more_text(item: Explained) -> str:
    cost = item.layer.cost
    return (
        f', "flops": {cost.flops}, "bytes": {cost.bytes_moved}, '
        f'"flags": {_quoted(item.flags)}, '
        f'"estimator": {_quoted(item.estimator)}, '
        f'"runtime_interval_ms": {_interval_text(item.runtime_interval_ms)}, '
        f'"energy_interval_mj": {_interval_text(item.energy_interval_mj)}'
    )


def _interval_text(interval: tuple[float, float, float] | None) -> str:
    return "null" if interval is None else "[{:.6g}, {:.6g}, {:.6g}]".format(*interval)


def _fields_text(item: Priced) -> str:
    """All of a layer but its path, without braces."""
    layer = item.layer
    dtype = layer.dtype
    return (
        f'"op": {_quoted(layer.op)}, "kind": "{layer.kind}", "dtype": {_quoted(dtype)}, '
        f'"in": {_tensors_json(layer.inputs, dtype)}, '
        f'"weights": {_tensors_json(layer.weights, dtype)}, '
        f'"out": {_tensors_json(layer.outputs, dtype)}, '
        f'"params": {_params_json(layer.params)}, '
        f'"runtime_ms": {_cost_text(item.runtime_ms)}, "power_w": {_cost_text(item.power_w)}, '
        f'"energy_mj": {_cost_text(item.energy_mj)}'
    )


@lru_cache(maxsize=4096)
def _quoted(text: str | tuple[str, ...]) -> str:
    return flow(text)


@lru_cache(maxsize=4096)  # one layer's output is the next one's input
def _tensors_json(tensors: tuple[TensorSpec, ...], dtype: str) -> str:
    if not tensors:
        return "[]"
    return '["' + '", "'.join([_tensor_text(each, dtype) for each in tensors]) + '"]'


def _params_json(params: Params) -> str:
    texts = [
        # A cache takes 0.0 and -0.0 for one value.
        f"{_quoted(name)}: {flow(value)}" if type(value) is float else _param_json(name, value)
        for name, value in params
    ]
    return "{" + ", ".join(texts) + "}"


@lru_cache(maxsize=4096, typed=True)  # True is not 1
def _param_json(name: str, value: ParamValue) -> str:
    return f"{flow(name)}: {flow(value)}"


def _cost_text(value: float | None) -> str:
    if value is None:
        return "null"
    text = f"{value:.{_DIGITS}g}"
    # With a point and no exponent it is what its float is written as.
    return text if "." in text and "e" not in text else _with_point(repr(float(text)))


def _with_point(text: str) -> str:
    """A float as YAML 1.1 reads it: one with an exponent needs a point."""
    return text.replace("e", ".0e") if "e" in text and "." not in text else text


def flow(value: Any) -> str:
    """JSON that is YAML 1.1 too: its floats need a point."""
    if isinstance(value, float):
        return _with_point(repr(value))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(key)}: {flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        if all(type(each) is int for each in value):
            return str(list(value))
        return "[" + ", ".join(map(flow, value)) + "]"
    if value is None:
        return "null"
    # YAML takes no control characters as they are.
    return json.dumps(value, ensure_ascii=isinstance(value, str) and not value.isprintable())


def rounded(value: float | None) -> float | None:
    """A value as it is stored."""
    return None if value is None else float(f"{value:.{_DIGITS}g}")


_Cost = Annotated[float, msgspec.Meta(ge=0, le=sys.float_info.max)] | None


class LayerLine(msgspec.Struct):
    """What a line holds; a report's further fields are passed over."""

    path: str
    op: str
    kind: str
    dtype: str
    inputs: tuple[str, ...] = msgspec.field(name="in")
    weights: tuple[str, ...]
    outputs: tuple[str, ...] = msgspec.field(name="out")
    params: dict[str, int | float | bool | str | tuple[int, ...]]
    runtime_ms: _Cost
    power_w: _Cost
    energy_mj: _Cost


class LayerError(ValueError):
    """What is wrong with the layer at ``index``."""

    def __init__(self, index: int, what: str) -> None:
        super().__init__(what)
        self.index = index


def priced_layers(content: bytes | str | Any) -> tuple[PricedLayer, ...]:
    """The layers that :func:`layer_texts` described; fields that it does not know are passed over.

    Parameters
    ----------
    content
        A JSON array as text or bytes, or a list of mappings.

    Raises
    ------
    LayerError
        A field is missing or is none of a layer's; the message names it.
    msgspec.DecodeError
        The text is not JSON.
    """
    try:
        if isinstance(content, bytes | str):
            lines = msgspec.json.decode(content, type=list[LayerLine])
        else:
            lines = msgspec.convert(content, list[LayerLine])
    except msgspec.ValidationError as error:
        parsed = msgspec.json.decode(content) if isinstance(content, bytes | str) else content
        keys, what = mistake(list[LayerLine], parsed, error)
        index = int(next(iter(keys), 0))
        what = what.replace(f"[{index}].", "", 1)
        what = re.sub("^(field '.*') is missing$", r"a layer needs the \1", what)
        raise LayerError(index, what) from None
    found = []
    for index, line in enumerate(lines):
        try:
            found.append(_priced(line))
        except ValueError as error:
            raise LayerError(index, str(error)) from None
    return tuple(found)


def _priced(line: LayerLine) -> PricedLayer:
    if line.kind not in KINDS:
        raise ValueError(f"unknown kind of layer {line.kind!r}; allowed: {', '.join(KINDS)}")
    if line.runtime_ms is None and line.energy_mj is None:
        raise ValueError("a layer needs a runtime_ms or an energy_mj")
    dtype = line.dtype
    op, path = escaped(line.op), escaped(line.path)
    for text in (*line.inputs, *line.weights, *line.outputs):
        if "-" in text:
            raise ValueError(f"{text!r} is not a shape such as 8x64x56x56")
    inputs, weights, outputs = (
        tuple([_tensor(text, dtype) for text in texts])
        for texts in (line.inputs, line.weights, line.outputs)
    )
    params = tuple(sorted(line.params.items()))
    layer = Layer(line.kind, op, path, inputs, weights, outputs, dtype, params)
    return PricedLayer(layer, line.runtime_ms, line.power_w, line.energy_mj)
