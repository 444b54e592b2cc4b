"""Files of tensors: state dicts and data, read as data alone and written whole."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pytest_neuralpower.errors import RemedyError

__all__ = ["load_state", "load_tensors", "save_state"]


def load_tensors(path: Path | str) -> Any:
    """What ``torch.save`` wrote, data alone.

    Raises
    ------
    RemedyError
        The file cannot be read, or has more than data.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise RemedyError(f"{path}: {error.strerror}") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RemedyError(f"{path} holds no tensors saved by torch.save: {reason}") from None


def load_state(path: Path | str) -> Mapping[str, torch.Tensor]:
    """A state dict from its file; raises :class:`RemedyError` for anything else."""
    state = load_tensors(path)
    if not isinstance(state, Mapping):
        raise RemedyError(f"{path} is no state dict: write it with torch.save(model.state_dict())")
    return state


def save_state(model: nn.Module, path: Path | str) -> None:
    """Write the model's state dict, all of it or nothing."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        torch.save(model.state_dict(), name)
        Path(name).chmod(0o644)  # mkstemp's file is private
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
