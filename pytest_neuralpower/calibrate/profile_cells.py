"""Cells of a profile: shapes and hyper-parameters of a layer as text, and back to the same."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_neuralpower.layers import ITEMSIZE, Params, ParamValue, TensorSpec

#: The shape without axes, which would otherwise be an empty text.
_SCALAR = "scalar"


def tensors_text(tensors: Iterable[TensorSpec], dtype: str) -> str:
    """``8x64x56x56;8:int64``: shapes, each with its dtype where it is not ``dtype``."""
    return ";".join(
        ("x".join(map(str, tensor.shape)) or _SCALAR)
        + ("" if tensor.dtype == dtype else f":{tensor.dtype}")
        for tensor in tensors
    )


def read_tensors(text: str, dtype: str) -> tuple[TensorSpec, ...]:
    """What :func:`tensors_text` wrote; raises ValueError naming a text that is no shape."""
    found = []
    for part in filter(None, text.split(";")):
        shape, _, own = part.partition(":")
        found.append(TensorSpec(_sizes(shape), read_dtype(own or dtype)))
    return tuple(found)


def read_dtype(name: str) -> str:
    """``name``, if tensors can have it; raises ValueError naming those that they can have."""
    if name not in ITEMSIZE:
        raise ValueError(f"dtype {name!r} is not one of {', '.join(ITEMSIZE)}")
    return name


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


def _sizes(text: str) -> tuple[int, ...]:
    if text == _SCALAR:
        return ()
    try:
        return tuple(int(size) for size in text.split("x"))
    except ValueError:
        raise ValueError(f"{text!r} is not a shape such as 8x64x56x56") from None


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
