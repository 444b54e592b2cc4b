"""YAML whose every part knows its line, so that a mistake can be shown where it is."""

from __future__ import annotations

import difflib
import os.path
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
import yaml

from pytest_neuralpower.errors import BudgetFileError, NeuralPowerError
from pytest_neuralpower.guard.budget import MARKERS, parse_marker
from pytest_neuralpower.guard.tolerance import parse_tolerance
from pytest_neuralpower.plugin.options import GUARD, SETTINGS, platform_at

if TYPE_CHECKING:
    import torch

__all__ = [
    "DTYPES",
    "BudgetFile",
    "BudgetItem",
    "Entry",
    "InputSpec",
    "Located",
    "in_folder",
    "load",
    "make_inputs",
    "read_entries",
]


class Located(NamedTuple):
    """A value and its line; mappings and lists hold located values, everything else is plain."""

    value: Any
    line: int

    def plain(self) -> Any:
        """The value without lines, all the way down."""
        if isinstance(self.value, dict):
            return {key: each.plain() for key, each in self.value.items()}
        if isinstance(self.value, list):
            return [each.plain() for each in self.value]
        return self.value


def load(text: str, name: str) -> Located:
    """Read one YAML document; ``name`` is the file's, for messages.

    Raises
    ------
    BudgetFileError
        With file and line: it is not YAML, is empty, or has one key twice.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            raise BudgetFileError(f"{name}:1: the file is empty; it needs models:")
        return _located(loader, node, name)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise BudgetFileError(f"{name}:{line}: not YAML ({problem})") from None
    finally:
        loader.dispose()


def _located(loader: yaml.SafeLoader, node: yaml.Node, name: str) -> Located:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)  # merges << of anchors
        found: dict[Hashable, Located] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            where = key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                raise BudgetFileError(f"{name}:{where}: a key must be a word, not {key!r}")
            if key in found:
                raise BudgetFileError(f"{name}:{where}: the key {key!r} is there twice; remove one")
            found[key] = _located(loader, value_node, name)._replace(line=where)
        return Located(found, line)
    if isinstance(node, yaml.SequenceNode):
        return Located([_located(loader, each, name) for each in node.value], line)
    return Located(loader.construct_object(node, deep=True), line)


# -- Import paths of a budget file: those of files start where the budget file is.


def in_folder(target: str, folder: Path) -> str:
    """``networks.py:vgg16`` as seen from ``folder``; other import paths as they are."""
    place, _, name = target.rpartition(":")
    return f"{os.path.normpath(folder / place)}:{name}" if place.endswith(".py") else target


# -- Example inputs of a budget file's models.

#: torch's names of dtypes that an input may have.
DTYPES: Final = (
    *("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"),
    *("bool", "complex64"),
)


def make_inputs(
    given: tuple[InputSpec, ...] | str, folder: Path
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Positional and keyword inputs of one call.

    Parameters
    ----------
    given
        What to make, or an import path: of a tensor, of a tuple or list of positional or a mapping
        of keyword inputs, or of a function without arguments that returns one of these.
    folder
        Where a path of a file starts.

    Raises
    ------
    ImportPathError, BudgetFileError
        With one line: it cannot be imported, or is no input.
    """
    if isinstance(given, str):
        return _imported(given, folder)
    positional, keywords = [], {}
    for spec in given:
        if spec.name is None:
            positional.append(_tensor(spec))
        else:
            keywords[spec.name] = _tensor(spec)
    return positional, keywords


def _tensor(spec: InputSpec) -> torch.Tensor:
    """On the meta device where values can not matter: floating point without a range."""
    import torch  # noqa: PLC0415 - slow

    dtype = getattr(torch, spec.dtype)
    if spec.range is None:
        if dtype.is_floating_point or dtype.is_complex:
            return torch.empty(spec.shape, dtype=dtype, device="meta")
        # Zeros are valid indices; true masks nothing.
        return torch.full(spec.shape, dtype == torch.bool, dtype=dtype)
    low, high = spec.range
    count = 1
    for size in spec.shape:
        count *= size
    if dtype.is_floating_point or dtype.is_complex:
        return torch.linspace(low, high, count).reshape(spec.shape).to(dtype)
    # Every value of the range in turn: always the same, and both ends as soon as there is room.
    values = torch.arange(count) % (int(high) - int(low) + 1) + int(low)
    return values.reshape(spec.shape).to(dtype)


