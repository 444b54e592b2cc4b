"""A small model repository, made afresh for each test, that guards its models with the plugin."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

import pytest

# pytester forgets what an inner run imported; torch cannot be imported twice, so it comes first.
import pytest_neuralpower.predictor
import pytest_neuralpower.session
import pytest_neuralpower.tracing  # noqa: F401

MODELS = """
import torch
from torch import nn

def small():
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(64, 128, 3)
    )

def image(batch=8):
    return torch.randn(batch, 3, 64, 64)
"""


@pytest.fixture
def repo(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Repo:
    """A repository with ``models.py`` (``small()``, ``image()``); the plugin is installed."""
    monkeypatch.delenv("NEURALPOWER_PLATFORM", raising=False)
    pytester.makepyfile(models=MODELS)
    pytester.makeini("[pytest]\n")
    return Repo(pytester)


class Repo:
    """Writes test files and runs pytest on them."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester

    def write(self, body: str, name: str = "test_guard") -> None:
        """Write a test file that has the models at hand."""
        head = "import pytest\nfrom models import image, small\n"
        self.pytester.makepyfile(**{name: head + textwrap.dedent(body)})

    def run(self, *args: str) -> pytest.RunResult:
        """Run in this process, where torch is loaded already; a subprocess takes seconds."""
        off = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")  # the latter loads for 2 s
        return self.pytester.runpytest_inprocess(*off, *args)


@pytest.fixture
def line() -> Callable[[pytest.RunResult, str], str]:
    """The one output line that holds a text; fails when there is none."""

    def find(result: pytest.RunResult, text: str) -> str:
        found = [line for line in result.outlines + result.errlines if text in line]
        assert found, f"no line has {text!r}"
        return found[0]

    return find
