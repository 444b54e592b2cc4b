"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["RESNET50", "Arguments", "Csv", "Data", "Inputs", "Json", "Platform", "Target"]

#: A model to type in examples.
RESNET50 = "pytorchcv.model_provider:get_model --arg name=resnet50 --input 1,3,224,224"

Target = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="package.module:factory or path/to/file.py:factory"),
]
Inputs = Annotated[
    list[str],
    typer.Option(
        "--input",
        "-i",
        metavar="[NAME=]SHAPE[:DTYPE]",
        help="one input, such as 1,3,224,224 or input_ids=1,128:int64; repeat for more",
    ),
]
Arguments = Annotated[
    list[str] | None,
    typer.Option("--arg", "-a", metavar="NAME=VALUE", help="argument of the factory; repeatable"),
]
Platform = Annotated[
    str, typer.Option("--platform", "-p", metavar="NAME|PATH", help="see `neuralpower platforms`")
]
Data = Annotated[
    Path | None,
    typer.Option(
        envvar="NEURALPOWER_DATA", metavar="DIR", help="folder of public tables, if it uses any"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Csv = Annotated[bool, typer.Option("--csv", help="print CSV, one row a layer")]