def _imported(path: str, folder: Path) -> tuple[Sequence[Any], Mapping[str, Any]]:
    import torch  # noqa: PLC0415 - slow

    from pytest_neuralpower.model_source import import_object  # noqa: PLC0415

    found = import_object(in_folder(path, folder))
    if callable(found) and not isinstance(found, torch.Tensor):
        try:
            found = found()
        except Exception as error:
            reason = " ".join(str(error).split())
            raise BudgetFileError(
                f"inputs: {path!r} raised {type(error).__name__}: {reason}"
            ) from error
    if isinstance(found, torch.Tensor):
        return [found], {}
    if isinstance(found, Mapping):
        return [], found
    if isinstance(found, list | tuple):
        return found, {}
    raise BudgetFileError(
        f"inputs: {path!r} gives a {type(found).__name__}; it must give a tensor, a tuple or list "
        "of positional inputs, or a mapping of keyword inputs"
    )


# -- What a budget file may say, checked before any model is built.

_TOP: Final = ("models", "defaults")
_ENTRY: Final = ("model", "arguments", "inputs", "platforms", "budgets", "tolerance", "tags")
_INPUT: Final = ("shape", "dtype", "range", "name")
#: Quantity -> the marker that takes the same arguments.
_BUDGETS: Final = {quantity: marker for marker, quantity in MARKERS.items()}
#: Tags that would do something else.
_RESERVED: Final = (
    *("skip", "skipif", "xfail", "parametrize", "usefixtures", "filterwarnings", "regression"),
    *MARKERS,
)


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One example input: its shape, torch's name of its dtype, and the range of its values."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    range: tuple[float, float] | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of a budget file.

    Attributes
    ----------
    name, line
        Its key in the file, and where that is.
    model, arguments
        Import path of the model or its factory, and what to call that with.
    inputs
        Example inputs, or the import path of what makes them.
    platforms
        As written; empty for the session's.
    budgets
        Marker and its arguments.
    tolerance
        Arguments of the ``regression`` marker; None without.
    tags
        Names to select by with ``-m``.
    """

    name: str
    line: int
    model: str
    arguments: Mapping[str, Any]
    inputs: tuple[InputSpec, ...] | str
    platforms: tuple[str, ...]
    budgets: tuple[tuple[str, Mapping[str, Any]], ...]
    tolerance: Mapping[str, Any] | None
    tags: tuple[str, ...]


def read_entries(path: Path, shown: str) -> tuple[Entry, ...]:
    """Read and check a budget file; ``shown`` is how messages call it.

    Raises
    ------
    BudgetFileError
        One line for each mistake, with file, line and what is allowed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BudgetFileError(f"{shown}: cannot be read ({error})") from None
    return _Reader(shown).entries(load(text, shown))


