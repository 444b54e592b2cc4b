"""The trained model and the data that the pruning commands were given."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_neuralpower.cli.model import parse_arguments
from pytest_neuralpower.errors import OptionError, RemedyError
from pytest_neuralpower.model_source import import_object, load_model

if TYPE_CHECKING:
    from torch import nn

__all__ = ["check_outputs", "load_trained", "read_calibration"]


def check_outputs(files: Mapping[str, Path | None]) -> None:
    """Raise :class:`OptionError` where a file, by its option, could not be written in the end."""
    for option, path in files.items():
        if path is None:
            continue
        if path.is_dir():
            raise OptionError(f"{option} {path}: it is a folder; name a file in it")
        if not path.parent.is_dir():
            raise OptionError(f"{option} {path}: there is no folder {path.parent}; make it first")
        if not os.access(path.parent, os.W_OK):
            raise OptionError(
                f"{option} {path}: {path.parent} cannot be written; name another file"
            )


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
