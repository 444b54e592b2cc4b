"""The ``neuralpower`` command: the same predictions without pytest. One file a family of commands.

A command is a function: its signature is the command's options, its docstring the help. It loads
what computes inside itself, so that ``--help`` and the shell stay fast.
"""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from pytest_neuralpower import __version__
from pytest_neuralpower.cli import (
    baselines,
    calibrate,
    compare,
    compress,
    platforms,
    predict,
    schema,
)
from pytest_neuralpower.cli.options import RESNET50
from pytest_neuralpower.errors import NeuralPowerError
from pytest_neuralpower.text import write_any_text

#: Commands with an example of what to type after ``neuralpower``, in the order of ``--help``.
COMMANDS = (
    (predict.trace_command, f"trace {RESNET50}"),
    (predict.predict_command, f"predict {RESNET50} --platform titanx"),
    (
        predict.generate_command,
        (
            "generate models.py:llama --platform h200 --prompt 2048 --new-tokens 256 --batch 16 "
            "--draft models.py:small"
        ),
    ),
    (compare.compare_command, "compare main HEAD --folder budgets/baselines"),
    (predict.explain_command, "explain titanx conv"),
    (
        predict.eyeriss_command,
        "eyeriss mypackage.models:alexnet --input 16,3,227,227 --write alexnet.txt",
    ),
    (predict.epr_command, "epr models.yaml --platform titanx --alpha 2 --html epr.html"),
    (
        compress.prune_command,
        (
            "prune models.py:trained --input 16,1,28,28 --platform eyeriss --budget 2mJ "
            "--granularity weight --calibration models.py:images --plan plan.json "
            "--weights pruned.pt"
        ),
    ),
    (
        compress.apply_plan_command,
        "apply-plan models.py:trained plan.json --weights pruned.pt --out out.pt",
    ),
    (compress.advise_command, f"advise {RESNET50} --platform titanx --mj 1400"),
    (calibrate.calibrate_command, "calibrate my-gpu --device cuda:0 --dtype bfloat16 --minutes 10"),
    (calibrate.verify_command, "verify my-gpu/my-gpu.json"),
    (calibrate.measure_command, f"measure {RESNET50} --platform my-gpu/my-gpu.json"),
    (calibrate.fit_command, "fit calibration/mydevice --out mydevice.json"),
    (calibrate.adapt_command, "adapt rtx4090 runs.csv"),
    (schema.schema_command, "schema budget-file > budget-file.schema.json"),
    (calibrate.accuracy_command, "accuracy titanx --data ../data --html accuracy.html"),
)

app = typer.Typer(
    name="neuralpower",
    help="Predict what one inference of a PyTorch model costs on a device, without the device.",
    no_args_is_help=True,
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    if version:
        typer.echo(f"pytest-neuralpower {__version__}")
        raise typer.Exit


for _command, _example in COMMANDS:
    app.command(
        _command.__name__.removesuffix("_command").replace("_", "-"),
        epilog=f"[bold]Example:[/bold] neuralpower {_example}",
    )(_command)
app.add_typer(platforms.app, name="platforms")
app.add_typer(baselines.app, name="baselines")


def main() -> None:
    """Run the command; a user's mistake is one line on stderr and exit code 2.

    So is what else fails, with its traceback: 1 is what a command found, such as a regression.
    """
    write_any_text(sys.stdout, sys.stderr)
    try:
        app()
    except NeuralPowerError as error:
        typer.echo(f"neuralpower: {error}", err=True)
        sys.exit(error.exit_code)
    except Exception:
        traceback.print_exc()
        sys.exit(2)
