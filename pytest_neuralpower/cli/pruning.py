"""The trained model and the data that the pruning commands were given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_neuralpower.cli.model import parse_arguments
from pytest_neuralpower.errors import RemedyError
from pytest_neuralpower.model_source import import_object, load_model

if TYPE_CHECKING:
    from torch import nn

__all__ = ["load_trained", "read_calibration"]


def load_trained(target: str, arguments: Sequence[str] | None, state: Path | None) -> nn.Module:
    """The model that an import path names, with values, and perhaps a state dict loaded.

    Raises
    ------
    NeuralPowerError
        It cannot be built, or the state dict is not its own.
    """
    from torch import nn  # noqa: PLC0415 - slow

    from pytest_neuralpower.remedy.tensor_files import load_state  # noqa: PLC0415

    model = load_model(target, parse_arguments(arguments or []), with_values=True)
    if not isinstance(model, nn.Module):
        raise RemedyError(f"{target} returned a {type(model).__name__}, not a torch.nn.Module")
    if state is not None:
        try:
            model.load_state_dict(load_state(state))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise RemedyError(f"{state} is not of this model: {reason}") from None
    return model


def read_calibration(source: str) -> Any:
    """Batches from ``file.py:function`` (called without arguments) or from a ``.pt`` file."""
    if source.endswith((".pt", ".pth")):
        from pytest_neuralpower.remedy.tensor_files import load_tensors  # noqa: PLC0415 - torch

        return load_tensors(source)
    found = import_object(source)
    return found() if callable(found) else found
