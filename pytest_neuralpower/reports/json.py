"""The report for machines; ``docs/report-format.md`` describes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["render"]


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
