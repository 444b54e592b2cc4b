"""``neuralpower compare``: what has changed between two sets of predictions, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pytest_neuralpower.cli.options import Json, print_json
from pytest_neuralpower.errors import OptionError
from pytest_neuralpower.text import write_utf_8


def compare_command(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE", help="a JSON report, a baseline, a folder of them, or a git revision"
        ),
    ],
    head: Annotated[str, typer.Argument(metavar="HEAD", help="the same")],
    folder: Annotated[
        Path, typer.Option(metavar="DIR", help="folder of baselines in a git revision")
    ] = Path("budgets/baselines"),
    tolerance: Annotated[
        list[str] | None,
        typer.Option(
            "--tolerance",
            "-t",
            metavar="NAME=NUMBER",
            help="growth to accept, as with pytest --np-tolerance [max_percent=1]",
        ),
    ] = None,
    platform: Annotated[
        list[str] | None,
        typer.Option(
            "--platform", "-p", metavar="PATH", help="file of a platform that is not shipped"
        ),
    ] = None,
    top: Annotated[
        int, typer.Option(min=0, help="show the N layers that changed most; 0 shows all")
    ] = 5,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="print Markdown for a pull request")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare predictions of BASE and HEAD, predicted again on today's platforms.

    Exits with 0 if nothing costs more than the tolerance allows, 1 if something does, and 2 if they
    could not be compared.
    """
    from pytest_neuralpower.guard.compare_sources import compare_sources, exit_code, read_pair
    from pytest_neuralpower.guard.tolerance import DEFAULT, merge, parse_texts

    if markdown and as_json:
        raise OptionError("--markdown and --json: only one format can be printed; give one of them")
    allowed = merge((parse_texts(tolerance or (), "--tolerance"), DEFAULT))
    sides = read_pair(base, head, folder)
    found = compare_sources(*sides, platforms=platform or (), tolerance=allowed)
    if as_json:
        from msgspec import to_builtins

        print_json(to_builtins(found))
    elif markdown:
        from pytest_neuralpower.report.markdown import compare_markdown

        write_utf_8()
        typer.echo(compare_markdown(found, top=top), nl=False)
    else:
        from pytest_neuralpower.report.compare import compare_text

        typer.echo(compare_text(found, top=top))
    raise typer.Exit(exit_code(found))
