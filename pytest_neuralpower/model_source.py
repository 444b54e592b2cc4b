"""Where a model and its inputs come from: import paths, shapes, and what built a live model."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from pytest_neuralpower.errors import CompressError, ImportPathError
from pytest_neuralpower.files import read_yaml, shown
from pytest_neuralpower.units import is_finite

if TYPE_CHECKING:
    import torch


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


# -- Import paths of models.

Model = TypeVar("Model")


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


class Imports(NamedTuple):
    """What the import paths of a file may name: its text comes from whoever sent it.

    Attributes
    ----------
    root
        What lies below it is the repository's own, but for packages that are installed there.
    allowed
        Packages from elsewhere.
    """

    root: Path
    allowed: tuple[str, ...] = ()

    def refuse_place(self, target: str, place: str) -> None:
        """Raise an ImportPathError for a file or a module from elsewhere, before it runs."""
        if place.endswith(".py"):
            if not self._is_own(place):
                raise ImportPathError(f"{target!r} is not below {self.root}: move it there")
            return
        if self._is_allowed(place):
            return
        package = place.partition(".")[0]
        try:
            spec = importlib.util.find_spec(package) if package.isidentifier() else None
        except ValueError:  # a module that was made by hand
            spec = None
        if spec is None:
            return  # it cannot be imported, which is said elsewhere
        files = [spec.origin] if spec.has_location else spec.submodule_search_locations or ()
        if not any(file and self._is_own(file) for file in files):
            raise ImportPathError(
                f"{target!r}: {package} is not below {self.root}: list it in the ini file, "
                f"np_allow_imports = {package}, or name a function of the repository's"
            )

    def refuse_found(self, target: str, found: Any) -> None:
        """Raise an ImportPathError for a function from elsewhere, before it is called."""
        if not callable(found) or isinstance(found, type) or _is_module(found):
            return
        inner = inspect.unwrap(getattr(found, "func", found))  # of a partial
        code = getattr(inner, "__code__", None) or getattr(type(inner).__call__, "__code__", None)
        module = getattr(inner, "__module__", None) or ""
        if code is None or not (self._is_own(code.co_filename) or self._is_allowed(module)):
            raise ImportPathError(
                f"{target!r} is a function of {module or 'Python'}, not of a file below "
                f"{self.root}: list its package in the ini file (np_allow_imports), or write a "
                "function that calls it"
            )

    def _is_allowed(self, module: str) -> bool:
        return any(module == each or module.startswith(f"{each}.") for each in self.allowed)

    def _is_own(self, file: str) -> bool:
        """Whether a file is below the root, and no installed package's."""
        path = Path(os.path.abspath(file))  # noqa: PTH100 - links of the repository's are its own
        if not path.is_relative_to(self.root):
            return False
        return not {"site-packages", "dist-packages"} & set(path.relative_to(self.root).parts)


