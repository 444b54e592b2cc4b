"""What touches a device or measured rows: calibrate, fit, accuracy, measure, verify."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pytest_neuralpower.cli import options
from pytest_neuralpower.errors import OptionError, Terminated, signal_code

if TYPE_CHECKING:
    from pytest_neuralpower.platform.price import FittedPlatform


def calibrate_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="name of the platform to make")],
    device: options.DeviceOption = "",
    dtype: options.Dtype = "",
    mode: options.Mode = "",
    meter: options.MeterOption = "auto",
    watts: options.Watts = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="about a minute on an idle core: a first look")
    ] = False,
    thorough: options.Thorough = False,
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
    with _signals_told(out or Path(name)):
        from pytest_neuralpower.estimators.base import check_fitting

        check_fitting()
        from pytest_neuralpower.calibrate.measure.plan import BACKENDS, CalibrationOptions
        from pytest_neuralpower.calibrate.measure.progress import choose_progress

        if backend not in BACKENDS:
            raise OptionError(f"--backend {backend}: it is one of {', '.join(BACKENDS)}")
        many = device.endswith(":all") or workers > 0
        if not many and (per_device or backend != "loky"):
            asked = "--per-device" if per_device else f"--backend {backend}"
            raise OptionError(f"{asked} is for many devices: add --device cuda:all, or --workers N")
        calibration = CalibrationOptions(
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
        if many:
            from pytest_neuralpower.calibrate.measure.fleet import calibrate_fleet

            for path, platform in calibrate_fleet(
                calibration,
                all_gpus=device.endswith(":all"),
                backend=backend,
                workers=workers,
                per_device=per_device,
                progress=choose_progress(),
            ):
                _print_result(path, platform)
            return
        from pytest_neuralpower.calibrate.measure.profile_writer import only_writer

        with only_writer(calibration.directory):
            from pytest_neuralpower.calibrate.measure.run import calibrate

            done = calibrate(calibration, choose_progress())
        typer.echo(
            f"measured in {done.measured_s:.0f} s, fitted in {done.fitted_s:.0f} s; "
            f"{done.outcome.measured} trials measured, {done.outcome.skipped} skipped, "
            f"{done.outcome.rerun} run again after a drift"
        )
        _print_result(done.path, done.platform)
        raise typer.Exit(0 if done.repeatable else 1)


@contextmanager
def _signals_told(directory: Path) -> Iterator[None]:
    """Ctrl-C and SIGTERM outside of the trials, which tell of them themselves, end with a line."""

    def terminate(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except KeyboardInterrupt as stop:
        why = "terminated" if isinstance(stop, Terminated) else "stopped"
        saved = next(iter(sorted(directory.rglob("profile.csv"))), None)
        typer.echo(
            f"neuralpower: {why} before anything was measured; start again"
            if saved is None
            else f"neuralpower: {why}; what was measured is saved in {saved.parent}; go on with "
            "the same command and --resume",
            err=True,
        )
        raise typer.Exit(signal_code(stop)) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_result(path: Path, platform: FittedPlatform) -> None:
    from pytest_neuralpower.calibrate.measure.run import closing_lines

    for line in closing_lines(path, platform, path.parent):
        typer.echo(line)


def fit_command(
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="DIRECTORY", help="folder with recipe.yaml and measured rows"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="platform file to write [NAME.json]")
    ] = None,
    datasheet: Annotated[
        str | None,
        typer.Option(metavar="DEVICE", help="instead: a device that nobody measured (titan-rtx)"),
    ] = None,
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="of --datasheet: what its layers compute in")
    ] = "float32",
    networks: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV", help="with --datasheet: timed calls; columns model, inputs, runtime_ms"
        ),
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            metavar="eager|compile|engine",
            help="of --datasheet: how calls run [column mode of --networks, else eager]",
        ),
    ] = "",
    force: options.Force = False,
    data: options.Data = None,
) -> None:
    """Fit a platform from measured rows: choose each estimator by held-out configurations.

    Writes the platform file, and its card next to the recipe. With --datasheet every kind of layer
    is priced as other devices run it, within what the device's maker says; and with --networks so
    that whole networks take what they took, each line a call: model (package.module:factory or
    file.py:factory), inputs (1,3,224,224), runtime_ms, and perhaps arguments (depth=50), dtype,
    autocast, energy_mj, family (what is held out together) and mode.
    """
    from pytest_neuralpower.calibrate.fit.fit import fit_command
    from pytest_neuralpower.report.accuracy import platforms_text

    if (directory is None) == (datasheet is None):
        raise OptionError("fit: give a folder with recipe.yaml, or --datasheet DEVICE")
    if networks is not None and datasheet is None:
        raise OptionError("--networks: add --datasheet DEVICE, or name the table in a recipe")
    if mode and datasheet is None:
        raise OptionError("--mode: add --datasheet DEVICE, or write mode in the recipe")
    if datasheet is not None:
        from pytest_neuralpower.calibrate.fit.datasheet import datasheet_platform, name_of

        path = out or Path(f"{name_of(datasheet, dtype)}.json")
        options.refuse_overwriting(path, force=force)
        with options.spinner(f"fitting {datasheet}") as progress:
            found = datasheet_platform(
                datasheet,
                dtype=dtype,
                mode=mode,
                networks=networks,
                data_root=data,
                progress=progress,
            )
        typer.echo(platforms_text([found.save(path).summary()]))
        typer.echo(f"wrote {path}: use it with pytest --np-platform={path}")
        return
    assert directory is not None  # one of both is given
    with options.spinner(f"fitting {directory}") as progress:
        path, saved = fit_command(
            directory, out, data_root=data, overwrite=force, progress=progress
        )
    typer.echo(platforms_text([saved.summary()]))
    typer.echo(f"wrote {path}: use it with pytest --np-platform={path}")
    typer.echo(f"wrote {directory / 'README.md'}: its card")


def adapt_command(
    platform: Annotated[str, typer.Argument(metavar="PLATFORM", help="a name or a path")],
    runs: Annotated[
        Path,
        typer.Argument(metavar="CSV", help="calls of yours; columns model, inputs, runtime_ms"),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="platform file to write [NAME-adapted.json]")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="run the calls here first, and fill in the table")
    ] = False,
    device: options.DeviceOption = "",
    meter: options.MeterOption = "auto",
    force: options.Force = False,
) -> None:
    """Adapt PLATFORM to this device or stack by a few calls that ran on it, two at least.

    One factor, or one a kind of layer, is taken over only if it predicts each call better from the
    others. With --measure the lines of the table without runtime_ms are run here.
    """
    from pytest_neuralpower.calibrate.fit.adapt import adapt
    from pytest_neuralpower.estimators.base import check_fitting
    from pytest_neuralpower.platform.catalog import load_fitted

    if platform.endswith(".csv"):
        raise OptionError(f"adapt: the platform comes first: adapt {runs} {platform}")
    check_fitting()
    loaded = load_fitted(platform)
    path = out or Path(f"{loaded.name}-adapted.json")
    options.refuse_overwriting(path, force=force)
    if measure:
        from pytest_neuralpower.calibrate.measure.runs import measure_runs

        measure_runs(runs, device=device, dtype=loaded.dtype, meter=meter, report=typer.echo)
    with options.spinner(f"adapting {loaded.name}") as progress:
        adapted, found = adapt(loaded, runs, progress=progress)
    typer.echo(found.text())
    if adapted is loaded:
        raise typer.Exit(1)
    adapted.save(path)
    typer.echo(f"wrote {path}: use it with pytest --np-platform={path}")


def accuracy_command(
    platforms: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PLATFORM",
            help="name of a folder in calibration/, or the path of one; with --prices any number "
            "of platforms, all fitted ones by default",
        ),
    ] = None,
    prices: Annotated[
        bool,
        typer.Option(
            "--prices", help="judge prices and intervals where nothing was fitted, as one table"
        ),
    ] = False,
    profile: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="judge these measured rows, not the recipe's"),
    ] = None,
    networks: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="judge these measured networks, not the recipe's"),
    ] = None,
    data: options.Data = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="plot predicted against measured (html)")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Refit PLATFORM with held-out groups, and print its errors next to those of baselines.

    With --prices nothing is refitted: shipped prices and intervals are judged by random layers, and
    by rows, devices and networks that no fit has seen.
    """
    if prices:
        if profile is not None or networks is not None or html is not None:
            raise OptionError("--prices judges what ships: leave out --profile, --networks, --html")
        _print_reach(platforms or [], data, as_json=as_json)
        return
    if platforms is None or len(platforms) != 1:
        raise OptionError("give one PLATFORM to refit, such as titanx; or --prices")
    (platform,) = platforms
    from pytest_neuralpower.calibrate.fit.accuracy import (
        accuracy_shown,
        find_calibration,
        measure,
        points,
    )
    from pytest_neuralpower.report.accuracy import accuracy_text

    folder = find_calibration(platform)
    if html is not None:
        from pytest_neuralpower.report.charts import check_page

        check_page(html)
    with options.spinner(f"refitting {folder.name}") as progress:
        fitted = measure(
            folder, data_root=data, profile=profile, networks=networks, progress=progress
        )
    found = accuracy_shown(fitted)
    name = fitted.platform.name
    if html is not None:
        from pytest_neuralpower.report.charts import accuracy_figure, write_page

        write_page(accuracy_figure(list(points(fitted)), platform=name), html)
        typer.echo(f"wrote {html}: predicted against measured", err=True)
    if as_json:
        options.print_json(found)
    else:
        typer.echo(accuracy_text(name, found))


