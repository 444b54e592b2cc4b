"""Text files: written whole or not at all, read into declared types with one line for a mistake.

Files come from strangers, too: what is no file, larger than any of ours, or means more than it says
(aliases of YAML that repeat what they name) is refused before it takes time or memory.
"""

from __future__ import annotations

import csv
import glob
import io
import os
import re
import reprlib
import stat
import tempfile
import threading
import time
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import yaml

T = TypeVar("T")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that no reader sees half of it, and a process that is killed leaves none.

    Text is written in UTF-8. Of two processes that write one file at once the later wins, with all
    of its content. What a process that was killed left between two steps, the next one removes.

    Raises
    ------
    OSError
        The folder or the file cannot be written; an existing file is left as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    if not _written_unnamed(path, data):
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=_UNFINISHED
        )
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(name).chmod(0o644)  # mkstemp's file is private
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


#: How files end that are not written to the end, and how old one is that nobody writes any more, s.
_UNFINISHED: Final = ".part"
_LEFT_S: Final = 60.0


def _sweep(path: Path) -> None:
    """Remove what killed processes left of a file."""
    for left in path.parent.glob(f".{glob.escape(path.name[:200])}.*{_UNFINISHED}"):
        writer = left.name.split(".")[-2].partition("-")[0]
        with suppress(OSError):
            if _is_dead(writer) or time.time() - left.stat().st_mtime > _LEFT_S:
                left.unlink()


def _is_dead(pid: str) -> bool:
    """Whether it is the id of a process of this machine that has ended."""
    if not pid.isdecimal() or len(pid) > 10 or os.name != "posix":
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _written_unnamed(path: Path, data: bytes) -> bool:
    """Write a file that has no name before it is whole: the system forgets it if the process dies.

    False where the system or the folder's file system cannot do that (Linux, most of its own).
    """
    unnamed = getattr(os, "O_TMPFILE", None)
    if unnamed is None:
        return False
    try:
        handle = os.open(path.parent, unnamed | os.O_WRONLY, 0o644)
    except OSError:
        return False
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fchmod(handle, 0o644)
        here = f"/proc/self/fd/{handle}"
        # With a folder's handle, which it does not need, os.link follows the link that this is.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.link(here, path.name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=True)
        except FileExistsError:
            part = f".{path.name[:200]}.{os.getpid()}-{threading.get_ident()}{_UNFINISHED}"
            os.link(here, part, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=True)
            try:
                os.rename(part, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                os.unlink(part, dir_fd=folder)
                raise
        except OSError:  # no /proc, or a file system without links
            return False
        finally:
            os.close(folder)
    return True


#: A baseline of 100,000 layers has 40 MB.
_MOST_BYTES: Final = 64 * 2**20


def read_bytes(path: Path, *, file: str, error: type[Exception]) -> bytes:
    """The content of a file, of at most 64 MiB.

    Parameters
    ----------
    path
        The file; of a name that ends with ``.gz``, what is packed in it.
    file
        What the line of an error begins with: ``"platform file mine.json"``.
    error
        What is raised where it cannot be read, is no file but a pipe or a device, or is larger.
    """
    most = _MOST_BYTES
    # Opened without waiting for somebody to write to a pipe.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags)
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):
            os.close(handle)
            what = "a directory" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise error(f"{file}: it is {what}; give a file")
        with os.fdopen(handle, "rb") as opened:
            data = opened.read(most + 1)
        if path.suffix == ".gz":
            packed = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
            data = packed.decompress(data, most + 1)
            if not packed.eof and len(data) <= most:
                raise ValueError("it ends too early")
    except FileNotFoundError:
        raise error(f"{file}: there is no such file; check the path") from None
    except IsADirectoryError:
        raise error(f"{file}: it is a directory; give a file") from None
    except (OSError, ValueError, zlib.error) as problem:  # also a path with a null byte
        raise error(f"{file}: it cannot be read ({problem}); check the file") from None
    if len(data) > most:
        raise error(f"{file}: it has more than {most // 2**20} MiB; check the file")
    return data


def read_text(path: Path, *, file: str, error: type[Exception]) -> str:
    """The text of a file in UTF-8: :func:`read_bytes`, with its parameters.

    Lines end with ``\\n``, whatever wrote them.
    """
    data = read_bytes(path, file=file, error=error)
    try:
        text = data.decode("utf-8-sig")  # editors of Windows write a mark
    except UnicodeDecodeError as problem:
        raise error(f"{file}: it cannot be read ({problem}); check the file") from None
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def read_table(
    path: Path, *, file: str, error: type[Exception]
) -> Iterator[tuple[int, dict[str, str]]]:
    """The lines of a table in CSV by the names of its header, each with its number.

    Parameters
    ----------
    path, file, error
        As :func:`read_bytes` takes them; raised also for what is no table, with the line.
    """
    lines = csv.DictReader(io.StringIO(read_text(path, file=file, error=error), newline=""))
    try:
        yield from enumerate(lines, start=2)
    except csv.Error as problem:
        raise error(f"{file}, line {lines.line_num + 1}: {problem}") from None


