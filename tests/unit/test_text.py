"""Names of strangers in what is printed: in a line of their own, and obeyed by nobody."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pytest_neuralpower.errors import BudgetFileError, PlatformError
from pytest_neuralpower.text import escaped, printable, shell_word

NAMES = (
    "x\n::error file=a::made up",
    "\x1b[2J\x1b[31mred",
    "a\r\nb",
    "\ud800",
    "\u202eright to left",
    "a\u2028b\x85c\x0bd",
    "\0",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_stays_in_its_line_and_is_printable(name: str) -> None:
    for shown in (escaped(name), printable(name)):
        assert shown.isprintable()
        assert shown.encode()  # surrogates have no bytes
        assert len(shown.splitlines()) == 1
        assert escaped(shown) == shown


@pytest.mark.parametrize("name", ["resnet[18]", "größe 模型 🚀", "a::b", "# 1", "tests/a.py::b"])
def test_ordinary_names_stay_as_they_are(name: str) -> None:
    assert escaped(name) == name
    assert printable(name) == name


@pytest.mark.parametrize("name", ["::error::x", "  ::set-env n=x::y", "a ##[error]b", "##vso[a]"])
def test_nothing_begins_as_a_command_of_a_ci_server(name: str) -> None:
    shown = printable(name)
    assert not shown.lstrip().startswith("::")
    assert "##" not in shown


def test_a_long_name_loses_its_middle() -> None:
    assert printable(f"begin{'x' * 25_000_000}end", 21) == "beginxxxxx…xxxxxxend"
    assert len(str(PlatformError("x" * 25_000_000))) <= 4000
    assert len(str(PlatformError("\n" * 25_000_000))) <= 4000


def test_an_error_is_one_line_and_that_of_a_file_one_a_mistake() -> None:
    assert str(PlatformError("a\nb")) == "a\\nb"
    assert str(BudgetFileError("a\nb", "c")) == "a\\nb\nc"


@pytest.mark.skipif(sys.platform == "win32", reason="bash quotes so")
@pytest.mark.parametrize("word", ["a b", "it's", "x\n'; rm -r /\\", "\x1b[2J", "é\t", "$(ls)`ls`"])
def test_a_word_to_copy_is_one_word_in_one_line(word: str) -> None:
    shown = shell_word(word)
    assert shown.isprintable()
    done = subprocess.run(
        ["bash", "-c", f"printf %s {shown}"], capture_output=True, check=True, text=True
    )
    assert done.stdout == word
