"""Options that the commands which measure share."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = [
    "DeviceOption",
    "Dtype",
    "MeterOption",
    "Mode",
    "Thorough",
    "Watts",
]

DeviceOption = Annotated[
    str,
    typer.Option(metavar="cpu|cuda:N|cuda:all", help="[the first GPU, else the CPU]"),
]
Dtype = Annotated[
    str, typer.Option(metavar="float32|bfloat16|float16", help="dtype of the networks [float32]")
]
Mode = Annotated[
    str,
    typer.Option(
        metavar="eager|graph", help="how a GPU runs them; graph: replayed CUDA graphs [eager]"
    ),
]
MeterOption = Annotated[
    str,
    typer.Option(
        metavar="auto|nvml|rapl|ina3221|zeus|none",
        help="where energy is read; each is proven under load before it is used",
    ),
]
Watts = Annotated[
    float | None,
    typer.Option(metavar="W", help="power under load as you know it: energy is then estimated"),
]
Thorough = Annotated[bool, typer.Option("--thorough", help="several times longer, for keeps")]
