"""What a budget file may say, checked before any model is built."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pytest_neuralpower.budget import MARKERS, parse_marker
from pytest_neuralpower.budget_files.located_yaml import Located, load
from pytest_neuralpower.errors import BudgetFileError, NeuralPowerError
from pytest_neuralpower.regression.tolerance import parse_tolerance

__all__ = ["Entry", "InputSpec", "read_entries"]

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
        from pytest_neuralpower.budget_files.inputs import DTYPES  # noqa: PLC0415

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
