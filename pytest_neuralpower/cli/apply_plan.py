"""``neuralpower apply-plan``: remove from a fresh model what a plan removed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pytest_neuralpower.cli.options import Arguments, Target
from pytest_neuralpower.cli.pruning import check_outputs, load_trained

EXAMPLE = "apply-plan models.py:trained plan.json --weights pruned.pt --out again.pt"


def run(
    model: Target,
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="written by `neuralpower prune`")],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="write the state dict of the pruned model (.pt)")
    ],
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="pruned state dict; without it MODEL's own weights stay"),
    ] = None,
    state: Annotated[
        Path | None, typer.Option(metavar="FILE", help="load MODEL's trained state dict first")
    ] = None,
    arg: Arguments = None,
) -> None:
    """Apply PLAN to a fresh MODEL: the same channels or weights are removed.

    Exits with 3 if the channels of MODEL cannot be told apart.
    """
    from pytest_neuralpower.errors import UnsupportedGraphError  # noqa: PLC0415
    from pytest_neuralpower.remedy.apply_plan import apply_plan  # noqa: PLC0415 - imports torch
    from pytest_neuralpower.remedy.fingerprint import weights_hash  # noqa: PLC0415
    from pytest_neuralpower.remedy.plan import read_plan  # noqa: PLC0415
    from pytest_neuralpower.remedy.tensor_files import save_state  # noqa: PLC0415

    check_outputs({"--out": out})
    found = read_plan(plan)
    try:
        pruned = apply_plan(load_trained(model, arg, state), found, weights=weights, inplace=True)
    except UnsupportedGraphError as error:
        typer.echo(f"neuralpower: {error}", err=True)
        raise typer.Exit(3) from None
    save_state(pruned, out)
    same = weights_hash(pruned.state_dict()) == found.pruned_weights
    typer.echo(
        f"wrote {out}: "
        + ("the weights of the plan, bit for bit" if same else "the model's own weights, pruned")
    )