def load_call(entry: Mapping[str, Any]) -> tuple[Any, Sequence[Any], Mapping[str, Any]]:
    """The model, positional and keyword inputs that one entry of a YAML file describes.

    ``entry`` has ``model`` (an import path), ``inputs`` (see :func:`read_input`) and perhaps
    ``arguments`` (of the model's factory).

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
    refuse_one_shape(entry["inputs"])
    args, kwargs = make_inputs([read_input(each, field="inputs:") for each in entry["inputs"]])
    return load_model(entry["model"], arguments, in_file=True), args, kwargs


def check_arguments(
    factory: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    name: str = "",
    advice: str = "",
) -> None:
    """Refuse arguments that a factory does not take, before it is called.

    Raises
    ------
    ImportPathError
        With one line: the factory's ``name``, what is wrong, and the ``advice``.
    """
    try:
        inspect.signature(factory).bind(*args, **kwargs)
    except TypeError as error:
        name = name or getattr(factory, "__name__", repr(factory))
        raise ImportPathError(f"{name} could not be called: {error}{advice}") from None
    except ValueError:  # a builtin without a signature says so itself
        pass


def load_model(
    target: str,
    arguments: Mapping[str, Any],
    *,
    with_values: bool = False,
    in_file: bool = False,
    imports: Imports | None = None,
) -> Any:
    """Build the model that ``package.module:name`` or ``path/to/file.py:name`` names.

    ``name`` is a module instance, or a class or function that returns one. It is built without
    weights where that will do, unless ``with_values``. Messages say how arguments are given on the
    command line, or ``in_file``. ``imports`` is what may be named; anything, where it is None.

    Raises
    ------
    ImportPathError
        With one line, when it cannot be imported, found or called.
    """
    found = import_object(target, imports)
    if _is_module(found):
        if arguments:
            what = "arguments:" if in_file else f"--arg {', '.join(arguments)}"
            raise ImportPathError(f"{target!r} is a model, not a factory: remove {what}")
        return found
    if not callable(found):
        raise ImportPathError(
            f"{target!r} has type {type(found).__name__}; it must be a model or a factory of one"
        )
    if (isinstance(found, type) and not issubclass(found, _module_class())) or (
        inspect.isbuiltin(found)
    ):
        raise ImportPathError(f"{target!r} returns no torch.nn.Module: name what builds a model")
    how = "arguments: {name: value}" if in_file else "--arg name=value"
    check_arguments(
        found, (), arguments, name=repr(target), advice=f"; give its arguments as {how}"
    )
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


def read_arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """``name=value`` pairs with YAML values: 3 is a number, true a boolean, [1, 2] a list.

    Raises
    ------
    ImportPathError
        One of them is not that.
    """
    parsed = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name.isidentifier():
            raise ImportPathError(f"--arg {pair}: write name=value")
        try:
            parsed[name] = read_yaml(value, file="", error=ImportPathError)
        except ImportPathError:
            raise ImportPathError(f"--arg {pair}: {value!r} is not a YAML value") from None
    return parsed


def _module_class() -> type:
    from torch.nn import Module  # noqa: PLC0415 - slow

    return Module


def _is_module(value: Any) -> bool:
    return isinstance(value, _module_class())


def import_object(target: str, imports: Imports | None = None) -> Any:
    """Import ``package.module:name`` (from the current directory too) or ``file.py:name``.

    ``imports`` is what may be named; anything, where it is None.

    Raises
    ------
    ImportPathError
        With one line naming what is missing, or may not be named.
    """
    place, separator, name = target.rpartition(":")
    if not separator or not place or not name:
        raise ImportPathError(
            f"{target!r} is no import path; write package.module:name or path/to/file.py:name"
        )
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    if imports is not None:
        imports.refuse_place(target, place)
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    for part in name.split("."):
        if not hasattr(module, part):
            close = difflib.get_close_matches(part, dir(module), n=1)
            hint = f", did you mean {close[0]}?" if close else ""
            raise ImportPathError(f"{target!r}: {place} has no {part!r}{hint}")
        module = getattr(module, part)
        if imports is not None and inspect.ismodule(module):
            imports.refuse_place(target, module.__name__)
    if imports is not None:
        imports.refuse_found(target, module)
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


# -- Example inputs.

#: torch's names of dtypes that an input may have.
DTYPES: Final = (
    *("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"),
    *("bool", "complex64"),
)


#: Values of larger inputs are not made: a trace does not read them.
_MOST_BYTES: Final = 2**30


class InputSpec(NamedTuple):
    """One example input: its shape, torch's name of its dtype, the range of its values, and the
    argument that it is; positional without."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    range: tuple[float, float] | None = None
    name: str | None = None

    def tensor(self) -> torch.Tensor:
        """On the meta device where values can not matter, as of floating point without a range, and
        where they would take more than a gigabyte."""
        import torch  # noqa: PLC0415 - slow

        dtype = getattr(torch, self.dtype)
        if math.prod(self.shape) * dtype.itemsize > _MOST_BYTES:
            return torch.empty(self.shape, dtype=dtype, device="meta")
        if self.range is None:
            if dtype.is_floating_point or dtype.is_complex:
                return torch.empty(self.shape, dtype=dtype, device="meta")
            # Zeros are valid indices and lengths; true masks nothing.
            return torch.full(self.shape, dtype == torch.bool, dtype=dtype)
        low, high = self.range
        count = math.prod(self.shape)
        if dtype.is_floating_point or dtype.is_complex:
            return torch.linspace(low, high, count).reshape(self.shape).to(dtype)
        # Every value of the range in turn: always the same, and both ends as soon as there is room.
        values = torch.arange(count) % (int(high) - int(low) + 1) + int(low)
        return values.reshape(self.shape).to(dtype)


class InputError(ImportPathError):
    """An input is misspelt; ``field`` says which part of it."""

    def __init__(self, what: str, field: str = "shape") -> None:
        super().__init__(what)
        self.field = field


