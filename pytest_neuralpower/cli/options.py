"""Arguments and options that several commands share, and what is done with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pytest_neuralpower.errors import OptionError
from pytest_neuralpower.text import write_utf_8

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Trace

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
PlatformName = Annotated[
    str, typer.Option("--platform", "-p", metavar="NAME|PATH", help="see `neuralpower platforms`")
]
Estimators = Annotated[
    Literal["best", "neuralpower"],
    typer.Option(
        "--estimator",
        help="what prices layers: the estimators chosen by held-out error, or the NeuralPower "
        "paper's polynomials (conv, linear, pool)",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        envvar="NEURALPOWER_DATA", metavar="DIR", help="folder of public tables, if it uses any"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Csv = Annotated[bool, typer.Option("--csv", help="print CSV, one row a layer")]


def check_format(*, as_json: bool, as_csv: bool) -> None:
    """Raise :class:`OptionError` when both formats were asked for."""
    if as_json and as_csv:
        raise OptionError("--json and --csv: only one format can be printed; give one of them")


def print_json(value: Any) -> None:
    """Print ``value``, of JSON types or a struct of them, indented."""
    from msgspec import to_builtins

    write_utf_8()
    typer.echo(json.dumps(value, indent=2, default=to_builtins))


def print_result(result: Any, *, as_json: bool) -> None:
    """Print what a command found, by its own ``to_json`` or ``text``."""
    if as_json:
        print_json(result.to_json())
    else:
        typer.echo(result.text())


def trace_model(target: str, inputs: Sequence[str], arguments: Sequence[str] | None) -> Trace:
    """Trace one inference of the model that ``--input`` and ``--arg`` describe.

    Raises
    ------
    NeuralPowerError
        The model cannot be built or traced; one line says why.
    """
    from pytest_neuralpower.model_source import load_model, parse_inputs, read_arguments
    from pytest_neuralpower.tracing import trace

    positional, keywords = parse_inputs(inputs)
    model = load_model(target, read_arguments(arguments or []))
    return trace(model.eval(), *positional, **keywords)  # one inference is what people ask for


@contextmanager
def spinner(title: str) -> Iterator[Callable[[str], None]]:
    """A line with ``title``, the time it has taken, and what the function given is told."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(title)
        yield lambda step: bar.update(task, description=f"{title}: {step}")


# Options that the commands which measure share.

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
        help="where energy is read; each is tested under load before it is used",
    ),
]
Watts = Annotated[
    float | None,
    typer.Option(
        metavar="W", help="power under load, if you know it: energy is then estimated from it"
    ),
]
Thorough = Annotated[bool, typer.Option("--thorough", help="measure several times longer")]


Force = Annotated[bool, typer.Option("--force", help="overwrite the file if it is there")]


def refuse_overwriting(path: Path, *, force: bool) -> None:
    """Raise OptionError for a file that is there, unless it is to be overwritten."""
    if path.exists() and not force:
        raise OptionError(f"{path} is there: name another in --out, or overwrite it with --force")
