"""Example inputs of a budget file's models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_neuralpower.errors import BudgetFileError

if TYPE_CHECKING:
    import torch

    from pytest_neuralpower.budget_files.schema import InputSpec

__all__ = ["DTYPES", "make_inputs"]

#: torch's names of dtypes that an input may have.
DTYPES: Final = (
    *("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"),
    *("bool", "complex64"),
)


def make_inputs(
    given: tuple[InputSpec, ...] | str, folder: Path
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Positional and keyword inputs of one call.

    Parameters
    ----------
    given
        What to make, or an import path: of a tensor, of a tuple or list of positional or a mapping
        of keyword inputs, or of a function without arguments that returns one of these.
    folder
        Where a path of a file starts.

    Raises
    ------
    ImportPathError, BudgetFileError
        With one line: it cannot be imported, or is no input.
    """
    if isinstance(given, str):
        return _imported(given, folder)
    positional, keywords = [], {}
    for spec in given:
        if spec.name is None:
            positional.append(_tensor(spec))
        else:
            keywords[spec.name] = _tensor(spec)
    return positional, keywords


def _tensor(spec: InputSpec) -> torch.Tensor:
    """On the meta device where values can not matter: floating point without a range."""
    import torch  # noqa: PLC0415 - slow

    dtype = getattr(torch, spec.dtype)
    if spec.range is None:
        if dtype.is_floating_point or dtype.is_complex:
            return torch.empty(spec.shape, dtype=dtype, device="meta")
        # Zeros are valid indices; true masks nothing.
        return torch.full(spec.shape, dtype == torch.bool, dtype=dtype)
    low, high = spec.range
    count = 1
    for size in spec.shape:
        count *= size
    if dtype.is_floating_point or dtype.is_complex:
        return torch.linspace(low, high, count).reshape(spec.shape).to(dtype)
    # Every value of the range in turn: always the same, and both ends as soon as there is room.
    values = torch.arange(count) % (int(high) - int(low) + 1) + int(low)
    return values.reshape(spec.shape).to(dtype)


def _imported(path: str, folder: Path) -> tuple[Sequence[Any], Mapping[str, Any]]:
    import torch  # noqa: PLC0415 - slow

    from pytest_neuralpower.budget_files.imports import in_folder  # noqa: PLC0415
    from pytest_neuralpower.model_source import import_object  # noqa: PLC0415

    found = import_object(in_folder(path, folder))
    if callable(found) and not isinstance(found, torch.Tensor):
        try:
            found = found()
        except Exception as error:
            reason = " ".join(str(error).split())
            raise BudgetFileError(
                f"inputs: {path!r} raised {type(error).__name__}: {reason}"
            ) from error
    if isinstance(found, torch.Tensor):
        return [found], {}
    if isinstance(found, Mapping):
        return [], found
    if isinstance(found, list | tuple):
        return found, {}
    raise BudgetFileError(
        f"inputs: {path!r} gives a {type(found).__name__}; it must give a tensor, a tuple or list "
        "of positional inputs, or a mapping of keyword inputs"
    )
