"""The model that a command was given: built, and traced with its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pytest_neuralpower.errors import ImportPathError

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Trace

__all__ = ["parse_arguments", "trace_model"]


def trace_model(target: str, inputs: Sequence[str], arguments: Sequence[str] | None) -> Trace:
    """Trace one inference of the model that ``--input`` and ``--arg`` describe.

    Raises
    ------
    NeuralPowerError
        The model cannot be built or traced; one line says why.
    """
    from pytest_neuralpower.model_source import load_model, parse_inputs  # noqa: PLC0415
    from pytest_neuralpower.tracing import trace  # noqa: PLC0415 - imports torch

    positional, keywords = parse_inputs(inputs)
    model = load_model(target, parse_arguments(arguments or []))
    return trace(model.eval(), *positional, **keywords)  # one inference is what people ask for


def parse_arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """``name=value`` pairs with YAML values: 3 is a number, true a boolean, [1, 2] a list."""
    import yaml  # noqa: PLC0415 - only needed with --arg

    parsed = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name.isidentifier():
            raise ImportPathError(f"--arg {pair}: write name=value")
        try:
            parsed[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ImportPathError(f"--arg {pair}: {value!r} is not a YAML value") from None
    return parsed
