"""``neuralpower predict``: what one call costs."""

from __future__ import annotations

from typing import Annotated

import typer

from pytest_neuralpower.cli.model import trace_model
from pytest_neuralpower.cli.options import RESNET50, Arguments, Csv, Inputs, Json, Platform, Target
from pytest_neuralpower.cli.output import check_format, print_json

EXAMPLE = f"predict {RESNET50} --platform titanx"


def run(
    model: Target,
    inputs: Inputs,
    platform: Platform,
    arg: Arguments = None,
    top: Annotated[int, typer.Option(min=0, help="show the N dearest layers; 0 shows all")] = 10,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Predict energy, runtime and power of one call of MODEL, layer by layer."""
    from pytest_neuralpower.platform import load_platform  # noqa: PLC0415 - imports numpy
    from pytest_neuralpower.reports import records, terminal  # noqa: PLC0415

    check_format(as_json=as_json, as_csv=as_csv)
    loaded = load_platform(platform)
    prediction = loaded.predict(trace_model(model, inputs, arg))
    if as_json:
        print_json(records.prediction_record(prediction))
    elif as_csv:
        rows = map(records.layer_prediction_record, prediction.layers)
        typer.echo(records.csv_text(rows), nl=False)
    else:
        typer.echo(terminal.prediction_text(prediction, top))
