"""A small model repository, made afresh for each test, that guards its models with the plugin."""

from __future__ import annotations

import contextlib
import importlib
import textwrap
from collections.abc import Callable

import pytest
import torch

from pytest_neuralpower import NeuralPowerError, predict

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


class Spectrum(torch.nn.Module):
    """An operation without a shape rule."""

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        return torch.fft.fft2(signal).abs()


@pytest.fixture(scope="session", autouse=True)
def everything_loaded() -> None:
    """Load all that an inner run may load: pytester makes it forget what it loaded itself.

    Compiled modules, such as those of numpy and torch, cannot be loaded twice in one process; to
    load the others again takes half of an inner run.
    """
    for name in (
        "sklearn.linear_model",
        "tabulate",
        "torch_pruning",
        "pytest_neuralpower.compress.on_failure",
        "pytest_neuralpower.plugin.finish",
        "pytest_neuralpower.plugin.session",
    ):
        importlib.import_module(name)
    predict(Spectrum(), torch.ones(4, 4), platform="titanx")
    with contextlib.suppress(NeuralPowerError):
        predict(torch.nn.Conv2d(3, 4, 3), torch.ones(1, 2, 8, 8), platform="titanx")


@pytest.fixture(autouse=True)
def outside_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as on a developer's machine: in a CI pytest repeats whole messages in its summary."""
    for name in ("CI", "BUILD_NUMBER"):
        monkeypatch.delenv(name, raising=False)


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
