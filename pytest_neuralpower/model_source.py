"""How a model was built, for as long as it lives: what a command must be told to build it again."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from pytest_neuralpower.errors import CompressError, ImportPathError

if TYPE_CHECKING:
    import torch

__all__ = [
    "Origin",
    "origin_of",
    "remember",
]


class Origin(NamedTuple):
    """``factory(*args, **kwargs)`` returned the model."""

    factory: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


_ORIGINS: WeakKeyDictionary[Any, Origin] = WeakKeyDictionary()


def remember(model: Any, origin: Origin) -> None:
    """Keep a model's origin; of what cannot be referred to weakly, nothing is kept."""
    try:
        _ORIGINS[model] = origin
    except TypeError:
        return


def origin_of(model: Any) -> Origin | None:
    """What built the model, where this package did."""
    try:
        return _ORIGINS.get(model)
    except TypeError:
        return None


# -- The inputs of one call.


class Call(NamedTuple):
    """Arguments of one forward call."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def as_call(inputs: Any) -> Call:
    """One call from a tensor, a sequence of positional or a mapping of named arguments.

    Raises
    ------
    CompressError
        It is nothing of these.
    """
    import torch  # noqa: PLC0415 - slow

    if isinstance(inputs, Call):
        return inputs
    if isinstance(inputs, torch.Tensor):
        return Call((inputs,), {})
    if isinstance(inputs, Mapping):
        return Call((), dict(inputs))
    if isinstance(inputs, Sequence) and not isinstance(inputs, str):
        return Call(tuple(inputs), {})
    raise CompressError(
        f"inputs is a {type(inputs).__name__}: give a tensor, a tuple of positional arguments or "
        "a dict of named ones"
    )


def input_texts(call: Call, unknown: str = "") -> Iterator[str]:
    """``[keyword=]1,3,224,224[:dtype]`` for each input, as :func:`parse_inputs` takes it.

    ``unknown`` stands for the shape of an input without one; without it only tensors are told.
    """
    import torch  # noqa: PLC0415 - slow

    for name, value in (*(("", value) for value in call.args), *call.kwargs.items()):
        keyword = f"{name}=" if name else ""
        if isinstance(value, torch.Tensor) and (value.dim() or not unknown):
            dtype = str(value.dtype).removeprefix("torch.")
            sizes = ",".join(map(str, value.shape))
            yield f"{keyword}{sizes}" + ("" if dtype == "float32" else f":{dtype}")
        elif unknown:
            yield f"{keyword}{unknown}"


# -- Where a model and its inputs come from: ``package.module:factory`` and ``1,3,224,224``.

Model = TypeVar("Model")

_INPUT_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")


def build(factory: Callable[..., Model], /, *args: Any, **kwargs: Any) -> Model:
    """Build ``factory(*args, **kwargs)`` on torch's meta device: no weights, many times faster.

    A factory that needs real values while it builds is built on the CPU instead.
    """
    import torch  # noqa: PLC0415 - slow

    try:
        with torch.device("meta"):
            model = factory(*args, **kwargs)
    except (NotImplementedError, RuntimeError):  # torch raises either for a value it lacks
        model = factory(*args, **kwargs)
    remember(model, Origin(factory, args, kwargs))
    return model


def load_call(entry: Mapping[str, Any]) -> tuple[Any, list[torch.Tensor], dict[str, torch.Tensor]]:
    """The model, positional and keyword inputs that one entry of a YAML file describes.

    ``entry`` has ``model`` (an import path), ``inputs`` (a list of shapes, as `parse_inputs` takes)
    and perhaps ``arguments`` (of the model's factory).

    Raises
    ------
    ImportPathError
        With one line naming the field.
    """
    for field, kind in (("model", str), ("inputs", list)):
        if not isinstance(entry.get(field), kind):
            raise ImportPathError(f"{field}: {entry.get(field)!r} must be a {kind.__name__}")
    arguments = entry.get("arguments") or {}
    if not isinstance(arguments, dict):
        raise ImportPathError(f"arguments: {arguments!r} must be a mapping of names to values")
    if not entry["inputs"]:
        raise ImportPathError("inputs: the list is empty; write a shape each, such as 1,3,224,224")
    specs = [_spec(each) for each in entry["inputs"]]
    positional, keywords = parse_inputs(specs, field="inputs:")
    return load_model(entry["model"], arguments, in_file=True), positional, keywords


def _spec(value: Any) -> str:
    """A shape as YAML has it, ``[1, 3, 224, 224]`` or ``"1,3,224,224"``, as :func:`parse_inputs`
    takes it."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def load_model(
    target: str, arguments: dict[str, Any], *, with_values: bool = False, in_file: bool = False
) -> Any:
    """Build the model that ``package.module:name`` or ``path/to/file.py:name`` names.

    ``name`` is a module instance, or a class or function that returns one. It is built without
    weights where that will do, unless ``with_values``. Messages say how arguments are given on the
    command line, or ``in_file``.

    Raises
    ------
    ImportPathError
        With one line, when it cannot be imported, found or called.
    """
    found = import_object(target)
    if _is_module(found):
        if arguments:
            what = "arguments:" if in_file else f"--arg {', '.join(arguments)}"
            raise ImportPathError(f"{target!r} is a model, not a factory: remove {what}")
        return found
    if not callable(found):
        raise ImportPathError(
            f"{target!r} is a {type(found).__name__}; it must be a model or a factory of one"
        )
    try:
        inspect.signature(found).bind(**arguments)
    except TypeError as error:
        how = "arguments: {name: value}" if in_file else "--arg name=value"
        raise ImportPathError(
            f"{target!r} could not be called: {error}; give its arguments as {how}"
        ) from None
    try:
        made = found(**arguments) if with_values else build(found, **arguments)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ImportPathError(f"{target!r} raised {type(error).__name__}: {reason}") from error
    if not _is_module(made):
        raise ImportPathError(
            f"{target!r} returned a {type(made).__name__}; it must return a torch.nn.Module"
        )
    return made


