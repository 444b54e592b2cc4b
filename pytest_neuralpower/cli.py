"""The ``neuralpower`` command: the same predictions without pytest."""

from __future__ import annotations

import csv
import io
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pytest_neuralpower import __version__
from pytest_neuralpower.errors import ImportPathError, NeuralPowerError

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Layer, Trace
    from pytest_neuralpower.prediction import LayerPrediction, Prediction

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


def _example(command: str) -> str:
    return f"[bold]Example:[/bold] neuralpower {command}"


_RESNET = "pytorchcv.model_provider:get_model --arg name=resnet50 --input 1,3,224,224"


@app.command("trace", epilog=_example(f"trace {_RESNET}"))
def trace_command(
    model: Target,
    inputs: Inputs,
    arg: Arguments = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """List the layers of one call of MODEL: operations, bytes, shapes. Nothing is computed."""
    found = _trace(model, inputs, arg)
    rows = [_layer_row(layer) for layer in found]
    if as_json:
        _print_json(
            {
                "model": found.model,
                "batch": found.batch,
                "route": found.route,
                "fallbacks": list(found.fallbacks),
                "notes": list(found.notes),
                "layers": rows,
            }
        )
    elif as_csv:
        _print_csv(rows)
    else:
        from pytest_neuralpower.reports.terminal import trace_text  # noqa: PLC0415

        typer.echo(trace_text(found))


@app.command(epilog=_example(f"predict {_RESNET} --platform titanx"))
def predict(
    model: Target,
    inputs: Inputs,
    platform: Platform,
    arg: Arguments = None,
    top: Annotated[int, typer.Option(min=0, help="show the N dearest layers; 0 shows all")] = 10,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Predict energy, runtime and power of one call of MODEL, layer by layer."""
    from pytest_neuralpower.platform import load_platform  # noqa: PLC0415 - imports numpy

    loaded = load_platform(platform)
    prediction = loaded.predict(_trace(model, inputs, arg))
    if as_json:
        _print_json(prediction_record(prediction))
    elif as_csv:
        _print_csv([_prediction_row(layer) for layer in prediction.layers])
    else:
        from pytest_neuralpower.reports.terminal import prediction_text  # noqa: PLC0415

        typer.echo(prediction_text(prediction, top))


@app.command(epilog=_example("platforms titanx"))
def platforms(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME|PATH]", help="show one platform in full")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the shipped platforms with their tier and measured accuracy, or show one in full."""
    from pytest_neuralpower.platform import list_platforms, load_platform  # noqa: PLC0415
    from pytest_neuralpower.reports.platforms import platform_text, platforms_text  # noqa: PLC0415

    if name is not None:
        summary = load_platform(name).summary()
        _print_json(summary) if as_json else typer.echo(platform_text(summary))
        return
    summaries = [load_platform(shipped).summary() for shipped in list_platforms()]
    _print_json(summaries) if as_json else typer.echo(platforms_text(summaries))


@app.command(epilog=_example("explain titanx conv"))
def explain(
    platform: Annotated[str, typer.Argument(metavar="PLATFORM", help="a name or a path")],
    kind: Annotated[str, typer.Argument(metavar="KIND", help="kind of layer, such as conv")],
) -> None:
    """Write the equations by which a platform prices one kind of layer."""
    from pytest_neuralpower.platform import load_platform  # noqa: PLC0415 - imports numpy
    from pytest_neuralpower.reports.equations import explain_text  # noqa: PLC0415

    typer.echo(explain_text(load_platform(platform), kind))


@app.command(epilog=_example("epr models.yaml --platform titanx --alpha 2 --html epr.html"))
def epr(
    models: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="YAML list of models: name, model, inputs, error"),
    ],
    platform: Platform,
    alpha: Annotated[float, typer.Option(min=0, help="weight of the error; 0: energy alone")] = 1.0,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="plot energy against error (extra html)")
    ] = None,
    as_json: Json = False,
) -> None:
    """Rank models by energy-precision ratio: error^alpha x energy of one sample, lower is better.

    Each entry of FILE has a name, a model (package.module:factory), its inputs (a list of shapes),
    its error (a share, measured by you) and perhaps arguments of the factory.
    """
    from pytest_neuralpower.epr import rank, read_candidates  # noqa: PLC0415
    from pytest_neuralpower.platform import load_platform  # noqa: PLC0415 - imports numpy
    from pytest_neuralpower.reports.terminal import epr_text  # noqa: PLC0415

    loaded = load_platform(platform)
    ranked = rank(read_candidates(models, loaded), alpha=alpha)
    if html is not None:
        from pytest_neuralpower.reports.charts import energy_error_figure, write_page  # noqa: PLC0415

        write_page(energy_error_figure(ranked, platform=loaded.name, alpha=alpha), html)
    if as_json:
        _print_json([asdict(item) for item in ranked])
    else:
        typer.echo(epr_text(ranked, platform=loaded.name, alpha=alpha))


