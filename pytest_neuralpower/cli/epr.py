"""``neuralpower epr``: several models by error and energy together."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pytest_neuralpower.cli.options import Json, Platform
from pytest_neuralpower.cli.output import print_json

EXAMPLE = "epr models.yaml --platform titanx --alpha 2 --html epr.html"


def run(
    models: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="YAML list of models: name, model, inputs, error"),
    ],
    platform: Platform,
    alpha: Annotated[float, typer.Option(min=0, help="weight of the error; 0: energy alone")] = 1.0,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="plot energy against error (extra html)")
    ] = None,
    as_json: Json = False,
) -> None:
    """Rank models by energy-precision ratio: error^alpha x energy of one sample, lower is better.

    Each entry of FILE has a name, a model (package.module:factory), its inputs (a list of shapes,
    such as [[1, 3, 224, 224]]), its error (a share, measured by you) and perhaps arguments of the
    factory.
    """
    from pytest_neuralpower.epr import rank, read_candidates  # noqa: PLC0415
    from pytest_neuralpower.platform import load_platform  # noqa: PLC0415 - imports numpy
    from pytest_neuralpower.reports.terminal import epr_text  # noqa: PLC0415

    if html is not None:
        from pytest_neuralpower.reports.charts import check_page  # noqa: PLC0415

        check_page(html)
    loaded = load_platform(platform)
    ranked = rank(read_candidates(models, loaded), alpha=alpha)
    if html is not None:
        from pytest_neuralpower.reports.charts import energy_error_figure, write_page  # noqa: PLC0415

        write_page(energy_error_figure(ranked, platform=loaded.name, alpha=alpha), html)
    if as_json:
        print_json([asdict(item) for item in ranked])
    else:
        typer.echo(epr_text(ranked, platform=loaded.name, alpha=alpha))
