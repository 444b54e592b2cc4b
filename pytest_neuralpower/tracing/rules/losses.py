"""Losses: a softmax where they hold one, and one reduction of their operands."""

# ruff: noqa: A002, ARG001, PLR0917
# A rule has the signature of its torch function, names, order and unused arguments included.

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pytest_neuralpower.tracing.rules.reduction import reduced_shape, softmax
from pytest_neuralpower.tracing.rules.table import Entry, enter, rule
from pytest_neuralpower.tracing.signals import NoRule
from pytest_neuralpower.tracing.strides import broadcast_shapes

if TYPE_CHECKING:
    from torch import Tensor

    from pytest_neuralpower.tracing.recorder import Recorder

__all__: list[str] = []

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
