"""The report of one session as plain data: what every format is made of.

It has no dates, durations or names of machines: the same models on the same platforms give the same
report, byte for byte, on one process or on many. ``docs/report-format.md`` says what each field is.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from pytest_neuralpower import __version__
from pytest_neuralpower.errors import ReportError
from pytest_neuralpower.guard.baseline import baseline_name, torch_version, without_platform
from pytest_neuralpower.layer_codec import layers_json, rounded

if TYPE_CHECKING:
    import pytest

    from pytest_neuralpower.platform.intervals import Interval
    from pytest_neuralpower.platform.prediction import Prediction

__all__ = [
    "FORMAT",
    "GITHUB",
    "RENDERERS",
    "VERSION",
    "Formats",
    "Renderer",
    "check_targets",
    "details",
    "known_formats",
    "layers_text",
    "need_layers",
    "render",
    "session_report",
    "with_layers",
    "write_reports",
]


FORMAT: Final = "pytest-neuralpower report"
VERSION: Final = 1


def session_report(
    records: Mapping[str, Sequence[Mapping[str, Any]]], stale: Sequence[str]
) -> dict[str, Any]:
    """The report of records by node id, sorted by test and platform.

    Parameters
    ----------
    stale
        Paths of baselines that no test predicts any more.
    """
    predictions = [
        {"name": _name(record, number), **record}
        for nodeid in sorted(records)
        for number, record in enumerate(records[nodeid], 1)
    ]
    return {
        "format": FORMAT,
        "version": VERSION,
        "plugin": __version__,
        "torch": torch_version(),
        "predictions": predictions,
        "stale_baselines": list(stale),
    }


def _name(record: Mapping[str, Any], number: int) -> str:
    """What a prediction is compared by: its baseline's name, or its test's."""
    if "baseline" in record:
        return str(record["baseline"]["name"])
    return baseline_name(without_platform(record["test"], record["platform"]), number)


def details(prediction: Prediction) -> dict[str, Any]:
    """What a report has beside the record of a verdict and the layers: intervals and notes."""
    return {
        "energy_interval_mj": _interval(prediction.energy_interval_mj),
        "runtime_interval_ms": _interval(prediction.runtime_interval_ms),
        "power_interval_w": _interval(prediction.power_interval_w),
        "energy_basis": prediction.energy_basis,
        "notes": list(prediction.notes),
    }


def layers_text(prediction: Prediction) -> str:
    """Every layer as JSON, one a line: lists of thousands of objects would be slow to send from
    an xdist worker, and to keep."""
    return layers_json(prediction.layers)[1:-1].decode()


def with_layers(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with lists of layers instead of their text."""
    predictions = [
        {**each, "layers": json.loads(f"[{each['layers']}]")} if "layers" in each else each
        for each in report["predictions"]
    ]
    return {**report, "predictions": predictions}


def _interval(interval: Interval | None) -> list[float | None] | None:
    return None if interval is None else [rounded(each) for each in interval]


# -- The report for machines; ``docs/report-format.md`` describes it.


def render(report: Mapping[str, Any]) -> str:
    """The whole report, fields in the order in which they are described, one layer a line."""
    content = {key: value for key, value in report.items() if key != "predictions"}
    predictions = ",\n".join(_prediction(each) for each in report["predictions"])
    return f'{_open(content)},\n "predictions": [\n{predictions}\n ]\n}}\n'


def _prediction(record: Mapping[str, Any]) -> str:
    content = {key: value for key, value in record.items() if key != "layers"}
    layers = record["layers"].replace("\n", "\n  ")
    return f'{_open(content)},\n "layers": [\n  {layers}\n ]\n}}'


def _open(content: Mapping[str, Any]) -> str:
    """An object that is not closed yet."""
    return _text(content, indent=1).removesuffix("\n}")


def _text(content: Any, indent: int | None = None) -> str:
    return json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)


# -- Report formats by the suffix of the file, and GitHub's: what ``--np-report`` can write.

#: Not a path: the step summary and annotations of a GitHub workflow.
GITHUB: Final = "github"

#: Takes what :func:`~pytest_neuralpower.report.formats.session_report` made.
Renderer: TypeAlias = Callable[[Mapping[str, Any]], str]
#: By suffix; a text is the ``module:function`` of a renderer.
Formats: TypeAlias = Mapping[str, str | Renderer]

#: Suffix -> ``module:function`` of its :data:`Renderer`; loaded when a report is written.
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
                f"pytest_neuralpower_report_formats: {suffix!r} is no suffix; write one like '.csv'"
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
    targets: Sequence[str],
    records: Mapping[str, Sequence[Mapping[str, Any]]],
    stale: Sequence[str],
    config: pytest.Config,
) -> tuple[list[str], bool]:
    """Write every report; lines for the terminal, and whether any could not be written."""
    from pytest_neuralpower.files import write_atomically  # noqa: PLC0415

    content = session_report(records, stale)
    lines, failed = list[str](), False
    formats = known_formats(config)
    for target in targets:
        if target == GITHUB:
            from pytest_neuralpower.report.ci import publish  # noqa: PLC0415

            shown, broken = publish(content, config.rootpath)
            lines += shown
            failed = failed or broken
            continue
        try:
            write_atomically(Path(target), _rendered(formats[Path(target).suffix], content))
            lines.append(f"report written: {target}")
        except OSError as error:
            reason = error.strerror or str(error)
            lines.append(f"report {target} cannot be written ({reason}): name another file")
            failed = True
    return lines, failed


def need_layers(targets: Sequence[str]) -> bool:
    """Whether any of the reports shows layers: making their records takes time."""
    return any(target != GITHUB and Path(target).suffix != ".md" for target in targets)


def _rendered(renderer: str | Renderer, content: Mapping[str, Any]) -> str:
    if not isinstance(renderer, str):
        return renderer(with_layers(content))
    module, _, name = renderer.partition(":")
    return cast("Renderer", getattr(importlib.import_module(module), name))(content)
