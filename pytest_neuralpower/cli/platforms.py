"""``neuralpower platforms``: what can be predicted on, and how far to trust it."""

from __future__ import annotations

from typing import Annotated

import typer

from pytest_neuralpower.cli.options import Json
from pytest_neuralpower.cli.output import print_json

EXAMPLE = "platforms titanx"


def run(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME|PATH]", help="show one platform in full")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the shipped platforms with their tier and measured accuracy, or show one in full."""
    from pytest_neuralpower.platform import list_platforms, load_platform  # noqa: PLC0415
    from pytest_neuralpower.reports.platforms import platform_text, platforms_text  # noqa: PLC0415

    if name is not None:
        summary = load_platform(name).summary()
        print_json(summary) if as_json else typer.echo(platform_text(summary))
        return
    summaries = [load_platform(shipped).summary() for shipped in list_platforms()]
    print_json(summaries) if as_json else typer.echo(platforms_text(summaries))
