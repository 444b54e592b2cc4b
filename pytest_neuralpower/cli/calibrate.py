"""``neuralpower calibrate``: measure a device and fit its platform."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pytest_neuralpower.cli.measuring import (
    DeviceOption,
    Dtype,
    MeterOption,
    Mode,
    Thorough,
    Watts,
)
from pytest_neuralpower.errors import OptionError

if TYPE_CHECKING:
    from pytest_neuralpower.platform import Platform

EXAMPLE = "calibrate my-gpu --device cuda:0 --dtype bfloat16 --minutes 10"


def run(
    name: Annotated[str, typer.Argument(metavar="NAME", help="name of the platform to make")],
    device: DeviceOption = "",
    dtype: Dtype = "",
    mode: Mode = "",
    meter: MeterOption = "auto",
    watts: Watts = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="about a minute on an idle core: a first look")
    ] = False,
    thorough: Thorough = False,
    minutes: Annotated[
        float | None,
        typer.Option(
            metavar="M",
            help="time to measure, whatever the preset [3.5; --quick: 1; --thorough: 15]",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with a calibration that stopped")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="folder to write [./NAME]")
    ] = None,
    backend: Annotated[
        str,
        typer.Option(metavar="loky|dask|ray", help="engine of many devices (extra fleet)"),
    ] = "loky",
    workers: Annotated[
        int, typer.Option(min=0, metavar="N", help="devices of a fleet, one a worker")
    ] = 0,
    per_device: Annotated[
        bool,
        typer.Option("--per-device", help="of many devices: a platform each, not one of all"),
    ] = False,
) -> None:
    """Measure this machine's device for some minutes and fit a platform that predicts it.

    Writes DIR/profile.csv (every measured row), recipe.yaml, NAME.json (the platform) and README.md
    (its card). Each row is on the disk before the next is measured: after Ctrl-C, a crash or a full
    disk, --resume goes on.
    """
    from pytest_neuralpower.measure.engines import BACKENDS  # noqa: PLC0415
    from pytest_neuralpower.measure.options import calibration_options  # noqa: PLC0415 - torch
    from pytest_neuralpower.measure.progress import choose_progress  # noqa: PLC0415

    if backend not in BACKENDS:
        raise OptionError(f"--backend {backend}: it is one of {', '.join(BACKENDS)}")
    many = device.endswith(":all") or workers > 0
    if not many and (per_device or backend != "loky"):
        asked = "--per-device" if per_device else f"--backend {backend}"
        raise OptionError(f"{asked} is for many devices: add --device cuda:all, or --workers N")
    options = calibration_options(
        name,
        out=out,
        device="" if device.endswith(":all") else device,
        dtype=dtype,
        mode=mode,
        meter=meter,
        watts=watts,
        quick=quick,
        thorough=thorough,
        minutes=minutes,
        resume=resume,
    )
    with _ctrl_c_told(options.directory):
        if many:
            from pytest_neuralpower.measure.fleet import calibrate_fleet  # noqa: PLC0415

            for path, platform in calibrate_fleet(
                options,
                all_gpus=device.endswith(":all"),
                backend=backend,
                workers=workers,
                per_device=per_device,
                progress=choose_progress(),
            ):
                _print_result(path, platform)
            return
        from pytest_neuralpower.measure.lock import only_writer  # noqa: PLC0415 - an extra

        with only_writer(options.directory):
            from pytest_neuralpower.measure.run import calibrate  # noqa: PLC0415 - imports torch

            done = calibrate(options, choose_progress())
        typer.echo(
            f"measured in {done.measured_s:.0f} s, fitted in {done.fitted_s:.0f} s; "
            f"{done.outcome.measured} trials measured, {done.outcome.skipped} skipped, "
            f"{done.outcome.rerun} run again after a drift"
        )
        _print_result(done.path, done.platform)
        raise typer.Exit(0 if done.repeatable else 1)


@contextmanager
def _ctrl_c_told(directory: Path) -> Iterator[None]:
    """Ctrl-C outside of the trials, which tell of it themselves, ends with a line, too."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(
            "neuralpower: stopped; go on with the same command and --resume"
            if any(directory.rglob("profile.csv"))
            else "neuralpower: stopped before anything was measured; start again",
            err=True,
        )
        raise typer.Exit(130) from None


def _print_result(path: Path, platform: Platform) -> None:
    from pytest_neuralpower.measure.closing import closing_lines  # noqa: PLC0415

    for line in closing_lines(path, platform, path.parent):
        typer.echo(line)
