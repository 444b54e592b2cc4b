"""Detours from a route that cannot go on, and tensors within nested arguments."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pytest_neuralpower.tracing.torch_private import qualified_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class _Detour(BaseException):
    """A route cannot go on.

    A ``BaseException``, so that a model's own ``except Exception`` does not swallow it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NeedsForward(_Detour):
    """The model's next step depends on values: only a real forward can tell."""


class NeedsAten(_Detour):
    """The model differentiates or batches inside forward: only the dispatcher sees those."""


class NoRule(Exception):  # noqa: N818 - a signal between modules, never an error shown
    """A rule does not cover this use of its operation; a fallback answers it."""


class ShapeMismatch(RuntimeError):  # noqa: N818 - likewise
    """Torch itself refuses these shapes or arguments; carries torch's message.

    A ``RuntimeError``, as torch raises, so that a model's own handling keeps working.
    """


# -- Functions and what they are given.


def name_of(func: Any) -> str:
    """``torch.Tensor.relu_`` is ``relu``, ``torch.ops.ns.op.default`` is ``op``."""
    name = str(qualified_name(func) or getattr(func, "__name__", None) or func)
    return name.rpartition("::")[2].rpartition(".")[2].strip("_") or "operation"


def is_plain(func: Any) -> bool:
    """Attribute access that no table names: getters and setters of properties."""
    return getattr(func, "__name__", "") in ("__get__", "__set__", "__delete__")


def map_tensors(change: Callable[[Any], Any], value: Any, kind: type = Tensor) -> Any:
    """Apply to every tensor (or instance of ``kind``) in nested containers.

    Named tuples and torch's own result types keep their type.
    """
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, (tuple, list)):
        own = type(value)
        items = [map_tensors(change, item, kind) for item in value]
        return own(*items) if hasattr(own, "_fields") else own(items)
    if type(value) is dict:
        return {key: map_tensors(change, item, kind) for key, item in value.items()}
    return value


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in nested containers."""
    found: list[Tensor] = []
    map_tensors(found.append, value)
    return found


def meta_like(tensor: Tensor) -> Tensor:
    """A tensor without data of the same shape, strides and dtype."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def describe(args: Any, kwargs: Any) -> str:
    """Shapes of the tensors among arguments, for a message."""
    shapes = [
        f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        for tensor in tensors_in((args, kwargs))
    ]
    return ", ".join(shapes) or "no tensor"


@contextmanager
def named_errors(op: str, args: Any, kwargs: Any) -> Iterator[None]:
    """Torch's refusal, with the operation and its shapes."""
    try:
        yield
    except ShapeMismatch:
        raise
    except NotImplementedError as error:
        raise NeedsForward(f"{op} has no kernel for tensors without data ({error})") from error
    except (RuntimeError, IndexError, ValueError) as error:
        raise mismatch(op, args, kwargs, error) from error


def mismatch(op: str, args: Any, kwargs: Any, error: Exception) -> ShapeMismatch:
    first = str(error).strip().partition("\n")[0]
    return ShapeMismatch(f"{op} cannot take {describe(args, kwargs)}: {first}")
