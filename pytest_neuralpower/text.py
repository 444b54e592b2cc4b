"""Text of strangers made fit to print: names of models, tests and files, in a line of their own.

A class, a parameter or a file may be called anything. Printed as it is, a name with a line break
begins a line that a CI server obeys (``::error file=...``), and an escape sequence reaches the
terminal.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import Final

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
