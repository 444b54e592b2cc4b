"""What to do about a budget that is too tight: advise, prune, apply-plan."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pytest_neuralpower.cli import options
from pytest_neuralpower.errors import CompressError, OptionError, UnsupportedGraphError
from pytest_neuralpower.model_source import (
    Call,
    import_object,
    load_model,
    parse_inputs,
    read_arguments,
)

if TYPE_CHECKING:
    from torch import nn


def advise_command(
    model: options.Target,
    inputs: options.Inputs,
    platform: options.PlatformName,
    arg: options.Arguments = None,
    estimator: options.Estimators = "best",
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
    as_json: options.Json = False,
) -> None:
    """Say which widths of MODEL to move to a plateau edge of a platform. It changes nothing."""
    from pytest_neuralpower.compress.advice import DEFAULT_EFFORT, advise
    from pytest_neuralpower.platform.catalog import as_platform, priced_by

    if mj is not None and ms is not None:
        raise OptionError("--mj and --ms: advice is for one budget; give one of them")
    budget = f"{mj} mJ" if mj is not None else f"{ms} ms" if ms is not None else None
    positional, keywords = parse_inputs(inputs)
    built = load_model(model, read_arguments(arg or []))
    advised = advise(
        built.eval(),
        Call(tuple(positional), keywords),
        priced_by(as_platform(platform), estimator),
        budget,
        channels=channels,
        effort=effort or DEFAULT_EFFORT,
    )
    options.print_result(advised, as_json=as_json)


def _check_outputs(files: Mapping[str, Path | None]) -> None:
    """Raise :class:`OptionError` where a file, by its option, could not be written in the end."""
    for option, path in files.items():
        if path is None:
            continue
        if path.is_dir():
            raise OptionError(f"{option} {path}: it is a folder; name a file in it")
        if not path.parent.is_dir():
            raise OptionError(f"{option} {path}: there is no folder {path.parent}; make it first")
        if not os.access(path.parent, os.W_OK):
            raise OptionError(
                f"{option} {path}: {path.parent} cannot be written; name another file"
            )


def _load_trained(target: str, arguments: Sequence[str] | None, state: Path | None) -> nn.Module:
    """The model that an import path names, with values, and perhaps a state dict loaded.

    Raises
    ------
    NeuralPowerError
        It cannot be built, or the state dict is not its own.
    """
    from torch import nn

    from pytest_neuralpower.compress.plan import load_state

    model = load_model(target, read_arguments(arguments or []), with_values=True)
    if not isinstance(model, nn.Module):
        raise CompressError(f"{target} returned a {type(model).__name__}, not a torch.nn.Module")
    if state is not None:
        try:
            model.load_state_dict(load_state(state))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise CompressError(f"{state} is not of this model: {reason}") from None
    return model


def _read_calibration(source: str) -> Any:
    """Batches from ``file.py:function`` (called without arguments) or from a ``.pt`` file."""
    if source.endswith((".pt", ".pth")):
        from pytest_neuralpower.compress.plan import load_tensors

        return load_tensors(source)
    found = import_object(source)
    if not callable(found):
        return found
    try:
        return found()
    except TypeError as error:
        raise OptionError(f"--calibration {source}: called without arguments, {error}") from None


def prune_command(
    model: options.Target,
    inputs: options.Inputs,
    platform: options.PlatformName,
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
    arg: options.Arguments = None,
    estimator: options.Estimators = "best",
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
    as_json: options.Json = False,
) -> None:
    """Prune MODEL until one call keeps its budget, and write the plan that does it again.

    Exits with 0 if the budget is met, 1 if it cannot be met (the best plan is written), 2 if the
    command was misused, and 3 if the channels of MODEL cannot be told apart.
    """
    from pytest_neuralpower.compress.prune import prune_to_budget
    from pytest_neuralpower.platform.catalog import as_platform, priced_by

    _check_outputs({"--plan": plan, "--weights": weights})
    positional, keywords = parse_inputs(inputs)
    try:
        result = prune_to_budget(
            _load_trained(model, arg, state),
            Call(tuple(positional), keywords),
            priced_by(as_platform(platform), estimator),
            budget,
            calibration=_read_calibration(calibration),
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
    options.print_result(result, as_json=as_json)
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


def apply_plan_command(
    model: options.Target,
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
    arg: options.Arguments = None,
) -> None:
    """Apply PLAN to a fresh MODEL: the same channels or weights are removed.

    Exits with 3 if the channels of MODEL cannot be told apart.
    """
    from pytest_neuralpower.compress.plan import apply_plan, read_plan, save_state, weights_hash

    _check_outputs({"--out": out})
    found = read_plan(plan)
    try:
        pruned = apply_plan(_load_trained(model, arg, state), found, weights=weights, inplace=True)
    except UnsupportedGraphError as error:
        typer.echo(f"neuralpower: {error}", err=True)
        raise typer.Exit(3) from None
    save_state(pruned, out)
    same = weights_hash(pruned.state_dict()) == found.pruned_weights
    typer.echo(
        f"wrote {out}: "
        + ("the weights of the plan, bit for bit" if same else "the model's own weights, pruned")
    )