class _Reader:
    """Gathers all mistakes of a file, so that one run shows them all."""

    def __init__(self, shown: str) -> None:
        self.shown = shown
        self.mistakes: list[str] = []

    def entries(self, document: Located) -> tuple[Entry, ...]:
        top = self._mapping(document, "the file", _TOP)
        if document.value is not None and "models" not in top and not self.mistakes:
            self._wrong(document.line, "it needs models:, a mapping of names to models")
        defaults = self._mapping(top.get("defaults"), "defaults", _ENTRY)
        models = self._mapping(top.get("models"), "models", None)
        if "models" in top and not models and not self.mistakes:
            self._wrong(top["models"].line, "models: has no model")
        found = [self._entry(str(name), located, defaults) for name, located in models.items()]
        if self.mistakes:
            raise BudgetFileError("\n".join(self.mistakes))
        return tuple(each for each in found if each is not None)

    def _wrong(self, line: int, what: str) -> None:
        self.mistakes.append(f"{self.shown}:{line}: {what}")

    def _mapping(
        self, located: Located | None, what: str, allowed: Sequence[str] | None
    ) -> dict[str, Located]:
        if located is None:
            return {}
        if not isinstance(located.value, dict):
            keys = f" of {', '.join(allowed)}" if allowed else ""
            self._wrong(located.line, f"{what} must be a mapping{keys}, not {located.plain()!r}")
            return {}
        for key, each in located.value.items():
            if allowed is not None and key not in allowed:
                close = difflib.get_close_matches(str(key), allowed, n=1)
                hint = f", did you mean {close[0]}?" if close else ""
                self._wrong(
                    each.line, f"unknown key {key!r} of {what}{hint}; allowed: {', '.join(allowed)}"
                )
        return dict(located.value)

    def _entry(self, name: str, located: Located, defaults: Mapping[str, Located]) -> Entry | None:
        before = len(self.mistakes)
        given = {**defaults, **self._mapping(located, name, _ENTRY)}
        for key in ("model", "inputs"):
            if key not in given and len(self.mistakes) == before:
                self._wrong(located.line, f"{name} needs {key}:; allowed: {', '.join(_ENTRY)}")
        if not any(key in given for key in ("budgets", "tolerance")):
            self._wrong(located.line, f"{name} guards nothing: give budgets: or tolerance:")
        entry = Entry(
            name,
            located.line,
            self._text(given.get("model"), "model"),
            {
                key: each.plain()
                for key, each in self._mapping(given.get("arguments"), "arguments", None).items()
            },
            self._inputs(given.get("inputs")),
            self._texts(given.get("platforms"), "platforms"),
            tuple(self._budgets(given.get("budgets"))),
            self._tolerance(given.get("tolerance")),
            self._tags(given.get("tags")),
        )
        return entry if len(self.mistakes) == before else None

    def _text(self, located: Located | None, what: str) -> str:
        if located is None:
            return ""
        if not isinstance(located.value, str) or ":" not in located.value:
            self._wrong(
                located.line,
                f"{what}: {located.plain()!r} must be package.module:name or path/to/file.py:name",
            )
        return str(located.value)

    def _texts(self, located: Located | None, what: str) -> tuple[str, ...]:
        if located is None:
            return ()
        texts = located.plain()
        if not isinstance(texts, list) or not all(type(each) is str and each for each in texts):
            self._wrong(located.line, f"{what}: {texts!r} must be a list of names")
            return ()
        return tuple(dict.fromkeys(texts))

    def _tags(self, located: Located | None) -> tuple[str, ...]:
        tags = self._texts(located, "tags")
        for tag in tags:
            if not tag.isidentifier() or tag in _RESERVED:
                assert located is not None  # it has tags
                self._wrong(
                    located.line, f"tags: {tag!r} must be a word that is no marker of pytest"
                )
        return tags

    def _inputs(self, located: Located | None) -> tuple[InputSpec, ...] | str:
        if located is None or isinstance(located.value, str):
            return self._text(located, "inputs")
        if not isinstance(located.value, list) or not located.value:
            self._wrong(
                located.line,
                f"inputs: {located.plain()!r} must be a list of inputs, or the import path of "
                "what makes them",
            )
            return ()
        found = [self._input(each) for each in located.value]
        return tuple(each for each in found if each is not None)

    def _input(self, located: Located) -> InputSpec | None:

        before = len(self.mistakes)
        given = (
            {"shape": located}
            if isinstance(located.value, list)
            else self._mapping(located, "an input", _INPUT)
        )
        values = {key: each.plain() for key, each in given.items()}
        shape, dtype = values.get("shape"), values.get("dtype", "float32")
        limits, name = values.get("range"), values.get("name")
        if len(self.mistakes) > before:
            return None
        if not isinstance(shape, list) or not all(type(each) is int and each > 0 for each in shape):
            what = "an input needs shape:" if shape is None else f"shape: {shape!r}"
            self._wrong(located.line, f"{what}, a list of positive sizes such as [1, 3, 224, 224]")
            return None
        if dtype not in DTYPES:
            self._wrong(
                given["dtype"].line, f"dtype: {dtype!r}; allowed: {', '.join(sorted(DTYPES))}"
            )
        if limits is not None and not _is_range(limits):
            self._wrong(
                given["range"].line,
                f"range: {limits!r} must be the lowest and the highest value, such as [0, 30521]",
            )
        if name is not None and not (type(name) is str and name.isidentifier()):
            self._wrong(given["name"].line, f"name: {name!r} must be the name of an argument")
        if len(self.mistakes) > before:
            return None
        return InputSpec(tuple(shape), dtype, limits and (limits[0], limits[1]), name)

    def _budgets(self, located: Located | None) -> Iterable[tuple[str, Mapping[str, Any]]]:
        for quantity, limits in self._mapping(located, "budgets", tuple(_BUDGETS)).items():
            if quantity not in _BUDGETS:
                continue
            several = limits.value if isinstance(limits.value, list) else [limits]
            for limit in several:
                if not isinstance(limit.value, dict):
                    self._wrong(
                        limit.line,
                        f"{quantity}: {limit.plain()!r} must be a mapping of a unit to a number, "
                        f"such as {{{'mj' if quantity == 'energy' else 'ms'}: 120}}",
                    )
                    continue
                marker, arguments = _BUDGETS[quantity], limit.plain()
                try:
                    parse_marker(marker, (), arguments, in_file=True)
                except NeuralPowerError as error:
                    self._wrong(limit.line, str(error))
                yield marker, arguments

    def _tolerance(self, located: Located | None) -> Mapping[str, Any] | None:
        if located is None:
            return None
        if not isinstance(located.value, dict):
            self._wrong(located.line, f"tolerance: {located.plain()!r} must be a mapping, "
                        "such as {max_percent: 2}")  # fmt: skip
            return None
        arguments: Mapping[str, Any] = located.plain()
        try:
            parse_tolerance((), arguments, "tolerance")
        except NeuralPowerError as error:
            self._wrong(located.line, str(error))
        return arguments


