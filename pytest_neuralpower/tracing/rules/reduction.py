"""Reductions, scans and softmax."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from pytest_neuralpower.tracing.fallbacks import NoRule
from pytest_neuralpower.tracing.recorder import REMEMBERED, Plan, spec_of
from pytest_neuralpower.tracing.rules.elementwise import pointwise
from pytest_neuralpower.tracing.rules.table import TABLE, Entry, enter, rule
from pytest_neuralpower.tracing.strides import broadcast_shapes, contiguous_strides

if TYPE_CHECKING:
    from pytest_neuralpower.tracing.recorder import Recorder

__all__ = [
    "reduce",
    "reduced_shape",
    "softmax",
]


# ruff: noqa: A002, ARG001, PLR0917
# A rule has the signature of its torch function, names, order and unused arguments included.


#: Of one dimension or several; ``sum`` and ``prod`` widen small integers.
_MANY: Final = (
    "sum", "nansum", "mean", "nanmean", "amax", "amin", "logsumexp", "std", "var", "count_nonzero",
)  # fmt: skip
_BOOLEAN: Final = ("any", "all")
#: An index, or value and index.
_INDEX: Final = ("argmax", "argmin")
_VALUE_AND_INDEX: Final = ("max", "min", "median", "mode", "kthvalue", "cummax", "cummin")
_SCANS: Final = ("cumsum", "cumprod", "logcumsumexp")


def reduced_shape(shape: Any, dim: Any, keepdim: bool) -> tuple[int, ...]:
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


def reduce(
    recorder: Recorder, op: str, input: Tensor, dim: Any, keepdim: bool, dtype: torch.dtype
) -> Tensor:
    output = recorder.new(reduced_shape(input.shape, dim, keepdim), dtype)
    recorder.record("reduction", op, (input,), (output,))
    return output


def _widened(op: str, dtype: torch.dtype) -> torch.dtype:
    if op in ("sum", "prod", "nansum", "cumsum", "cumprod"):
        floating = dtype.is_floating_point or dtype.is_complex
        return dtype if floating else torch.int64
    if op == "count_nonzero":
        return torch.int64
    if op == "logsumexp" and not dtype.is_floating_point:
        return torch.get_default_dtype()
    if op in ("mean", "std", "var", "nanmean") and not dtype.is_floating_point:
        raise NoRule  # torch refuses them
    return dtype


def _register_many(name: str) -> None:
    def forward(
        recorder: Recorder,
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
        if out is not None:
            raise NoRule
        dim = axis if dim is None else dim
        if name in ("std", "var"):
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
        result = dtype or _widened(name, input.dtype)
        return reduce(recorder, name, input, dim, keepdim, result)

    enter(Entry("rule", name, forward), name)


for _name in _MANY:
    _register_many(_name)


def _register_boolean(name: str) -> None:
    def forward(
        recorder: Recorder, input: Tensor, dim: Any = None, keepdim: bool = False
    ) -> Tensor:
        if input.dtype is torch.uint8:
            raise NoRule  # stays uint8 where others become bool
        return reduce(recorder, name, input, dim, keepdim, torch.bool)

    enter(Entry("rule", name, forward), name)


for _name in _BOOLEAN:
    _register_boolean(_name)


def _register_index(name: str) -> None:
    def forward(
        recorder: Recorder, input: Tensor, dim: int | None = None, keepdim: bool = False
    ) -> Tensor:
        return reduce(recorder, name, input, dim, keepdim, torch.int64)

    enter(Entry("rule", name, forward), name)


for _name in _INDEX:
    _register_index(_name)


@rule("prod")
def prod(
    recorder: Recorder,
    input: Tensor,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    return reduce(recorder, "prod", input, dim, keepdim, dtype or _widened("prod", input.dtype))


def _register_extremum(name: str) -> None:
    result_type = getattr(torch.return_types, name)

    def forward(
        recorder: Recorder, input: Tensor, dim: Any = None, keepdim: bool = False, **named: Any
    ) -> Any:
        other = named.pop("other", dim if isinstance(dim, Tensor) else None)
        if named:
            raise NoRule
        if other is not None:  # torch.max(a, b) is torch.maximum
            return pointwise(recorder, f"{name}imum", (input, other))
        shape = reduced_shape(input.shape, dim, keepdim)
        values = recorder.new(shape, input.dtype)
        if dim is None:
            recorder.record("reduction", name, (input,), (values,))
            return values
        indices = recorder.new(shape, torch.int64)
        recorder.record("reduction", name, (input,), (values, indices))
        return result_type((values, indices))

    enter(Entry("rule", name, forward), name)


for _name in ("max", "min"):
    _register_extremum(_name)


@rule("histc")
def histc(
    recorder: Recorder, input: Tensor, bins: int = 100, min: float = 0, max: float = 0
) -> Tensor:
    output = recorder.new((bins,), input.dtype)
    recorder.record("reduction", "histc", (input,), (output,))
    return output


def _norm(
    recorder: Recorder,
    input: Tensor,
    p: Any = "fro",
    dim: Any = None,
    keepdim: bool = False,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    if out is not None or p == "nuc" or not input.dtype.is_floating_point:
        raise NoRule
    return reduce(recorder, "norm", input, dim, keepdim, dtype or input.dtype)


enter(Entry("rule", "norm", _norm), "norm")


def _linalg_norm(
    recorder: Recorder,
    input: Tensor,
    ord: Any = 2,
    dim: Any = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    return _norm(recorder, input, 2, dim, keepdim, None, dtype)


TABLE[torch.linalg.vector_norm] = Entry("rule", "norm", _linalg_norm)


def _register_scan(name: str) -> None:
    def forward(
        recorder: Recorder, input: Tensor, dim: int, *, dtype: torch.dtype | None = None
    ) -> Tensor:
        if not -max(input.ndim, 1) <= dim < max(input.ndim, 1):
            raise NoRule
        output = recorder.new(input.shape, dtype or _widened(name, input.dtype))
        recorder.record("reduction", name, (input,), (output,))
        return output

    enter(Entry("rule", name, forward), name)


for _name in _SCANS:
    _register_scan(_name)


def softmax(
    recorder: Recorder,
    op: str,
    input: Tensor,
    dim: int | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    own = input.dtype
    return recorder.follow(
        _plan_softmax(op, input.shape, own, dtype or recorder.autocast_up(own), dim)
    )


@lru_cache(REMEMBERED)
def _plan_softmax(
    op: str, shape: tuple[int, ...], own: torch.dtype, dtype: torch.dtype, dim: int | None
) -> Plan:
    rank = max(len(shape), 1)
    if not dtype.is_floating_point or (dim is not None and not -rank <= dim < rank):
        raise NoRule
    output = spec_of(shape, dtype)
    return Plan(
        "softmax",
        op,
        # A dtype converts inside the kernel on CUDA; on the CPU that is a copy, left out here.
        (spec_of(shape, own),),
        (),
        (output,),
        output.dtype,
        (("dim", rank - 1 if dim is None else dim % rank),),
        shape,
        contiguous_strides(shape),  # whatever the input's, as the real kernels answer
        dtype,
    )


def _register_softmax(name: str) -> None:
    def forward(
        recorder: Recorder,
        input: Tensor,
        dim: int | None = None,
        _stacklevel: Any = 3,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        if isinstance(_stacklevel, torch.dtype):  # torch.softmax(input, dim, dtype)
            dtype = _stacklevel
        return softmax(recorder, name, input, dim, dtype)

    enter(Entry("rule", name, forward), name)


for _name in ("softmax", "log_softmax", "softmin"):
    _register_softmax(_name)


# -- Losses: a softmax where they hold one, and one reduction of their operands.

# ruff: noqa: A002, ARG001, PLR0917
# A rule has the signature of its torch function, names, order and unused arguments included.


_POINTWISE: Final = (
    "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy",
    "binary_cross_entropy_with_logits", "soft_margin_loss", "kl_div", "poisson_nll_loss",
)  # fmt: skip


def _reduced(
    recorder: Recorder, op: str, tensors: tuple[Any, ...], shape: Any, reduction: str
) -> Tensor:
    if reduction in ("mean", "sum", "batchmean"):
        shape = ()
    elif reduction != "none":
        raise NoRule
    output = recorder.new(tuple(shape), tensors[0].dtype)
    recorder.record("reduction", op, tensors, (output,))
    return output


def _register(name: str) -> None:
    def forward(
        recorder: Recorder,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        size_average: Any = None,
        reduce: Any = None,
        reduction: str = "mean",
        **options: Any,
    ) -> Tensor:
        if size_average is not None or reduce is not None or not isinstance(reduction, str):
            raise NoRule
        shape = broadcast_shapes(input.shape, target.shape)
        return _reduced(recorder, name, (input, target, weight), shape, reduction)

    enter(Entry("rule", name, forward), name)


for _name in _POINTWISE:
    _register(_name)


@rule("nll_loss")
def nll_loss(
    recorder: Recorder,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: Any = "mean",
) -> Tensor:
    if size_average is not None or reduce is not None or not isinstance(reduction, str):
        raise NoRule
    classes = 1 if input.ndim > 1 else 0
    wanted = reduced_shape(input.shape, classes, False)
    if tuple(target.shape) != wanted:
        raise NoRule
    return _reduced(recorder, "nll_loss", (input, target, weight), wanted, reduction)


@rule("cross_entropy")
def cross_entropy(
    recorder: Recorder,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    if size_average is not None or reduce is not None:
        raise NoRule
    classes = 1 if input.ndim > 1 else 0
    wanted = reduced_shape(input.shape, classes, False)
    # The target names a class for each position, or is a distribution of the input's shape.
    if target.shape != input.shape and tuple(target.shape) != wanted:
        raise NoRule
    log = softmax(recorder, "log_softmax", input, classes)
    return _reduced(recorder, "nll_loss", (log, target, weight), wanted, reduction)


@rule("cosine_similarity")
def cosine_similarity(
    recorder: Recorder, x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8
) -> Tensor:
    shape = reduced_shape(broadcast_shapes(x1.shape, x2.shape), dim, False)
    return _reduced(recorder, "cosine_similarity", (x1, x2), shape, "none")
