"""The ``neuralpower`` command: the same predictions without pytest. One file a command.

A command's module has ``EXAMPLE``, what to type after ``neuralpower``, and ``run``, whose signature
is the command's options and whose docstring is its help. It loads what computes inside ``run``, so
that ``--help`` and the shell stay fast.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pytest_neuralpower import __version__
from pytest_neuralpower.cli import (
    accuracy,
    advise,
    apply_plan,
    calibrate,
    compare,
    epr,
    explain,
    eyeriss,
    fit,
    measure,
    platforms,
    predict,
    prune,
    trace,
    verify,
)
from pytest_neuralpower.errors import NeuralPowerError

#: In the order of ``--help``.
COMMANDS = (
    trace,
    predict,
    compare,
    platforms,
    explain,
    eyeriss,
    epr,
    prune,
    apply_plan,
    advise,
    calibrate,
    verify,
    measure,
    fit,
    accuracy,
)

app = typer.Typer(
    name="neuralpower",
    help="Predict what one inference of a PyTorch model costs on a device, without the device.",
    no_args_is_help=True,
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    if version:
        typer.echo(f"pytest-neuralpower {__version__}")
        raise typer.Exit


for _command in COMMANDS:
    app.command(
        _command.__name__.rpartition(".")[2].replace("_", "-"),
        epilog=f"[bold]Example:[/bold] neuralpower {_command.EXAMPLE}",
    )(_command.run)


def main() -> None:
    """Run the command; a user's mistake is one line on stderr and exit code 2."""
    try:
        app()
    except NeuralPowerError as error:
        typer.echo(f"neuralpower: {error}", err=True)
        sys.exit(2)
