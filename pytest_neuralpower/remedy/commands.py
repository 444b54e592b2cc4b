"""The command line that does in a shell what a test did: its model, its inputs, its budget."""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from pytest_neuralpower.built import Origin, origin_of

if TYPE_CHECKING:
    from pytest_neuralpower.remedy.calls import Call

__all__ = ["model_words"]

#: What stands where the command cannot be told.
_UNKNOWN_MODEL = "MODEL"


def model_words(model: torch.nn.Module, call: Call, root: Path) -> list[str]:
    """``MODEL --arg name=value --input 1,3,224,224``, each word quoted for a shell.

    ``MODEL`` stays a placeholder for a model that was not built by ``neuralpower.build``, a budget
    file, or its class without arguments.
    """
    origin = origin_of(model) or _of_its_class(model)
    found = [_UNKNOWN_MODEL]
    if origin is not None:
        place, arguments = _place(origin.factory, root), _named(origin)
        if place is not None and arguments is not None:
            found = [place, *arguments]
    inputs = [_input_text(name, value) for name, value in _inputs(call)]
    return [shlex.quote(word) for word in (*found, *inputs_words(inputs))]


def inputs_words(inputs: list[str]) -> Iterator[str]:
    """``--input TEXT`` for each."""
    for text in inputs:
        yield from ("--input", text)


def _of_its_class(model: torch.nn.Module) -> Origin | None:
    """The model's class, where building it without arguments gives the same shapes."""
    kind = type(model)
    try:
        with torch.device("meta"):
            again = kind()
    except Exception:  # it needs arguments, or values: somebody else knows how it is built
        return None
    same = _shapes(again) == _shapes(model)
    return Origin(kind, (), {}) if same and _shapes(model) else None


def _shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _place(factory: Callable[..., Any], root: Path) -> str | None:
    """``package.module:name``, or ``path/to/file.py:name`` where no package has it."""
    name = getattr(factory, "__qualname__", "")
    module = sys.modules.get(getattr(factory, "__module__", None) or "")
    if not name or "<" in name or module is None:
        return None
    spec = getattr(module, "__spec__", None)
    file = Path(getattr(module, "__file__", None) or "")
    if spec is not None and spec.parent:  # in a package
        return f"{module.__name__}:{name}"
    if file.suffix != ".py":
        return None
    return f"{file.relative_to(root) if file.is_relative_to(root) else file}:{name}"


def _named(origin: Origin) -> list[str] | None:
    """``--arg name=value`` for each argument; None where one cannot be written down."""
    try:
        bound = inspect.signature(origin.factory).bind(*origin.args, **origin.kwargs)
    except (TypeError, ValueError):
        return None
    words = []
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            return None
        pairs = value.items() if kind is inspect.Parameter.VAR_KEYWORD else [(name, value)]
        for key, each in pairs:
            text = _yaml(each)
            if text is None:
                return None
            words += ["--arg", f"{key}={text}"]
    return words


def _yaml(value: Any) -> str | None:
    """``value`` in one line of YAML that reads back as it; None where there is none."""
    try:
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    except yaml.YAMLError:
        return None
    text = text.removesuffix("...\n").strip()
    return text if "\n" not in text and yaml.safe_load(text) == value else None


def _inputs(call: Call) -> Iterator[tuple[str, Any]]:
    yield from (("", value) for value in call.args)
    yield from call.kwargs.items()


def _input_text(name: str, value: Any) -> str:
    prefix = f"{name}=" if name else ""
    if not isinstance(value, torch.Tensor) or not value.dim():
        return f"{prefix}SHAPE"
    dtype = str(value.dtype).removeprefix("torch.")
    sizes = ",".join(map(str, value.shape))
    return f"{prefix}{sizes}" + ("" if dtype == "float32" else f":{dtype}")
