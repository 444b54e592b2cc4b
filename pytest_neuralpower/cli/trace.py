"""``neuralpower trace``: the layers of a model."""

from __future__ import annotations

import typer

from pytest_neuralpower.cli.model import trace_model
from pytest_neuralpower.cli.options import RESNET50, Arguments, Csv, Inputs, Json, Target
from pytest_neuralpower.cli.output import check_format, print_json

EXAMPLE = f"trace {RESNET50}"


def run(
    model: Target,
    inputs: Inputs,
    arg: Arguments = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """List the layers of one call of MODEL: operations, bytes, shapes. Nothing is computed."""
    from pytest_neuralpower.reports import records, terminal  # noqa: PLC0415

    check_format(as_json=as_json, as_csv=as_csv)
    found = trace_model(model, inputs, arg)
    if as_json:
        print_json(records.trace_record(found))
    elif as_csv:
        typer.echo(records.csv_text(map(records.layer_record, found)), nl=False)
    else:
        typer.echo(terminal.trace_text(found))
