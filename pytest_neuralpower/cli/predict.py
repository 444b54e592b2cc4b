"""Predictions and what they are made of: trace, predict, epr, eyeriss, explain."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pytest_neuralpower.cli import options
from pytest_neuralpower.errors import OptionError
from pytest_neuralpower.layers import CacheDtype, Engine, Experts, Quantization, Sampling


def trace_command(
    model: options.Target,
    inputs: options.Inputs,
    arg: options.Arguments = None,
    as_json: options.Json = False,
    as_csv: options.Csv = False,
) -> None:
    """List the layers of one call of MODEL: operations, bytes, shapes. Nothing is computed."""
    from pytest_neuralpower.report import records, terminal

    options.check_format(as_json=as_json, as_csv=as_csv)
    found = options.trace_model(model, inputs, arg)
    if as_json:
        options.print_json(records.trace_record(found))
    elif as_csv:
        typer.echo(records.csv_text(map(records.layer_record, found)), nl=False)
    else:
        typer.echo(terminal.trace_text(found))


def predict_command(
    model: options.Target,
    inputs: options.Inputs,
    platform: Annotated[
        list[str],
        typer.Option(
            "--platform",
            "-p",
            metavar="NAME|PATH",
            help="see `neuralpower platforms`; several are printed side by side",
        ),
    ],
    arg: options.Arguments = None,
    estimator: options.Estimators = "best",
    top: Annotated[
        int, typer.Option(min=0, help="show the N most expensive layers; 0 shows all")
    ] = 10,
    as_json: options.Json = False,
    as_csv: options.Csv = False,
) -> None:
    """Predict energy, runtime and power of one call of MODEL, layer by layer."""
    from pytest_neuralpower.platform.catalog import load_platform, priced_by
    from pytest_neuralpower.report import records, terminal

    options.check_format(as_json=as_json, as_csv=as_csv)
    names = dict.fromkeys(platform)  # one given twice is no comparison
    if as_csv and len(names) > 1:
        raise OptionError("--csv prints the layers of one platform; give --platform once")
    loaded = [priced_by(load_platform(name), estimator) for name in names]
    traced = options.trace_model(model, inputs, arg)
    predictions = [each.predict(traced) for each in loaded]
    prediction = predictions[0]
    if as_json:
        found = [records.prediction_record(each) for each in predictions]
        options.print_json(found if len(found) > 1 else found[0])
    elif as_csv:
        rows = map(records.layer_prediction_record, prediction.layers)
        typer.echo(records.csv_text(rows), nl=False)
    elif len(predictions) > 1:
        typer.echo(terminal.side_by_side_text(predictions, loaded))
    else:
        typer.echo(terminal.prediction_text(prediction, top))


def generate_command(
    model: options.Target,
    platform: Annotated[
        list[str],
        typer.Option("--platform", "-p", metavar="NAME|PATH", help="see `neuralpower platforms`"),
    ],
    prompt: Annotated[int, typer.Option(min=1, metavar="TOKENS", help="of each sample's prompt")],
    new_tokens: Annotated[
        int, typer.Option(min=1, metavar="TOKENS", help="to generate for each sample")
    ],
    batch: Annotated[int, typer.Option(min=1, help="samples that are generated together")] = 1,
    arg: options.Arguments = None,
    draft: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="a smaller model, for speculative decoding"),
    ] = None,
    draft_arg: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="argument of the draft's factory; repeatable"),
    ] = None,
    draft_tokens: Annotated[int, typer.Option(min=1, help="proposals of a round")] = 4,
    acceptance: Annotated[
        float, typer.Option(min=0, max=1, help="probability that a proposal is accepted")
    ] = 0.8,
    engine: Annotated[
        Engine,
        typer.Option(help="what runs it: an engine such as vLLM, or the model's own code"),
    ] = "serving",
    sampling: Annotated[
        Sampling,
        typer.Option(help="how an engine draws tokens: by sorting the logits, or the largest"),
    ] = "top_p",
    quantization: Annotated[
        Quantization, typer.Option(help="what an engine multiplies in: fp8 for 8-bit floats")
    ] = "none",
    kv_cache_dtype: Annotated[
        CacheDtype, typer.Option(help="what an engine keeps keys and values in")
    ] = "auto",
    experts: Annotated[
        str,
        typer.Option(
            metavar="uniform|NUMBER|SHARE",
            help="distinct experts that the tokens of one call choose, in a mixture",
        ),
    ] = "uniform",
    estimator: options.Estimators = "best",
    as_json: options.Json = False,
) -> None:
    """Predict what serving a language model costs: a prompt, then every token after it.

    MODEL returns a causal language model of transformers; from a configuration it is built without
    weights.
    """
    from pytest_neuralpower.model_source import load_model, read_arguments
    from pytest_neuralpower.platform.serving import generate

    if len(platform) > 1:
        raise OptionError("generate predicts on one platform at a time; give --platform once")
    second = None if draft is None else load_model(draft, read_arguments(draft_arg or [])).eval()
    found = generate(
        load_model(model, read_arguments(arg or [])).eval(),
        prompt=prompt,
        new_tokens=new_tokens,
        batch=batch,
        platform=platform[0],
        draft=second,
        draft_tokens=draft_tokens,
        acceptance=acceptance,
        engine=engine,
        sampling=sampling,
        quantization=quantization,
        kv_cache_dtype=kv_cache_dtype,
        experts=_experts(experts),
        estimator=estimator,
    )
    options.print_result(found, as_json=as_json)


def _experts(text: str) -> Experts:
    """``uniform``, ``12`` or ``0.5``."""
    if text == "uniform":
        return "uniform"
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        raise OptionError(
            f"--experts {text}: write uniform, a number of experts, or a share such as 0.5"
        ) from None


def epr_command(
    models: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="YAML list of models: name, model, inputs, error"),
    ],
    platform: options.PlatformName,
    alpha: Annotated[float, typer.Option(min=0, help="weight of the error; 0: energy alone")] = 1.0,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="plot energy against error (extra html)")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Rank models by energy-precision ratio: error^alpha x energy of one sample, lower is better.

    Each entry of FILE has a name, a model (package.module:factory), its inputs (a list of shapes,
    such as [[1, 3, 224, 224]]), its error (a share, measured by you) and perhaps arguments of the
    factory.
    """
    from pytest_neuralpower.platform.catalog import load_platform
    from pytest_neuralpower.report.epr import rank, read_candidates
    from pytest_neuralpower.report.terminal import epr_text

    if html is not None:
        from pytest_neuralpower.report.charts import check_page

        check_page(html)
    loaded = load_platform(platform)
    ranked = rank(read_candidates(models, loaded), alpha=alpha)
    if html is not None:
        from pytest_neuralpower.report.charts import energy_error_figure, write_page

        write_page(energy_error_figure(ranked, platform=loaded.name, alpha=alpha), html)
    if as_json:
        options.print_json([asdict(item) for item in ranked])
    else:
        typer.echo(epr_text(ranked, platform=loaded.name, alpha=alpha))


