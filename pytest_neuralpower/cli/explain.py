"""``neuralpower explain``: the equations behind a platform's predictions."""

from __future__ import annotations

from typing import Annotated

import typer

EXAMPLE = "explain titanx conv"


def run(
    platform: Annotated[str, typer.Argument(metavar="PLATFORM", help="a name or a path")],
    kind: Annotated[str, typer.Argument(metavar="KIND", help="kind of layer, such as conv")],
) -> None:
    """Write the equations by which a platform prices one kind of layer."""
    from pytest_neuralpower.platform import load_platform  # noqa: PLC0415 - imports numpy
    from pytest_neuralpower.reports.equations import explain_text  # noqa: PLC0415

    typer.echo(explain_text(load_platform(platform), kind))
