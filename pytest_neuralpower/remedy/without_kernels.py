"""Autograd's graph of a call by the tracer's shape rules: nothing computed, no slow meta kernel.

Torch's own meta kernels would do; but the first of them imports ``torch._dynamo``, which takes
seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pytest_neuralpower.tracing.recorder import Recorder
from pytest_neuralpower.tracing.rules import TABLE

__all__ = ["WithoutKernels"]

#: Operations of these kinds keep, mix or reduce channels, none moves them.
_KINDS: Final = (
    "conv",
    "linear",
    "matmul",
    "pool",
    "norm",
    "activation",
    "softmax",
    "elementwise",
    "reduction",
    "attention",
)

#: So do these that only copy.
_COPIES: Final = ("clone", "contiguous", "to", "pad", "interpolate")


class _Opaque(torch.autograd.Function):
    """A tensor like ``planned`` that depends on ``tensors``."""

    @staticmethod
    def forward(_ctx: Any, planned: Tensor, *_tensors: Tensor) -> Tensor:
        return torch.empty_strided(
            planned.shape, planned.stride(), dtype=planned.dtype, device="meta"
        )


class _Cat(torch.autograd.Function):
    """The same for ``cat``: torch-pruning knows it by its name and ``_saved_dim``."""

    @staticmethod
    def forward(ctx: Any, planned: Tensor, dim: int, *_tensors: Tensor) -> Tensor:
        ctx._saved_dim = dim
        return _Opaque.forward(ctx, planned)


class WithoutKernels(TorchFunctionMode):
    """Answers torch functions on tensors without data, so that autograd sees who used whom.

    What has no rule, returns several tensors or writes in place is left to torch.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        entry = TABLE.get(func)
        if entry is not None and entry.treatment == "rule" and entry.rule is not None:
            operands = list(_tensors((*args, *kwargs.values())))
            if any(tensor.is_meta for tensor in operands):
                planned = self._plan(entry.op, entry.rule, args, kwargs)
                if type(planned) is Tensor and not any(planned is each for each in operands):
                    if entry.op == "cat":
                        dim = _cat_dim(*args, **kwargs) % planned.dim()
                        return _Cat.apply(planned, dim, *operands)  # type: ignore[no-untyped-call]
                    return _Opaque.apply(planned, *operands)  # type: ignore[no-untyped-call]
        return func(*args, **kwargs)

    @staticmethod
    def _plan(op: str, rule: Any, args: Any, kwargs: Any) -> Tensor | None:
        """What the operation returns, by its shape rule; None where torch must say."""
        recorder = Recorder("cpu")
        try:
            with torch.no_grad():
                planned = rule(recorder, *args, **kwargs)
        except Exception:  # the rule does not know: torch does, or says what is wrong
            return None
        kind = recorder.layers[-1].kind if recorder.layers else ""
        known = kind in _KINDS or (kind == "memory" and op in (*_COPIES, "cat"))
        found: Tensor | None = planned if known and isinstance(planned, Tensor) else None
        return found


def _cat_dim(_tensors: Any = (), dim: int = 0, axis: int | None = None, **_: Any) -> int:
    return dim if axis is None else axis


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
