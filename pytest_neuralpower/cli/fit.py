"""``neuralpower fit``: a platform from measured rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pytest_neuralpower.cli.options import Data

EXAMPLE = "fit calibration/mydevice --out mydevice.json"


def run(
    directory: Annotated[
        Path, typer.Argument(metavar="DIRECTORY", help="folder with recipe.yaml and measured rows")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="platform file to write [NAME.json]")
    ] = None,
    data: Data = None,
) -> None:
    """Fit a platform from measured rows: choose each estimator by held-out configurations.

    Writes the platform file, and its card beside the recipe.
    """
    from pytest_neuralpower.calibrate.fit import fit_command  # noqa: PLC0415 - imports numpy
    from pytest_neuralpower.reports.platforms import platforms_text  # noqa: PLC0415

    path, saved = fit_command(directory, out, data_root=data)
    typer.echo(platforms_text([saved.summary()]))
    typer.echo(f"wrote {path}: use it with pytest --np-platform={path}")
    typer.echo(f"wrote {directory / 'README.md'}: its card")