def _print_reach(names: list[str], data: Path | None, *, as_json: bool) -> None:
    from pytest_neuralpower.calibrate.fit.accuracy import CALIBRATION
    from pytest_neuralpower.calibrate.fit.reach import judge_reach
    from pytest_neuralpower.report.accuracy import reach_text

    if data is None or not data.is_dir():
        raise OptionError("--prices needs the public tables: --data DIR, their folder")
    with options.spinner("judging prices") as progress:
        found = list(judge_reach(names, calibration=CALIBRATION, data_root=data, progress=progress))
    if as_json:
        options.print_json(found)
    else:
        typer.echo(reach_text(found))


def measure_command(
    model: options.Target,
    inputs: options.Inputs,
    platform: options.PlatformName,
    arg: options.Arguments = None,
    meter: options.MeterOption = "auto",
    seconds: Annotated[
        float, typer.Option(min=0.1, metavar="S", help="how long to run the model, repeatedly")
    ] = 5.0,
    as_json: options.Json = False,
) -> None:
    """Run MODEL on this machine's device and print measured against predicted.

    PLATFORM must have been calibrated on this kind of device.
    """
    from pytest_neuralpower.calibrate.measure.device import open_device
    from pytest_neuralpower.calibrate.measure.network import compare, measure_call
    from pytest_neuralpower.calibrate.measure.verify import device_of, measured_here, mode_of
    from pytest_neuralpower.model_source import load_model, parse_inputs, read_arguments
    from pytest_neuralpower.platform.catalog import load_platform, predict_call

    loaded = measured_here(load_platform(platform))
    name = device_of(loaded)
    args, kwargs = parse_inputs(inputs)
    built = load_model(model, read_arguments(arg or [])).eval()
    prediction = predict_call(built, args, kwargs, platform=loaded)
    device = open_device(name, loaded.dtype, mode=mode_of(loaded), meter=meter)
    try:
        measured = measure_call(built, args, kwargs, device, seconds=seconds)
    finally:
        device.close()
    compared = compare(measured, prediction, device)
    options.print_result(compared, as_json=as_json)


def verify_command(
    platform: Annotated[str, typer.Argument(metavar="PLATFORM", help="a name or a path")],
    minutes: Annotated[
        float, typer.Option(min=0.1, metavar="M", help="time to measure, at most")
    ] = 1.7,
    as_json: options.Json = False,
) -> None:
    """Measure some of PLATFORM's networks again on its device, and show each kind's drift.

    Exit code 0: it holds; 1: it does not, calibrate it again; 2: it could not be verified.
    """
    from pytest_neuralpower.calibrate.measure.progress import choose_progress
    from pytest_neuralpower.calibrate.measure.verify import verify
    from pytest_neuralpower.platform.catalog import load_platform

    found = verify(load_platform(platform), choose_progress(), seconds=60 * minutes)
    options.print_result(found, as_json=as_json)
    raise typer.Exit(0 if found.holds else 1)
