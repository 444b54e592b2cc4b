"""``neuralpower accuracy``: how wrong a platform is on rows it was not fitted on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pytest_neuralpower.cli.options import Data, Json
from pytest_neuralpower.cli.output import print_json

EXAMPLE = "accuracy titanx --data ../data --html accuracy.html"


def run(
    platform: Annotated[
        str,
        typer.Argument(
            metavar="PLATFORM", help="name of a folder in calibration/, or a calibration folder"
        ),
    ],
    profile: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="judge these measured rows, not the recipe's"),
    ] = None,
    networks: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="judge these measured networks, not the recipe's"),
    ] = None,
    data: Data = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="plot predicted against measured (html)")
    ] = None,
    as_json: Json = False,
) -> None:
    """Refit PLATFORM with held-out groups, and print how wrong it is beside baselines."""
    from pytest_neuralpower.calibrate.accuracy import (  # noqa: PLC0415 - imports numpy
        accuracy_shown,
        find_calibration,
        measure,
        points,
    )
    from pytest_neuralpower.cli.progress import spinner  # noqa: PLC0415 - imports rich
    from pytest_neuralpower.reports.accuracy import accuracy_text  # noqa: PLC0415

    folder = find_calibration(platform)
    if html is not None:
        from pytest_neuralpower.reports.charts import check_page  # noqa: PLC0415

        check_page(html)
    with spinner(f"refitting {folder.name}") as progress:
        fitted = measure(
            folder, data_root=data, profile=profile, networks=networks, progress=progress
        )
    found = accuracy_shown(fitted)
    name = fitted.platform.name
    if html is not None:
        from pytest_neuralpower.reports.charts import accuracy_figure, write_page  # noqa: PLC0415

        write_page(accuracy_figure(list(points(fitted)), platform=name), html)
        typer.echo(f"wrote {html}: predicted against measured", err=True)
    if as_json:
        print_json(found)
    else:
        typer.echo(accuracy_text(name, found))
