"""``neuralpower baselines``: settle merges of baseline files, and tell which are stale."""

from __future__ import annotations

import io
import subprocess
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from pytest_neuralpower.errors import OptionError
from pytest_neuralpower.text import printable, shell_word

app = typer.Typer(
    help="Settle merges of baseline files, and tell which are stale.", no_args_is_help=True
)

#: Where a clone keeps its drivers, and which files they are for.
_DRIVER = "neuralpower baselines merge --driver %O %A %B"


@app.command("merge", epilog="[bold]Example:[/bold] neuralpower baselines merge --install")
def merge_command(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE]...", help="files with conflict markers [all in the folder]"),
    ] = None,
    folder: Annotated[Path, typer.Option(metavar="DIR", help="folder of baselines")] = Path(
        "budgets/baselines"
    ),
    install: Annotated[
        bool, typer.Option("--install", help="let git settle the folder's files from now on")
    ] = False,
    driver: Annotated[
        bool, typer.Option("--driver", help="as git calls it: FILEs are base, ours and theirs")
    ] = False,
) -> None:
    """Settle baselines that both sides of a merge changed: layers merge line by line, their totals
    are summed again, and where a layer differs the cheaper side is taken, so that no growth passes
    unseen.
    """
    from pytest_neuralpower.guard.baseline import write_baseline
    from pytest_neuralpower.guard.baseline_merge import conflicted, merge_texts, sides_of

    if install:
        _install(folder)
        return
    if driver:
        if files is None or len(files) != 3:
            raise OptionError("--driver: git gives three files, the base, ours and theirs")
        texts = [each.read_text(encoding="utf-8") for each in files]
        write_baseline(files[1], merge_texts(*texts, name=str(files[1])))
        return
    chosen = files or conflicted(folder)
    for path in chosen:
        text = path.read_text(encoding="utf-8")
        write_baseline(path, merge_texts(*sides_of(text, str(path)), name=str(path)))
        typer.echo(f"settled {printable(str(path))}")
    if chosen:
        typer.echo(f"  git add {' '.join(shell_word(str(each)) for each in chosen)}")
    else:
        typer.echo(f"no baseline in {printable(str(folder))} has conflict markers")


def _install(folder: Path) -> None:
    done = subprocess.run(
        ["git", "config", "merge.neuralpower-baseline.driver", _DRIVER],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise OptionError("--install: run it in the repository (git config failed)")
    line = f"{folder.as_posix()}/**/*.yaml merge=neuralpower-baseline\n"
    path = Path(".gitattributes")
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if line not in before:
        gap = "\n" if before and not before.endswith("\n") else ""
        path.write_text(f"{before}{gap}{line}", encoding="utf-8")
    typer.echo("git settles baselines in this clone; commit .gitattributes, and run this in others")


@app.command("stale", epilog="[bold]Example:[/bold] neuralpower baselines stale")
def stale_command(
    args: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PYTEST ARGS]...", help="what pytest is given, such as -c FILE"),
    ] = None,
) -> None:
    """Name the baselines whose tests are gone, by collecting every test.

    Exits with 0 if there are none, 1 if there are some, and 2 if not every test could be collected.
    """
    import pytest

    collection = _Collection()
    given = ["-q", "--collect-only", "-p", "no:cacheprovider", *(args or ())]
    with redirect_stdout(io.StringIO()):
        code = pytest.main(given, plugins=[collection])
    if code not in (0, 5):
        raise OptionError("not every test could be collected: run pytest --collect-only")
    for path in collection.stale:
        typer.echo(f"git rm {shell_word(path)}")
    raise typer.Exit(bool(collection.stale))


class _Collection:
    """What pytest collects, and the baselines that are of none of it."""

    def __init__(self) -> None:
        self.stale: list[str] = []

    def pytest_sessionfinish(self, session: Any) -> None:
        from pytest_neuralpower.plugin.finish import stale_of_collection

        self.stale = stale_of_collection(session)