def read_input(value: Any, *, field: str = "--input") -> InputSpec:
    """One example input, of a command line or a file.

    Parameters
    ----------
    value
        Text, ``[keyword=]1,3,224,224[:dtype]``; a list of sizes; or a mapping of ``shape``,
        ``dtype``, ``range`` (lowest and highest value) and ``name`` (of the argument).
    field
        What messages about a text start with.

    Raises
    ------
    InputError
        With one line.
    """
    if isinstance(value, Mapping):
        return _of_mapping(value)
    if isinstance(value, list):
        return _of_mapping({"shape": value})
    name, named, rest = str(value).rpartition("=")
    sizes, _, dtype = rest.partition(":")
    where = f"{field} {value}"
    if named and not name.isidentifier():
        raise InputError(f"{where}: {name!r} must be the name of an argument", "name")
    if dtype and dtype not in DTYPES:
        raise InputError(f"{where}: unknown dtype {dtype!r}; allowed: {', '.join(DTYPES)}", "dtype")
    try:
        shape = tuple(int(size) for size in sizes.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise InputError(
            f"{where}: {sizes!r} is no shape; write positive sizes such as 1,3,224,224"
        )
    _refuse_too_many(shape, where)
    return InputSpec(shape, dtype or "float32", None, name or None)


#: Values of the largest tensor that torch can describe in each of its dtypes.
_MOST_VALUES: Final = 2**63 // 16

#: Axes of a tensor: more have no meaning, and none of torch's loops takes them.
_MOST_AXES: Final = 64


def _refuse_too_many(shape: Sequence[int], where: str) -> None:
    if len(shape) > _MOST_AXES or math.prod(shape) >= _MOST_VALUES:
        raise InputError(
            f"{where}: a tensor has at most {_MOST_AXES} sizes and fewer than 2^59 values; write "
            "smaller ones"
        )


def refuse_one_shape(inputs: Sequence[Any]) -> None:
    """Raise an InputError where a file's list of inputs is one shape: its items are sizes."""
    if all(type(each) is int for each in inputs):
        raise InputError(f"inputs: {inputs} is one shape, not a list of them; write [{inputs}]")


def _of_mapping(given: Mapping[str, Any]) -> InputSpec:
    shape, dtype = given.get("shape"), given.get("dtype", "float32")
    limits, name = given.get("range"), given.get("name")
    for key in given:
        if key not in InputSpec._fields:
            allowed = ", ".join(InputSpec._fields)
            raise InputError(f"unknown key {key!r} of an input; allowed: {allowed}", key)
    if not isinstance(shape, list) or not all(type(each) is int and each > 0 for each in shape):
        what = "an input needs shape:" if shape is None else f"shape: {shape!r}"
        raise InputError(f"{what}, a list of positive sizes such as [1, 3, 224, 224]")
    if dtype not in DTYPES:
        raise InputError(f"dtype: {dtype!r}; allowed: {', '.join(sorted(DTYPES))}", "dtype")
    _refuse_too_many(shape, f"shape: {shown(shape)}")
    if limits is not None and not (
        isinstance(limits, list)
        and len(limits) == 2
        and all(is_finite(each) and -(2**53) <= each <= 2**53 for each in limits)
        and limits[0] <= limits[1]
    ):
        what = "must be the lowest and the highest value, such as [0, 30521]"
        raise InputError(f"range: {limits!r} {what}", "range")
    if name is not None and not (type(name) is str and name.isidentifier()):
        raise InputError(f"name: {name!r} must be the name of an argument", "name")
    ends = None if limits is None else (limits[0], limits[1])
    return InputSpec(tuple(shape), dtype, ends, name)


def make_inputs(
    given: Sequence[InputSpec] | str, folder: Path = Path(), imports: Imports | None = None
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Positional and keyword inputs of one call.

    Parameters
    ----------
    given
        What to make, or an import path: of a tensor, of a tuple or list of positional or a mapping
        of keyword inputs, or of a function without arguments that returns one of these.
    folder
        Where a path of a file starts.
    imports
        What may be named; anything, where it is None.

    Raises
    ------
    ImportPathError
        With one line: it cannot be imported, may not be named, or is no input.
    """
    if not isinstance(given, str):
        positional = [spec.tensor() for spec in given if spec.name is None]
        return positional, {spec.name: spec.tensor() for spec in given if spec.name is not None}
    import torch  # noqa: PLC0415 - slow

    found = import_object(in_folder(given, folder), imports)
    if callable(found) and not isinstance(found, torch.Tensor):
        try:
            found = found()
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ImportPathError(
                f"inputs: {given!r} raised {type(error).__name__}: {reason}"
            ) from error
    if isinstance(found, torch.Tensor):
        return [found], {}
    if isinstance(found, Mapping):
        return [], found
    if isinstance(found, list | tuple):
        return found, {}
    raise ImportPathError(
        f"inputs: {given!r} gives a {type(found).__name__}; it must give a tensor, a tuple or list "
        "of positional inputs, or a mapping of keyword inputs"
    )


def in_folder(target: str, folder: Path) -> str:
    """``networks.py:vgg16`` as seen from ``folder``; other import paths as they are."""
    place, _, name = target.rpartition(":")
    return f"{os.path.normpath(folder / place)}:{name}" if place.endswith(".py") else target


def parse_inputs(specs: Sequence[str]) -> tuple[Sequence[torch.Tensor], Mapping[str, torch.Tensor]]:
    """Example inputs of a command line, ``[keyword=]1,3,224,224[:dtype]`` each.

    Raises
    ------
    ImportPathError
        With one line, for a spec that cannot be read.
    """
    inputs = [read_input(spec) for spec in specs]
    names = [each.name for each in inputs if each.name is not None]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"--input {name}=: it is given {names.count(name)} times; give one")
    return make_inputs(inputs)
