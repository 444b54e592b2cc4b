"""The JSON Schema of our files, for editors and for programs that write them."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, Literal

import typer

from pytest_neuralpower.cli.options import print_json
from pytest_neuralpower.errors import OptionError

#: What ``neuralpower schema`` takes; ``docs/schemas/NAME.json`` holds each.
FILES = ("budget-file", "baseline", "platform", "plan", "report")


def schema_command(
    file: Annotated[str, typer.Argument(metavar="FILE", help=" | ".join(FILES))],
) -> None:
    """Print the JSON Schema of a kind of file, for an editor to complete and check it."""
    if file not in FILES:
        raise OptionError(f"schema {file}: there is none; give one of {', '.join(FILES)}")
    print_json(schema(file))


def schema(file: str) -> dict[str, object]:
    """The JSON Schema (2020-12) of one of :data:`FILES`."""
    import msgspec

    found = msgspec.json.schema(_declared(file))
    for declared in found.get("$defs", {}).values():
        if "description" in declared:  # msgspec before 0.23 keeps a docstring's indent
            declared["description"] = inspect.cleandoc(declared["description"])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"pytest-neuralpower {file.replace('-', ' ')}",
        **found,
    }


def _declared(file: str) -> Any:
    if file == "budget-file":
        from pytest_neuralpower.plugin.budget_files import BudgetFileText

        return BudgetFileText
    if file == "baseline":
        from pytest_neuralpower.guard.baseline import BaselineFile

        return BaselineFile
    if file == "plan":
        from pytest_neuralpower.compress.plan import Plan

        return Plan
    if file == "report":
        from pytest_neuralpower.guard.finding import Report

        return Report
    from msgspec import defstruct

    from pytest_neuralpower.platform.file import FORMAT, VERSION
    from pytest_neuralpower.platform.price import FittedPlatform

    envelope = [("format", Literal[FORMAT]), ("version", Literal[VERSION])]
    return defstruct("PlatformFile", envelope, bases=(FittedPlatform,), kw_only=True)
