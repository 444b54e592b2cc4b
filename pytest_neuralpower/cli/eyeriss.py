"""``neuralpower eyeriss``: layers of an Eyeriss-like array by data type, and their table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pytest_neuralpower.cli.model import trace_model
from pytest_neuralpower.cli.options import Arguments, Csv, Json
from pytest_neuralpower.cli.output import check_format, print_json
from pytest_neuralpower.errors import OptionError

EXAMPLE = "eyeriss mypackage.models:alexnet --input 16,3,227,227 --write alexnet.txt"


def run(
    source: Annotated[
        str,
        typer.Argument(
            metavar="TABLE|MODEL",
            help="a table of 25 columns a layer, as MIT's energy estimation tool takes it, "
            "or package.module:factory",
        ),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input", "-i", metavar="[NAME=]SHAPE[:DTYPE]", help="one input of MODEL; repeatable"
        ),
    ] = None,
    arg: Arguments = None,
    platform: Annotated[
        str,
        typer.Option(
            "--platform",
            "-p",
            metavar="NAME|PATH",
            help="eyeriss, eyeriss-accelergy, or a file with bits, sizes and costs of your own",
        ),
    ] = "eyeriss",
    write: Annotated[
        Path | None, typer.Option(metavar="TABLE", help="write the layers as a table, to edit")
    ] = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Energy of every layer by data type: input map, output map, weight, computation.

    A table has each layer's shape, batch, zero counts and bit widths. --write makes one from MODEL,
    with no zeros: count yours, edit it, and give it back as TABLE.
    """
    from pytest_neuralpower.eyeriss import table  # noqa: PLC0415 - imports numpy
    from pytest_neuralpower.eyeriss.platform import EyerissPlatform  # noqa: PLC0415
    from pytest_neuralpower.eyeriss.report import energy_records, energy_text  # noqa: PLC0415
    from pytest_neuralpower.platform import load_platform  # noqa: PLC0415
    from pytest_neuralpower.reports.records import csv_text  # noqa: PLC0415

    check_format(as_json=as_json, as_csv=as_csv)
    array = load_platform(platform)
    if not isinstance(array, EyerissPlatform):
        raise OptionError(
            f"--platform {platform}: it is no Eyeriss-like array; give eyeriss, eyeriss-accelergy "
            "or the path of a file that describes one"
        )
    if ":" in source:
        if not inputs:
            raise OptionError(f"{source}: a model needs its inputs; add --input 1,3,227,227")
        rows = table.rows_from_layers(trace_model(source, inputs, arg), bits=array.bits)
    elif inputs or arg:
        raise OptionError(f"{source}: a table has its own inputs; leave out --input and --arg")
    else:
        rows = table.read_table(source)
    if not rows:
        raise OptionError(f"{source}: no layer multiplies and accumulates; `neuralpower predict` "
                          "prices the others")  # fmt: skip
    energies = table.table_energy(rows, costs=array.costs, hardware=array.hardware)
    records = energy_records(rows, energies)
    if write is not None:
        table.write_table(write, rows)
    if as_json:
        print_json(records)
    elif as_csv:
        typer.echo(csv_text(records), nl=False)
    else:
        typer.echo(energy_text(records, array))
    if write is not None:
        typer.echo(f"wrote {write}: {len(rows)} layers", err=True)
