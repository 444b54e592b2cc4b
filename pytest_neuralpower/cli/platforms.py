"""``neuralpower platforms``: list those that ship, show one, make one of a datasheet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pytest_neuralpower.cli import options


class _ShowByName(TyperGroup):
    """``platforms titanx`` is ``platforms show titanx``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands and not args[0].startswith("-"):
            args = ["show", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_ShowByName, invoke_without_command=True, no_args_is_help=False, add_completion=False
)

_Device = Annotated[
    str, typer.Option(metavar="TEXT", help="only those whose name or device has TEXT")
]
_OfDtype = Annotated[str, typer.Option(metavar="DTYPE", help="only those of this dtype (bfloat16)")]
_OfMode = Annotated[
    str, typer.Option(metavar="TEXT", help="only those whose mode has TEXT (compile, autocast)")
]


@app.callback()
def platforms(ctx: typer.Context, as_json: options.Json = False) -> None:
    """List the shipped platforms with their tier and measured accuracy; show one in full; or make
    one of a device that nobody measured."""
    if ctx.invoked_subcommand is None:
        list_command("", "", "", as_json)


@app.command("list", epilog="[bold]Example:[/bold] neuralpower platforms list --device rtx")
def list_command(
    device: _Device = "", dtype: _OfDtype = "", mode: _OfMode = "", as_json: options.Json = False
) -> None:
    """List the shipped platforms with their tier and measured accuracy."""
    from pytest_neuralpower.errors import OptionError
    from pytest_neuralpower.platform.catalog import list_platforms, load_platform
    from pytest_neuralpower.report.accuracy import platforms_text

    dtype = _SHORT.get(dtype.lower(), dtype.lower())
    every = [load_platform(name).summary() for name in list_platforms()]
    if dtype and dtype not in (known := sorted({summary.dtype for summary in every})):
        raise OptionError(f"--dtype {dtype}: platforms are in {', '.join(known)}")
    summaries = [
        summary
        for summary in every
        if device.lower() in f"{summary.name} {summary.device}".lower()
        and dtype in ("", summary.dtype)
        and mode.lower() in summary.mode.lower()
    ]
    if not summaries:
        raise OptionError(
            "no shipped platform is all of that; `neuralpower platforms` lists them, "
            "`neuralpower platforms new NAME` makes one of a datasheet"
        )
    options.print_json(summaries) if as_json else typer.echo(platforms_text(summaries))


@app.command("show", epilog="[bold]Example:[/bold] neuralpower platforms show titanx")
def show_command(
    name: Annotated[str, typer.Argument(metavar="NAME|PATH")], as_json: options.Json = False
) -> None:
    """Show all that a platform says of itself: device, mode, sources, accuracy."""
    from pytest_neuralpower.platform.catalog import load_platform
    from pytest_neuralpower.report.accuracy import platform_text

    summary = load_platform(name).summary()
    options.print_json(summary) if as_json else typer.echo(platform_text(summary))


#: How dtypes are called for short.
_SHORT = {"fp32": "float32", "fp16": "float16", "amp": "float16", "bf16": "bfloat16"}


def _peak(dtype: str) -> Any:
    return typer.Option(
        metavar="TFLOPS", min=1e-3, max=1e6, help=f"dense {dtype} operations, 10^12/s"
    )


@app.command(
    "new",
    epilog="[bold]Example:[/bold] neuralpower platforms new rtx4080 --like rtx4090 --peak-fp32 48.7"
    " --peak-fp16 97.5 --bandwidth 717 --sms 76 --l2 64 --tdp 320 --dtype float16",
)
def new_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="of the platform")],
    like: Annotated[
        str | None,
        typer.Option(metavar="DEVICE", help="take what is not given from this device's datasheet"),
    ] = None,
    peak_fp32: Annotated[float | None, _peak("float32")] = None,
    peak_tf32: Annotated[float | None, _peak("TF32")] = None,
    peak_fp16: Annotated[float | None, _peak("float16 and bfloat16")] = None,
    peak_fp8: Annotated[float | None, _peak("float8")] = None,
    peak_int8: Annotated[float | None, _peak("int8")] = None,
    bandwidth: Annotated[
        float | None, typer.Option(metavar="GB/S", min=1, max=1e6, help="of its memory")
    ] = None,
    sms: Annotated[
        int | None, typer.Option(min=1, help="multiprocessors; 1 of a processor")
    ] = None,
    l2: Annotated[float | None, typer.Option(metavar="MB", min=0, help="its last cache")] = None,
    tdp: Annotated[
        float | None, typer.Option(metavar="W", min=1, max=1e4, help="board power")
    ] = None,
    idle: Annotated[
        float | None,
        typer.Option(metavar="W", min=1e-3, max=1e4, help="board at rest [a twelfth of --tdp]"),
    ] = None,
    process: Annotated[float | None, typer.Option(metavar="NM", min=1, help="its process")] = None,
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="that its layers compute in")
    ] = "float32",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="platform file to write [NAME.json]")
    ] = None,
    force: options.Force = False,
) -> None:
    """Make a platform of a device that nobody measured: its datasheet, and how other devices run
    each kind of layer. Its intervals say how differently devices do."""
    from pytest_neuralpower.calibrate.fit.datasheet import datasheet_platform
    from pytest_neuralpower.calibrate.fit.devices import described
    from pytest_neuralpower.report.accuracy import platforms_text

    device = described(
        name,
        like=like,
        peaks_tflops={
            "float32": peak_fp32,
            "tf32": peak_tf32,
            "float16": peak_fp16,
            "bfloat16": peak_fp16,
            "float8_e4m3fn": peak_fp8,
            "int8": peak_int8,
        },
        bandwidth_gbs=bandwidth,
        multiprocessors=sms,
        l2_mb=l2,
        limit_w=tdp,
        idle_w=idle,
        process_nm=process,
    )
    path = out or Path(f"{name}.json")
    options.refuse_overwriting(path, force=force)
    found = datasheet_platform(name, device=device, dtype=dtype)
    typer.echo(platforms_text([found.save(path).summary()]))
    typer.echo(f"wrote {path}: use it with pytest --np-platform={path}")
