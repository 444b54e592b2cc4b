"""Reductions, scans, softmax and losses."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from pytest_neuralpower.tracing.fallbacks import NoRule
from pytest_neuralpower.tracing.recorder import REMEMBERED, OperationPlan, planned, spec_of
from pytest_neuralpower.tracing.rules.elementwise import pointwise
from pytest_neuralpower.tracing.strides import Ints, broadcast_shapes

if TYPE_CHECKING:
    from pytest_neuralpower.tracing.recorder import Recorder
    from pytest_neuralpower.tracing.rules.table import Rule


def _reduced_shape(shape: Any, dim: Any, keepdim: bool) -> Ints:
    """Shape after reducing ``dim``: an int, several, or ``None`` (or none) for all.

    Raises
    ------
    NoRule
        A dimension is out of range or named twice.
    """
    rank = len(shape)
    if dim is None or dim in ((), []):
        axes = set(range(rank))
    else:
        dims = (dim,) if isinstance(dim, int) else tuple(dim)
        if any(not -max(rank, 1) <= axis < max(rank, 1) for axis in dims):
            raise NoRule
        axes = {axis % max(rank, 1) for axis in dims}
        if len(axes) != len(dims):
            raise NoRule
    if keepdim:
        return tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def _result(op: str, dtype: torch.dtype) -> torch.dtype:
    """Dtype of a reduction or scan; sums and products widen small integers."""
    if op in ("argmax", "argmin", "count_nonzero"):
        return torch.int64
    if op in ("any", "all"):
        if dtype is torch.uint8:
            raise NoRule  # stays uint8 where others become bool
        return torch.bool
    if op in ("sum", "prod", "nansum", "cumsum", "cumprod"):
        floating = dtype.is_floating_point or dtype.is_complex
        return dtype if floating else torch.int64
    if op == "logsumexp" and not dtype.is_floating_point:
        return torch.get_default_dtype()
    if op in ("mean", "std", "var", "nanmean") and not dtype.is_floating_point:
        raise NoRule  # torch refuses them
    return dtype


def _reduce(
    recorder: Recorder,
    op: str,
    input: Tensor,
    dim: Any = None,
    *args: Any,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    axis: Any = None,
    unbiased: Any = None,
    correction: Any = None,
) -> Tensor:
    """Over one dimension, several, or all."""
    if out is not None:
        raise NoRule
    dim = axis if dim is None else dim
    if op in ("std", "var"):
        if isinstance(dim, bool):  # std(unbiased)
            dim = None
        if len(args) == 2:  # std(dim, unbiased, keepdim)
            keepdim = args[1]
        elif args:
            raise NoRule
    elif args:
        keepdim = args[0]
        if not isinstance(keepdim, bool):  # Tensor.amax(0, 1) and the like do not exist
            raise NoRule
    shape = _reduced_shape(input.shape, dim, keepdim)
    return recorder.result("reduction", op, (input,), shape, dtype or _result(op, input.dtype))


def _extremum(
    recorder: Recorder,
    op: str,
    input: Tensor,
    dim: Any = None,
    keepdim: bool = False,
    **named: Any,
) -> Any:
    """Of all, or along one dimension with the indices; of two tensors, their larger or smaller."""
    other = named.pop("other", dim if isinstance(dim, Tensor) else None)
    if named:
        raise NoRule
    if other is not None:  # torch.max(a, b) is torch.maximum
        return pointwise(recorder, f"{op}imum", (input, other))
    shape = _reduced_shape(input.shape, dim, keepdim)
    if dim is None:
        return recorder.result("reduction", op, (input,), shape, input.dtype)
    values, indices = recorder.new(shape, input.dtype), recorder.new(shape, torch.int64)
    recorder.record("reduction", op, (input,), (values, indices))
    return getattr(torch.return_types, op)((values, indices))


def _histc(
    recorder: Recorder, op: str, input: Tensor, bins: int = 100, min: float = 0, max: float = 0
) -> Tensor:
    return recorder.result("reduction", op, (input,), (bins,), input.dtype)


def _norm(
    recorder: Recorder,
    op: str,
    input: Tensor,
    p: Any = "fro",
    dim: Any = None,
    keepdim: bool = False,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    if out is not None or p == "nuc" or not input.dtype.is_floating_point:
        raise NoRule
    shape = _reduced_shape(input.shape, dim, keepdim)
    return recorder.result("reduction", op, (input,), shape, dtype or input.dtype)


def _vector_norm(
    recorder: Recorder,
    op: str,
    input: Tensor,
    ord: Any = 2,
    dim: Any = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    return _norm(recorder, op, input, 2, dim, keepdim, None, dtype)


def _scan(
    recorder: Recorder, op: str, input: Tensor, dim: int, *, dtype: torch.dtype | None = None
) -> Tensor:
    if not -max(input.ndim, 1) <= dim < max(input.ndim, 1):
        raise NoRule
    return recorder.result(
        "reduction", op, (input,), input.shape, dtype or _result(op, input.dtype)
    )


def softmax(
    recorder: Recorder,
    op: str,
    input: Tensor,
    dim: int | None = None,
    _stacklevel: Any = 3,
    dtype: torch.dtype | None = None,
) -> Tensor:
    if isinstance(_stacklevel, torch.dtype):  # torch.softmax(input, dim, dtype)
        dtype = _stacklevel
    own = input.dtype
    plan = _plan_softmax(op, input.shape, own, dtype or recorder.autocast_up(own), dim)
    return recorder.follow(plan, (recorder.dense(input),))


@lru_cache(REMEMBERED)
def _plan_softmax(
    op: str, shape: Ints, own: torch.dtype, dtype: torch.dtype, dim: int | None
) -> OperationPlan:
    rank = max(len(shape), 1)
    if not dtype.is_floating_point or (dim is not None and not -rank <= dim < rank):
        raise NoRule
    # A dtype converts inside the kernel on CUDA; on the CPU that is a copy, left out here. The
    # result is contiguous whatever the input is, as the real kernels answer.
    params = (("dim", rank - 1 if dim is None else dim % rank),)
    return planned("softmax", op, (spec_of(shape, own),), shape, dtype, params=params)


# -- Losses.


def _loss(
    recorder: Recorder, op: str, tensors: tuple[Any, ...], shape: Ints, reduction: Any
) -> Tensor:
    if reduction in ("mean", "sum", "batchmean"):
        shape = ()
    elif reduction != "none":
        raise NoRule
    return recorder.result("reduction", op, tensors, shape, tensors[0].dtype)


def _pointwise_loss(
    recorder: Recorder,
    op: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    **options: Any,
) -> Tensor:
    if size_average is not None or reduce is not None:
        raise NoRule
    shape = broadcast_shapes(input.shape, target.shape)
    return _loss(recorder, op, (input, target, weight), shape, reduction)


def _nll_loss(
    recorder: Recorder,
    op: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: Any = "mean",
) -> Tensor:
    shape = _class_shape(input, size_average, reduce)
    if tuple(target.shape) != shape:
        raise NoRule
    return _loss(recorder, op, (input, target, weight), shape, reduction)


def _cross_entropy(
    recorder: Recorder,
    op: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    shape = _class_shape(input, size_average, reduce)
    # The target names a class for each position, or is a distribution of the input's shape.
    if target.shape != input.shape and tuple(target.shape) != shape:
        raise NoRule
    log = softmax(recorder, "log_softmax", input, _class_axis(input))
    return _loss(recorder, "nll_loss", (log, target, weight), shape, reduction)


def _class_axis(input: Tensor) -> int:
    return 1 if input.ndim > 1 else 0


def _class_shape(input: Tensor, *deprecated: Any) -> Ints:
    if deprecated != (None, None):
        raise NoRule
    return _reduced_shape(input.shape, _class_axis(input), False)


def _cosine_similarity(
    recorder: Recorder, op: str, x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8
) -> Tensor:
    shape = _reduced_shape(broadcast_shapes(x1.shape, x2.shape), dim, False)
    return _loss(recorder, op, (x1, x2), shape, "none")


RULES: Final[dict[Any, Rule]] = {
    **dict.fromkeys(
        ("sum", "nansum", "mean", "nanmean", "amax", "amin", "logsumexp", "std", "var", "prod",
         "count_nonzero", "any", "all", "argmax", "argmin"),
        _reduce,
    ),
    **dict.fromkeys(("max", "min"), _extremum),
    **dict.fromkeys(("cumsum", "cumprod", "logcumsumexp"), _scan),
    **dict.fromkeys(("softmax", "log_softmax", "softmin"), softmax),
    **dict.fromkeys(
        ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy",
         "binary_cross_entropy_with_logits", "soft_margin_loss", "kl_div", "poisson_nll_loss"),
        _pointwise_loss,
    ),
    "histc": _histc,
    "norm": _norm,
    torch.linalg.vector_norm: _vector_norm,
    "nll_loss": _nll_loss,
    "cross_entropy": _cross_entropy,
    "cosine_similarity": _cosine_similarity,
}  # fmt: skip
