"""``neuralpower verify``: does a platform still hold on its device?"""

from __future__ import annotations

from typing import Annotated

import typer

from pytest_neuralpower.cli.options import Json
from pytest_neuralpower.cli.output import print_json

EXAMPLE = "verify my-gpu/my-gpu.json"


def run(
    platform: Annotated[str, typer.Argument(metavar="PLATFORM", help="a name or a path")],
    minutes: Annotated[
        float, typer.Option(min=0.1, metavar="M", help="time to measure, at most")
    ] = 1.7,
    as_json: Json = False,
) -> None:
    """Measure some of PLATFORM's networks again on its device, and show each kind's drift.

    Exit code 0: it holds; 1: it does not, calibrate anew; 2: it could not be verified.
    """
    from pytest_neuralpower.measure.progress import choose_progress  # noqa: PLC0415
    from pytest_neuralpower.measure.verify import verify  # noqa: PLC0415 - imports torch
    from pytest_neuralpower.platform import load_platform  # noqa: PLC0415 - imports numpy
    from pytest_neuralpower.reports.measured import (  # noqa: PLC0415
        verification_record,
        verification_text,
    )

    found = verify(load_platform(platform), choose_progress(), seconds=60 * minutes)
    if as_json:
        print_json(verification_record(found))
    else:
        typer.echo(verification_text(found))
        if found.unjudged:
            typer.echo(found.unjudged)
    raise typer.Exit(0 if found.holds else 1)
