"""Text of strangers made fit to print: names of models, tests and files, in a line of their own.

A class, a parameter or a file may be called anything. Printed as it is, a name with a line break
begins a line that a CI server obeys (``::error file=...``), and an escape sequence reaches the
terminal.
"""

from __future__ import annotations

import codecs
import os
import re
import shlex
import sys
from typing import Final, TextIO

#: Characters of a name that are shown.
_NAME: Final = 300

#: What a CI server takes for a command: at the start of a line, or anywhere (``##[error]``).
_COMMAND: Final = re.compile(r"^(\s*):(?=:)|#(?=#\w*\[)")


def escaped(text: str) -> str:
    r"""The text in one line: what is no printable character as Python writes it, ``\n``, ``\x1b``,
    ``\ud800``."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def printable(text: str, most: int = _NAME) -> str:
    r"""The text :func:`escaped`, in ``most`` characters (300 by default), its middle left out.

    So is the first character of what a CI server takes for a command.

    >>> printable("Net\n::error::x")
    'Net\\n::error::x'
    >>> printable("::error::x")
    '\\x3a:error::x'
    """
    text = _cut(escaped(_cut(text, most)), most)  # escapes are longer
    if "::" in text or "##" in text:
        text = _COMMAND.sub(lambda found: f"{found[1] or ''}\\x{ord(found[0][-1]):x}", text)
    return text


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}…{text[len(text) - most // 2 + 1 :]}"


def shell_word(text: str) -> str:
    """The text as one word of a command to copy, in one line.

    Without control characters it is quoted for any shell, else for bash and zsh.
    """
    if text.isprintable():
        return shlex.quote(text)
    escaped = "".join(
        each if each.isprintable() else "".join(f"\\x{byte:02x}" for byte in os.fsencode(each))
        for each in text.replace("\\", "\\\\").replace("'", "\\'")
    )
    return f"$'{escaped}'"


# -- Text of ours on terminals that cannot write all of it.

#: What cp437, cp932 and cp1252 lack -> what people read as the same.
_PLAIN: Final = {
    "µ": "u", "±": "+-", "\xd7": "x", "→": "->", "…": "...", "\u2013": "-", "—": "-", "·": "*",
    "²": "2", "≤": "<=", "≥": ">=", "✅": "ok", "❌": "WORSE", "🆕": "new", "🗑": "removed",
    "\ufe0f": "", "⚠": "ERROR", "💥": "ERROR",
}  # fmt: skip


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """An error handler of codecs: other letters for what an encoding lacks, escaped at last."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    written = "".join(_PLAIN.get(each, each) for each in text)
    return written.encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error("neuralpower", _plainly)


def write_any_text(*streams: TextIO) -> None:
    """Let streams write any text: what their encoding lacks in other letters, ``us`` for ``µs``."""
    for stream in streams:
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="neuralpower")


def write_utf_8() -> None:
    """Write standard output in UTF-8 where it goes to a file or a pipe: what a format demands."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None and not sys.stdout.isatty():
        reconfigure(encoding="utf-8")