@app.command(epilog=_example("fit calibration/mydevice --out mydevice.json"))
def fit(
    directory: Annotated[
        Path, typer.Argument(metavar="DIRECTORY", help="folder with recipe.yaml and measured rows")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="platform file to write [NAME.json]")
    ] = None,
    data: Data = None,
) -> None:
    """Fit a platform from measured rows: choose each estimator by held-out configurations.

    Writes the platform file, and its card beside the recipe.
    """
    from pytest_neuralpower.calibrate.fit import fit_command  # noqa: PLC0415 - imports numpy
    from pytest_neuralpower.reports.platforms import platforms_text  # noqa: PLC0415

    path, saved = fit_command(directory, out, data_root=data)
    typer.echo(platforms_text([saved.summary()]))
    typer.echo(f"wrote {path}: use it with pytest --np-platform={path}")
    typer.echo(f"wrote {directory / 'README.md'}: its card")


@app.command(epilog=_example("accuracy titanx --data ../data --html accuracy.html"))
def accuracy(
    platform: Annotated[
        str,
        typer.Argument(
            metavar="PLATFORM", help="name of a folder in calibration/, or a calibration folder"
        ),
    ],
    profile: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="judge these measured rows, not the recipe's"),
    ] = None,
    networks: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="judge these measured networks, not the recipe's"),
    ] = None,
    data: Data = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="plot predicted against measured (html)")
    ] = None,
    as_json: Json = False,
) -> None:
    """Refit PLATFORM with held-out groups, and print how wrong it is beside baselines."""
    from pytest_neuralpower.calibrate.accuracy import (  # noqa: PLC0415 - imports numpy
        find_calibration,
        measure,
        points,
    )
    from pytest_neuralpower.reports.accuracy import accuracy_text  # noqa: PLC0415

    fitted = measure(find_calibration(platform), data_root=data, profile=profile, networks=networks)
    name = fitted.platform.name
    if html is not None:
        from pytest_neuralpower.reports.charts import accuracy_figure, write_page  # noqa: PLC0415

        write_page(accuracy_figure(list(points(fitted)), platform=name), html)
    if as_json:
        _print_json(dict(fitted.platform.accuracy))
    else:
        typer.echo(accuracy_text(name, fitted.platform.accuracy))


def _trace(target: str, inputs: list[str], arguments: list[str] | None) -> Trace:
    from pytest_neuralpower.model_source import load_model, parse_inputs  # noqa: PLC0415
    from pytest_neuralpower.tracing import trace  # noqa: PLC0415 - imports torch

    positional, keywords = parse_inputs(inputs)
    model = load_model(target, _parse_arguments(arguments or []))
    return trace(model.eval(), *positional, **keywords)  # one inference is what people ask for


def _parse_arguments(pairs: list[str]) -> dict[str, Any]:
    """``name=value`` pairs with YAML values: 3 is a number, true a boolean, [1, 2] a list."""
    import yaml  # noqa: PLC0415 - only needed with --arg

    parsed = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name.isidentifier():
            raise ImportPathError(f"--arg {pair}: write name=value")
        try:
            parsed[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ImportPathError(f"--arg {pair}: {value!r} is not a YAML value") from None
    return parsed


def _layer_row(layer: Layer) -> dict[str, Any]:
    cost = layer.cost
    return {
        "path": layer.path,
        "kind": layer.kind,
        "op": layer.op,
        "dtype": layer.dtype,
        "inputs": [list(tensor.shape) for tensor in layer.inputs],
        "weights": [list(tensor.shape) for tensor in layer.weights],
        "outputs": [list(tensor.shape) for tensor in layer.outputs],
        "params": dict(layer.params),
        **cost._asdict(),
    }


def _prediction_row(item: LayerPrediction) -> dict[str, Any]:
    return {
        **_layer_row(item.layer),
        "runtime_ms": item.runtime_ms,
        "power_w": item.power_w,
        "energy_mj": item.energy_mj,
        "estimator": item.estimator,
        "flags": list(item.flags),
        "runtime_interval_ms": item.runtime_interval_ms and list(item.runtime_interval_ms),
        "energy_interval_mj": item.energy_interval_mj and list(item.energy_interval_mj),
    }


def prediction_record(prediction: Prediction) -> dict[str, Any]:
    """The whole prediction in JSON types."""
    record = asdict(replace(prediction, errors=None))
    del record["errors"]
    record["layers"] = [_prediction_row(layer) for layer in prediction.layers]
    for total in ("energy_mj", "runtime_ms", "power_w"):
        record[total] = getattr(prediction, total)
    return record


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def _print_csv(rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _cell(value) for key, value in row.items()})
    typer.echo(text.getvalue(), nl=False)


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def main() -> None:
    """Run the command; a user's mistake is one line on stderr and exit code 2."""
    try:
        app()
    except NeuralPowerError as error:
        typer.echo(f"neuralpower: {error}", err=True)
        sys.exit(2)
