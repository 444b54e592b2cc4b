"""``neuralpower prune``: remove channels or weights until one call keeps its budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pytest_neuralpower.cli.options import Arguments, Inputs, Json, Platform, Target
from pytest_neuralpower.cli.output import print_json
from pytest_neuralpower.cli.pruning import check_outputs, load_trained, read_calibration

EXAMPLE = (
    "prune models.py:trained --input 16,1,28,28 --platform eyeriss --budget 2mJ "
    "--granularity weight --calibration models.py:images --plan plan.json --weights pruned.pt"
)


def run(
    model: Target,
    inputs: Inputs,
    platform: Platform,
    budget: Annotated[
        str, typer.Option("--budget", "-b", metavar="LIMIT", help="such as 12mJ or 3.5ms")
    ],
    calibration: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help="inputs without labels: file.py:function that returns batches, or a .pt file",
        ),
    ],
    plan: Annotated[Path, typer.Option(metavar="FILE", help="write what was removed (JSON)")],
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write the pruned state dict (.pt)")
    ] = None,
    state: Annotated[
        Path | None, typer.Option(metavar="FILE", help="load MODEL's trained state dict first")
    ] = None,
    arg: Arguments = None,
    score: Annotated[
        str, typer.Option(metavar="PATH", help="file.py:function(model) -> score, higher is better")
    ] = "",
    max_drop: Annotated[
        float | None, typer.Option(metavar="X", help="how far the score may fall")
    ] = None,
    granularity: Annotated[str, typer.Option(metavar="channel|weight")] = "channel",
    criterion: Annotated[str, typer.Option(metavar="output_error|magnitude")] = "output_error",
    order: Annotated[str, typer.Option(metavar="energy|greedy")] = "energy",
    widths: Annotated[
        str, typer.Option(metavar="plateau|N", help="step between plateau edges, or multiples of N")
    ] = "plateau",
    reconstruct: Annotated[bool, typer.Option(help="solve what stays by least squares")] = True,
    finetune: Annotated[
        str, typer.Option(metavar="PATH", help="file.py:function(model, masks, round) that trains")
    ] = "",
    rounds: Annotated[int, typer.Option(min=1)] = 1,
    seed: Annotated[int, typer.Option(help="of the sampling of feature maps")] = 0,
    as_json: Json = False,
) -> None:
    """Prune MODEL until one call keeps its budget, and write the plan that does it again.

    Exits with 0 if the budget is met, 1 if it cannot be (the best plan is written), 2 if it was
    asked wrongly, and 3 if the channels of MODEL cannot be told apart.
    """
    from pytest_neuralpower.errors import UnsupportedGraphError  # noqa: PLC0415
    from pytest_neuralpower.model_source import import_object, parse_inputs  # noqa: PLC0415
    from pytest_neuralpower.remedy.calls import Call  # noqa: PLC0415 - imports torch
    from pytest_neuralpower.remedy.prune import prune_to_budget  # noqa: PLC0415
    from pytest_neuralpower.reports.prune import pruned_record, pruned_text  # noqa: PLC0415

    check_outputs({"--plan": plan, "--weights": weights})
    positional, keywords = parse_inputs(inputs)
    try:
        result = prune_to_budget(
            load_trained(model, arg, state),
            Call(tuple(positional), keywords),
            platform,
            budget,
            calibration=read_calibration(calibration),
            score_fn=import_object(score) if score else None,
            max_drop=max_drop,
            granularity=granularity,  # type: ignore[arg-type] # checked there
            criterion=criterion,  # type: ignore[arg-type]
            order=order,  # type: ignore[arg-type]
            widths=int(widths) if widths.isdecimal() else widths,  # type: ignore[arg-type]
            reconstruct="least_squares" if reconstruct else None,
            finetune=import_object(finetune) if finetune else None,
            rounds=rounds,
            seed=seed,
            inplace=True,
        )
    except UnsupportedGraphError as error:
        typer.echo(f"neuralpower: {error}", err=True)
        raise typer.Exit(3) from None
    result.save(plan, weights)
    if as_json:
        print_json(pruned_record(result))
    else:
        typer.echo(pruned_text(result))
    written = f"wrote {plan}" + (f" and {weights}" if weights else "")
    typer.echo(written, err=True)
    if result.met:
        solved = f', weights="{weights}"' if weights else ""
        again = f'pytest_neuralpower.apply_plan(model, "{plan}"{solved})'
        typer.echo(
            f"next: where the test builds its model, return {again}"
            if granularity == "channel"
            else f"next: {again} builds it; budget tests price zeros as any value, and do not see "
            "what single weights save",
            err=True,
        )
    raise typer.Exit(0 if result.met else 1)
