"""The command, run in this process."""

from __future__ import annotations

import sys

import pytest

from pytest_neuralpower import cli


@pytest.fixture
def neuralpower(monkeypatch, capsys):
    """Run the command in this process: (exit code, standard output, standard error)."""

    def run(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["neuralpower", *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def call():
    """Options of a convolution that the command can build, and of one call of it."""
    values = ("in_channels=3", "out_channels=8", "kernel_size=3")
    arguments = [part for value in values for part in ("--arg", value)]
    return ["torch.nn:Conv2d", *arguments, "--input", "2,3,32,32"]
