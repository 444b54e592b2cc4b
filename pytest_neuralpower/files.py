"""Text files: written whole or not at all, read into declared types with one line for a mistake."""

from __future__ import annotations

import os
import re
import reprlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

T = TypeVar("T")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file through a temporary one in the same folder, so that no reader sees half of it.

    Text is written in UTF-8. Of two processes that write one file at once the later wins, with all
    of its content.

    Raises
    ------
    OSError
        The folder or the file cannot be written; an existing file is left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        Path(name).chmod(0o644)  # mkstemp's file is private
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_text(path: Path, *, file: str, error: type[Exception]) -> str:
    """The text of a file.

    Parameters
    ----------
    path
        The file, in UTF-8.
    file
        What the line of an error begins with: ``"platform file mine.json"``.
    error
        What is raised where it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")  # editors of Windows write a mark
    except FileNotFoundError:
        raise error(f"{file}: there is no such file; check the path") from None
    except IsADirectoryError:
        raise error(f"{file}: it is a directory; give a file") from None
    except (OSError, ValueError) as problem:  # not UTF-8, or a path with a null byte
        raise error(f"{file}: it cannot be read ({problem}); check the file") from None


def decode(type_: type[T], data: Any, *, file: str, error: type[Exception], renew: str) -> T:
    """Data as a declared type (:mod:`msgspec`), checked.

    Parameters
    ----------
    type_
        A ``msgspec.Struct``, or anything else that msgspec decodes to.
    data
        JSON text, or what a parser made of another format: dicts, lists, strings, numbers.
    file
        What the line of an error begins with: ``"platform file mine.json"``.
    error
        What is raised where the data are not of the type: one line that names the file, the
        field, its value and what is allowed.
    renew
        How that line ends: what to do.
    """
    try:
        if isinstance(data, str | bytes):
            data = _json(data.encode() if isinstance(data, str) else data)
        return msgspec.convert(data, type_)
    except msgspec.ValidationError as problem:
        reason = mistake(type_, data, problem)[1]
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as problem:
        reason = str(problem)
    raise error(f"{file}: {reason}; {renew}") from None


#: Numbers of other dialects, by the letters that JSON stumbles over.
_NOT_FINITE: Final = re.compile(rb"NaN|-?Infinity")


def _json(data: bytes) -> Any:
    """What JSON says; raises ValueError with the line of a mistake."""
    try:
        return msgspec.json.decode(data)
    except msgspec.ValidationError:  # 1e999
        raise ValueError("a number that is too large is not a finite number") from None
    except msgspec.DecodeError as problem:
        text = str(problem)
        at = re.search(r" \(byte (\d+)\)", text)
        place = int(at[1]) if at else len(data)
        if number := _NOT_FINITE.match(data, max(place - 1, 0)) or _NOT_FINITE.match(data, place):
            raise ValueError(f"{number[0].decode()} is not a finite number") from None
        line = data.count(b"\n", 0, place) + 1
        said = text[: at.start()] if at else text
        said = said.removeprefix("JSON is malformed: ")
        raise ValueError(f"not JSON, or truncated (line {line}: {said})") from None


# msgspec says "Expected `float` >= 0.0 - at `$.families[...].ranges[0]`", where [...] is any value
# of a mapping: the message for people names the key, the value, and what there is to choose from.

_WORDS: Final = {
    "str": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "object": "an object",
    "array": "a list",
    "null": "null",
}


def mistake(
    type_: Any, data: Any, problem: msgspec.ValidationError
) -> tuple[Sequence[str | int], str]:
    """Keys and indices that lead to a wrong value in parsed data, and what is wrong with it."""
    said = str(problem)
    says, _, path = said.partition(" - at `$")
    keys, value = _followed(type_, data, path, said)
    return keys, _reason(type_, says, keys, value)


def _reason(type_: Any, says: str, keys: Sequence[str | int], value: Any) -> str:
    name = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")
    inside = f"{name}." if name else ""
    if field := re.fullmatch(r"Object missing required field `(.*)`", says):
        return f"field {inside + field[1]!r} is missing"
    if field := re.fullmatch(r"Object contains unknown field `(.*)`", says):
        return f"unknown field {inside + field[1]!r}"
    if re.match("Invalid (enum )?value", says):
        choices = ", ".join(map(str, _choices(type_, keys)))
        return f"{name} is {_shown(value)}; allowed: {choices}"
    if expected := re.fullmatch(r"Expected (.*?)(?:, got .*)?", says):
        wanted = re.sub(
            r"`([^`]*)`",
            lambda kinds: " or ".join(_WORDS.get(kind, kind) for kind in kinds[1].split(" | ")),
            expected[1],
        )
        wanted = wanted.replace(".0", "").replace("a whole number or a number", "a number")
        return f"{name or 'the whole'} must be {wanted}, not {_shown(value)}"
    return f"{name}: {says}" if name else says


def _shown(value: Any) -> str:
    """A value in a line: large ones abridged."""
    return reprlib.repr(value).replace("\n", " ")


def _followed(type_: Any, data: Any, path: str, said: str) -> tuple[list[str | int], Any]:
    """Keys and indices that lead to what msgspec complains of, and the value there."""
    keys: list[str | int] = []
    value = data
    for step in re.findall(r"\.([^.\[`]+)|\[(\d+|\.\.\.)\]", path):
        key: str | int = step[0] or step[1]
        if key == "...":
            key = next(each for each in value if _same_error(type_, data, [*keys, each], said))
        elif step[1]:
            key = int(key)
        if isinstance(value, dict) and key not in value:  # a tag that is missing
            break
        keys.append(key)
        value = value[key]
    return keys, value


def _same_error(type_: Any, data: Any, keys: Sequence[str | int], said: str) -> bool:
    """Whether the error is still the same where one mapping has no other value than this."""

    def only(value: Any, depth: int) -> Any:
        key = keys[depth]
        if depth == len(keys) - 1:
            return {key: value[key]}
        inner = only(value[key], depth + 1)
        if isinstance(value, dict):
            return {**value, key: inner}
        return [*value[:key], inner, *value[int(key) + 1 :]]

    try:
        msgspec.convert(only(data, 0), type_)
    except msgspec.ValidationError as problem:
        return str(problem) == said
    return False


def _choices(type_: Any, keys: Sequence[str | int]) -> list[Any]:
    """What a field of few possible values may be."""
    from msgspec import inspect  # noqa: PLC0415 - needed for a message alone

    kinds = [inspect.type_info(type_)]
    tags: list[Any] = []
    for key in keys:
        inner: list[Any] = []
        tags = []
        for kind in _alternatives(kinds):
            if isinstance(kind, inspect.StructType):
                tags += [kind.tag] if kind.tag_field == key else []
                inner += [field.type for field in kind.fields if field.encode_name == key]
            elif isinstance(kind, inspect.DictType):
                inner.append(kind.value_type)
            elif isinstance(kind, inspect.TupleType):
                inner += kind.item_types
            elif isinstance(kind, inspect.ListType | inspect.VarTupleType):
                inner.append(kind.item_type)
        kinds = inner
    literals = [kind for kind in _alternatives(kinds) if isinstance(kind, inspect.LiteralType)]
    return sorted({*tags, *(value for kind in literals for value in kind.values)})


def _alternatives(kinds: Sequence[Any]) -> Iterator[Any]:
    for kind in kinds:
        yield from getattr(kind, "types", (kind,))
