"""Calls of a model: the user's inputs and calibration data in one form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from pytest_neuralpower.errors import CompressError

__all__ = ["Call", "as_call", "calibration_calls", "samples_of"]


class Call(NamedTuple):
    """Arguments of one forward call."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def as_call(inputs: Any) -> Call:
    """One call from a tensor, a sequence of positional or a mapping of named arguments."""
    if isinstance(inputs, Call):
        return inputs
    if isinstance(inputs, torch.Tensor):
        return Call((inputs,), {})
    if isinstance(inputs, Mapping):
        return Call((), dict(inputs))
    if isinstance(inputs, Sequence) and not isinstance(inputs, str):
        return Call(tuple(inputs), {})
    raise CompressError(
        f"inputs is a {type(inputs).__name__}: give a tensor, a tuple of positional arguments or "
        "a dict of named ones"
    )


def calibration_calls(calibration: Any, example: Call) -> tuple[Call, ...]:
    """The calls whose feature maps are sampled; labels are dropped.

    Parameters
    ----------
    calibration
        One tensor, or an iterable of batches: tensors, tuples of which the first as many as
        ``example`` has positional arguments are used (a ``DataLoader``'s labels come after them),
        or mappings.

    Raises
    ------
    CompressError
        There is no batch, or a batch is no call.
    """
    if isinstance(calibration, torch.Tensor):
        return (Call((calibration,), {}),)
    if not isinstance(calibration, Iterable) or isinstance(calibration, str | Mapping):
        raise CompressError(
            f"calibration is a {type(calibration).__name__}: give a tensor or an iterable of "
            "batches, such as a DataLoader; labels are not needed"
        )
    calls = []
    for batch in calibration:
        call = as_call(batch)
        if call.args and len(call.args) < len(example.args):
            raise CompressError(
                f"calibration: a batch has {len(call.args)} values, the model's call has "
                f"{len(example.args)}; give every input of the model"
            )
        calls.append(Call(call.args[: len(example.args)], call.kwargs))
    if not calls:
        raise CompressError("calibration has no batch: give some inputs; labels are not needed")
    return tuple(calls)


def samples_of(calls: Iterable[Call]) -> int:
    """First dimensions of the calls' first tensors, added up."""
    total = 0
    for call in calls:
        values = (*call.args, *call.kwargs.values())
        total += next((v.shape[0] for v in values if isinstance(v, torch.Tensor) and v.dim()), 0)
    return total