# -- YAML.

#: Values in a file: a budget file of 7,000 models has as many.
_MOST_VALUES: Final = 100_000

#: Lists within lists.
_MOST_LEVELS: Final = 100

#: Characters of a value that count as much as a value by itself.
_PART: Final = 100

#: Longer numbers and dates are none: what YAML makes of them takes time, and has no float.
_LONGEST_NUMBER: Final = 64


def read_yaml(text: str, *, file: str, error: type[Exception], renew: str = "") -> Any:
    """The value of one YAML document; None of an empty one.

    Parameters
    ----------
    text
        The document.
    file, error
        As :func:`read_bytes` takes them: what is raised names the line, too.
    renew
        How that line ends: what to do.
    """
    with yaml_document(text, file=file, error=error, renew=renew) as (loader, node):
        return None if node is None else loader.construct_document(node)


@contextmanager
def yaml_document(
    text: str, *, file: str, error: type[Exception], renew: str = ""
) -> Iterator[tuple[yaml.SafeLoader, yaml.Node | None]]:
    """One YAML document and what constructs its values: as :func:`read_yaml`, for whom lines of
    values matter. Raised is also what is found while the block runs."""
    import yaml  # noqa: PLC0415 - slow

    ending = renew and f"; {renew}"
    loader = None
    try:
        _refuse_bombs(text)
        loader = _loader(text)
        yield loader, loader.get_single_node()
    except (yaml.YAMLError, UnicodeError) as problem:
        mark = getattr(problem, "problem_mark", None) or getattr(problem, "context_mark", None)
        place = getattr(problem, "position", None)
        if mark is not None:  # the parser in C stops behind the end
            line = min(mark.line, text.rstrip("\n").count("\n")) + 1
        else:
            line = None if place is None else text.count("\n", 0, place) + 1
        says = getattr(problem, "problem", None) or " ".join(str(problem).split())
        if says.startswith("but "):  # expected a single document, ...
            says = f"{getattr(problem, 'context', '')}, {says}"
        where = file if line is None else f"{file}:{line}"
        raise error(f"{where}: not YAML ({says}){ending}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _refuse_bombs(text: str) -> None:
    """Raise a YAMLError where a document has more values than any file of ours, aliases counted
    as what they repeat, or lists too deep within lists.

    The parser in C reads 25 MB/s and takes no memory for what is not kept.
    """
    import yaml  # noqa: PLC0415 - slow

    def refuse(says: str) -> None:
        mark: Any = event.start_mark
        raise yaml.composer.ComposerError(None, None, says, mark)

    weight = 0
    weights: dict[str, int] = {}
    open_: list[tuple[str | None, int]] = []
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.ScalarEvent):
            size = 1 + len(event.value) // _PART
            weight += size
            if event.anchor is not None:
                weights[event.anchor] = size
        elif isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, weight))
            weight += 1
            if len(open_) > _MOST_LEVELS:
                refuse(f"nested more than {_MOST_LEVELS} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor is not None:
                weights[anchor] = weight - before
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_):
                refuse(f"the alias {event.anchor!r} is within what it names")
            weight += weights.get(event.anchor or "", 0)
        if weight > _MOST_VALUES:
            refuse(f"more than {_MOST_VALUES:,} values")


def _loader(text: str) -> yaml.SafeLoader:
    """A loader whose every mistake is a YAMLError with its line."""
    import yaml  # noqa: PLC0415 - slow

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
            number = node.tag.rpartition(":")[2] in ("int", "float", "timestamp")
            if number and len(node.value) > _LONGEST_NUMBER:
                says = f"a number of {len(node.value)} characters"
            else:
                try:
                    return super().construct_object(node, deep=deep)
                except yaml.YAMLError:
                    raise
                # PyYAML's constructors take a tag at its word: !!timestamp, !!int, !!bool.
                except Exception as problem:
                    says = str(problem) or f"no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, says, node.start_mark)

    return Loader(text)


# -- JSON, and data of any parser as a declared type.


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
        return f"{name} is {shown(value)}; allowed: {choices}"
    if expected := re.fullmatch(r"Expected (.*?)(?:, got .*)?", says):
        wanted = re.sub(
            r"`([^`]*)`",
            lambda kinds: " or ".join(_WORDS.get(kind, kind) for kind in kinds[1].split(" | ")),
            expected[1],
        )
        wanted = wanted.replace(".0", "").replace("a whole number or a number", "a number")
        return f"{name or 'the whole'} must be {wanted}, not {shown(value)}"
    return f"{name}: {says}" if name else says


_ABRIDGED: Final = reprlib.Repr()
vars(_ABRIDGED).update(maxstring=100, maxother=100)


def shown(value: Any) -> str:
    """A value in a line: large ones abridged."""
    return _ABRIDGED.repr(value).replace("\n", " ")


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