def _is_range(limits: Any) -> bool:
    return (
        isinstance(limits, list)
        and len(limits) == 2
        and all(type(each) in (int, float) for each in limits)
        and limits[0] <= limits[1]
    )


# -- Budget files in pytest: a file is collected, each of its models is a test on each platform.


class BudgetFile(pytest.File):
    """One ``*.budget.yaml``."""

    def collect(self) -> Iterable[BudgetItem]:
        """The models in the order of the file, once for each platform."""
        root = self.config.rootpath
        shown = self.path.relative_to(root) if self.path.is_relative_to(root) else self.path
        try:
            entries = read_entries(self.path, str(shown))
        except BudgetFileError as error:
            raise self.CollectError(str(error)) from None
        for entry in entries:
            given = [platform_at(each, self.path.parent) for each in entry.platforms]
            platforms = tuple(given) or self.config.stash[SETTINGS].platforms
            several = len(platforms) > 1
            for platform in platforms or (None,):
                yield BudgetItem.from_parent(
                    self,
                    name=f"{entry.name}[{platform}]" if several else entry.name,
                    entry=entry,
                    platform=platform,
                )


class BudgetItem(pytest.Item):
    """One model on one platform: its budgets are markers, its tags too.

    Attributes
    ----------
    neuralpower_platform
        The platform's name as it was asked for; None where none was chosen anywhere.
    """

    def __init__(self, *, entry: Entry, platform: str | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.entry = entry
        self.neuralpower_platform = platform
        self.several_platforms = self.name != entry.name
        for tag in entry.tags:
            # What a budget file calls a tag need not be registered a second time.
            self.config.addinivalue_line("markers", f"{tag}: a tag of a budget file")
            self.add_marker(tag)
        for marker, arguments in (
            *entry.budgets,
            *([] if entry.tolerance is None else [("regression", entry.tolerance)]),
        ):
            named = arguments.get("platform")
            if named is None or platform is None or self._is(named):
                own = {} if platform is None else {"platform": self._from_anywhere(platform)}
                self.add_marker(getattr(pytest.mark, marker)(**{**arguments, **own}))

    def _from_anywhere(self, platform: str) -> str:
        """A path of a platform that means the same in a marker, wherever that is read."""
        return (
            platform
            if platform_at(platform, Path("x")) == platform
            else str(Path(platform).absolute())
        )

    def _is(self, named: str) -> bool:
        return platform_at(named, self.path.parent) == self.neuralpower_platform

    def runtest(self) -> None:
        """Build the model, and predict one call of it."""
        from pytest_neuralpower.model_source import load_model  # noqa: PLC0415
        from pytest_neuralpower.plugin.session import NeuralPower  # noqa: PLC0415

        entry, folder = self.entry, self.path.parent
        try:
            target = in_folder(entry.model, folder)
            model = load_model(target, dict(entry.arguments), in_file=True)
            args, kwargs = make_inputs(entry.inputs, folder)
            NeuralPower(self.stash[GUARD]).predict(model.eval(), *args, **kwargs)
        except NeuralPowerError as error:
            raise BudgetFileError(f"{self.location[0]}:{entry.line}: {error}") from None

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, self.entry.line - 1, self.name