def eyeriss_command(
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
    arg: options.Arguments = None,
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
    as_json: options.Json = False,
    as_csv: options.Csv = False,
) -> None:
    """Energy of every layer by data type: input map, output map, weight, computation.

    A table has each layer's shape, batch, zero counts and bit widths. --write makes one from MODEL,
    with no zeros: count yours, edit it, and pass it as TABLE.
    """
    from pytest_neuralpower.eyeriss import table
    from pytest_neuralpower.platform.catalog import load_array
    from pytest_neuralpower.report.records import csv_text, energy_records, energy_text

    options.check_format(as_json=as_json, as_csv=as_csv)
    array = load_array(platform)
    if ":" in source:
        if not inputs:
            raise OptionError(f"{source}: a model needs its inputs; add --input 1,3,227,227")
        rows = table.rows_from_layers(options.trace_model(source, inputs, arg), bits=array.bits)
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
        options.print_json(records)
    elif as_csv:
        typer.echo(csv_text(records), nl=False)
    else:
        typer.echo(energy_text(records, array))
    if write is not None:
        typer.echo(f"wrote {write}: {len(rows)} layers", err=True)


def explain_command(
    platform: Annotated[str, typer.Argument(metavar="PLATFORM", help="a name or a path")],
    kind: Annotated[str, typer.Argument(metavar="KIND", help="kind of layer, such as conv")],
) -> None:
    """Print the equations by which a platform prices one kind of layer, and the NeuralPower
    paper's beside them."""
    from pytest_neuralpower.platform.catalog import load_platform
    from pytest_neuralpower.report.explain import explain_text

    typer.echo(explain_text(load_platform(platform), kind))
