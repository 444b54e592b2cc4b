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
    from pytest_neuralpower.eyeriss import explanation  # noqa: PLC0415
    from pytest_neuralpower.platform import Platform, load_platform  # noqa: PLC0415 - numpy
    from pytest_neuralpower.reports import equations  # noqa: PLC0415

    loaded = load_platform(platform)
    if isinstance(loaded, Platform):
        typer.echo(equations.explain_text(loaded, kind))
    else:
        typer.echo(explanation.explain_text(loaded, kind))
