"""``neuralpower advise``: which widths to move to a plateau edge."""

from __future__ import annotations

from typing import Annotated

import typer

from pytest_neuralpower.cli.model import parse_arguments
from pytest_neuralpower.cli.options import RESNET50, Arguments, Inputs, Json, Platform, Target
from pytest_neuralpower.cli.output import print_json
from pytest_neuralpower.errors import OptionError

EXAMPLE = f"advise {RESNET50} --platform titanx --mj 1400"


def run(
    model: Target,
    inputs: Inputs,
    platform: Platform,
    arg: Arguments = None,
    mj: Annotated[float | None, typer.Option(help="budget: energy of one call in mJ")] = None,
    ms: Annotated[float | None, typer.Option(help="budget: runtime of one call in ms")] = None,
    channels: Annotated[
        int | None,
        typer.Option(min=1, help="most channels by which a width may move [default: an eighth]"),
    ] = None,
    effort: Annotated[
        int | None,
        typer.Option(min=1, help="most layers to trace and price in the search [default: 100000]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say which widths of MODEL to move to a plateau edge of a platform. It changes nothing."""
    from pytest_neuralpower.model_source import load_model, parse_inputs  # noqa: PLC0415
    from pytest_neuralpower.remedy.advice import DEFAULT_EFFORT, advise  # noqa: PLC0415
    from pytest_neuralpower.remedy.calls import Call  # noqa: PLC0415
    from pytest_neuralpower.reports import advice  # noqa: PLC0415

    if mj is not None and ms is not None:
        raise OptionError("--mj and --ms: advice is for one budget; give one of them")
    budget = f"{mj} mJ" if mj is not None else f"{ms} ms" if ms is not None else None
    positional, keywords = parse_inputs(inputs)
    built = load_model(model, parse_arguments(arg or []))
    advised = advise(
        built.eval(),
        Call(tuple(positional), keywords),
        platform,
        budget,
        channels=channels,
        effort=effort or DEFAULT_EFFORT,
    )
    if as_json:
        print_json(advice.advice_record(advised))
    else:
        typer.echo(advice.advice_text(advised))
