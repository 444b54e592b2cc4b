"""Report formats by the suffix of the file, and GitHub's: what ``--np-report`` can write.

A report has no dates, durations or names of machines: the same models on the same platforms give
the same report, byte for byte, on one process or on many. ``docs/report-format.md`` says what each
field is.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import msgspec
from msgspec import UNSET, structs

from pytest_neuralpower.errors import ReportError
from pytest_neuralpower.files import write_atomically

if TYPE_CHECKING:
    import pytest

    from pytest_neuralpower.guard.finding import Finding, Report

#: Not a path: the step summary and annotations of a GitHub workflow.
GITHUB: Final = "github"

#: A plugin's renderer takes the report in JSON types, layers as lists.
Renderer: TypeAlias = Callable[[Mapping[str, Any]], str]
#: By suffix; a text is the ``module:function`` of a renderer.
Formats: TypeAlias = Mapping[str, str | Renderer]

#: Suffix -> ``module:function`` that renders a :class:`Report`; loaded when one is written.
RENDERERS: dict[str, str] = {
    ".json": "pytest_neuralpower.report.formats:render",
    ".md": "pytest_neuralpower.report.markdown:render",
    ".html": "pytest_neuralpower.report.html:render",
}


def known_formats(config: pytest.Config) -> Formats:
    """Our formats and those that plugins add; an added one wins.

    Raises
    ------
    ReportError
        A plugin added something that is no suffix.
    """
    formats: dict[str, str | Renderer] = dict(RENDERERS)
    # pytest asks the last plugin first; its answer is to count.
    for added in reversed(config.hook.pytest_neuralpower_report_formats(config=config)):
        formats.update(added)
    for suffix in formats:
        if Path(f"report{suffix}").suffix != suffix:
            raise ReportError(
                f"pytest_neuralpower_report_formats: {suffix!r} is not a suffix; "
                "write one like '.csv'"
            )
    return formats


def check_targets(targets: Sequence[str], formats: Formats) -> None:
    """Check what ``--np-report`` was given, before any test runs.

    Raises
    ------
    ReportError
        With one line: no such format, one file twice, or a folder that cannot be written.
    MissingExtraError
        The format needs a package that is not installed.
    """
    seen: set[Path] = set()
    for target in targets:
        path = Path(target)
        if path.absolute() in seen:
            raise ReportError(f"--np-report={target} is given twice; name another file")
        seen.add(path.absolute())
        if target == GITHUB:
            continue
        if path.suffix not in formats:
            raise ReportError(
                f"--np-report={target}: no format for {path.suffix or 'a path without suffix'!r}; "
                f"allowed: {', '.join(formats)}, or the word {GITHUB}"
            )
        place = path.absolute().parent
        while not place.exists() and place != place.parent:
            place = place.parent
        if path.is_dir() or not place.is_dir() or not os.access(place, os.W_OK):
            what = "it is a folder" if path.is_dir() else f"{place} cannot be written"
            raise ReportError(f"--np-report={target}: {what}; name another file")
        if formats[path.suffix] == RENDERERS[".html"]:
            from pytest_neuralpower.report.html import check_plotly  # noqa: PLC0415

            check_plotly()


def write_reports(
    targets: Sequence[str], report: Report, config: pytest.Config
) -> tuple[list[str], bool]:
    """Write every report; lines for the terminal, and whether any could not be written."""
    lines, failed = list[str](), False
    formats = known_formats(config)
    for target in targets:
        if target == GITHUB:
            from pytest_neuralpower.report.ci import publish  # noqa: PLC0415

            shown, broken = publish(report, config.rootpath)
            lines += shown
            failed = failed or broken
            continue
        try:
            write_atomically(Path(target), _rendered(formats[Path(target).suffix], report))
            lines.append(f"report written: {target}")
        except OSError as error:
            reason = error.strerror or str(error)
            lines.append(f"report {target} cannot be written ({reason}): name another file")
            failed = True
    return lines, failed


def need_layers(targets: Sequence[str]) -> bool:
    """Whether any of the reports shows layers: making their text takes time."""
    return any(target != GITHUB and Path(target).suffix != ".md" for target in targets)


def _rendered(renderer: str | Renderer, report: Report) -> str:
    if not isinstance(renderer, str):
        return renderer(msgspec.json.decode(msgspec.json.encode(report)))
    module, _, name = renderer.partition(":")
    ours = cast("Callable[[Report], str]", getattr(importlib.import_module(module), name))
    return ours(report)


def render(report: Report) -> str:
    """The JSON report, fields in the order in which they are described, one layer a line."""
    content = msgspec.to_builtins(structs.replace(report, predictions=()))
    del content["predictions"]
    predictions = ",\n".join(map(_prediction, report.predictions))
    return f'{_open(content)},\n "predictions": [\n{predictions}\n ]\n}}\n'


def _prediction(finding: Finding) -> str:
    content = msgspec.to_builtins(structs.replace(finding, layers=UNSET))
    layers = bytes(finding.layers or b"[]")[1:-1].decode().replace("\n", "\n  ")
    return f'{_open(content)},\n "layers": [\n  {layers}\n ]\n}}'


def _open(content: Mapping[str, Any]) -> str:
    """An object that is not closed yet."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    return text.removesuffix("\n}")