def _is_module(value: Any) -> bool:
    from torch.nn import Module  # noqa: PLC0415 - slow

    return isinstance(value, Module)


def import_object(target: str) -> Any:
    """Import ``package.module:name`` (from the current directory too) or ``file.py:name``.

    Raises
    ------
    ImportPathError
        With one line naming what is missing.
    """
    place, separator, name = target.rpartition(":")
    if not separator or not place or not name:
        raise ImportPathError(
            f"{target!r} is no import path; write package.module:name or path/to/file.py:name"
        )
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    for part in name.split("."):
        if not hasattr(module, part):
            raise ImportPathError(f"{target!r}: {place} has no {part!r}")
        module = getattr(module, part)
    return module


def _import_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportPathError(f"cannot import {name!r}: {error}") from error


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise ImportPathError(f"no such file: {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportPathError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        raise ImportPathError(f"cannot import {path}: {error}") from error
    return module


def parse_inputs(
    specs: Sequence[str], *, field: str = "--input"
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Example inputs from ``[keyword=]1,3,224,224[:dtype]``, one each; messages name ``field``.

    Floating-point tensors are on the meta device (their values never matter); integers are real
    zeros, which are valid indices and lengths; booleans are real ones, which mask nothing.

    Raises
    ------
    ImportPathError
        With one line, for a spec that cannot be read.
    """
    positional, keywords = [], {}
    for spec in specs:
        keyword, separator, rest = spec.rpartition("=")
        tensor = _parse_tensor(rest, f"{field} {spec}")
        if separator:
            keywords[keyword] = tensor
        else:
            positional.append(tensor)
    return positional, keywords


def _parse_tensor(text: str, where: str) -> torch.Tensor:
    import torch  # noqa: PLC0415 - slow

    sizes, _, dtype = text.partition(":")
    dtype = dtype or "float32"
    if dtype not in _INPUT_DTYPES:
        allowed = ", ".join(_INPUT_DTYPES)
        raise ImportPathError(f"{where}: unknown dtype {dtype!r}; allowed: {allowed}")
    try:
        shape = [int(size) for size in sizes.split(",")]
    except ValueError:
        shape = []
    if not shape or min(shape) < 1:
        raise ImportPathError(
            f"{where}: {sizes!r} is no shape; write positive sizes such as 1,3,224,224"
        )
    kind = getattr(torch, dtype)
    if kind.is_floating_point:
        return torch.empty(shape, dtype=kind, device="meta")
    return torch.ones(shape, dtype=kind) if kind == torch.bool else torch.zeros(shape, dtype=kind)
