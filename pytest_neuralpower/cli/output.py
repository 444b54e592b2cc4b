"""What commands print for machines."""

from __future__ import annotations

import json
from typing import Any

import typer

from pytest_neuralpower.errors import OptionError

__all__ = ["check_format", "print_json"]


def check_format(*, as_json: bool, as_csv: bool) -> None:
    """Raise :class:`OptionError` when both formats were asked for."""
    if as_json and as_csv:
        raise OptionError("--json and --csv: only one format can be printed; give one of them")


def print_json(value: Any) -> None:
    """Print ``value``, of JSON types, indented."""
    typer.echo(json.dumps(value, indent=2))
