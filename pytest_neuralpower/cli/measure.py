"""``neuralpower measure``: one call of a model on the device itself, beside its prediction."""

from __future__ import annotations

from typing import Annotated

import typer

from pytest_neuralpower.cli.measuring import MeterOption
from pytest_neuralpower.cli.model import parse_arguments
from pytest_neuralpower.cli.options import RESNET50, Arguments, Inputs, Json, Platform, Target
from pytest_neuralpower.cli.output import print_json

EXAMPLE = f"measure {RESNET50} --platform my-gpu/my-gpu.json"


def run(
    model: Target,
    inputs: Inputs,
    platform: Platform,
    arg: Arguments = None,
    meter: MeterOption = "auto",
    seconds: Annotated[
        float, typer.Option(min=0.1, metavar="S", help="time to run the model over and over")
    ] = 5.0,
    as_json: Json = False,
) -> None:
    """Run MODEL on this machine's device and print measured against predicted.

    PLATFORM must have been calibrated on this kind of device.
    """
    from pytest_neuralpower.measure.network import measure_call  # noqa: PLC0415 - imports torch
    from pytest_neuralpower.measure.preflight import open_place  # noqa: PLC0415
    from pytest_neuralpower.measure.same_device import (  # noqa: PLC0415
        device_of,
        measured_here,
        mode_of,
    )
    from pytest_neuralpower.model_source import load_model, parse_inputs  # noqa: PLC0415
    from pytest_neuralpower.platform import load_platform  # noqa: PLC0415
    from pytest_neuralpower.predictor import predict_call  # noqa: PLC0415
    from pytest_neuralpower.reports.measured import (  # noqa: PLC0415
        comparison_record,
        comparison_text,
    )

    loaded = measured_here(load_platform(platform))
    device = device_of(loaded)
    args, kwargs = parse_inputs(inputs)
    built = load_model(model, parse_arguments(arg or [])).eval()
    prediction = predict_call(built, args, kwargs, platform=loaded)
    place = open_place(device, loaded.dtype, mode=mode_of(loaded), meter=meter)
    try:
        measured = measure_call(built, args, kwargs, place, seconds=seconds)
        record = comparison_record(measured, prediction, place.facts["device"])
    finally:
        place.close()
    if as_json:
        print_json(record)
    else:
        typer.echo(comparison_text(record))
