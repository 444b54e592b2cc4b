"""Quantised operations: torch packs their weights, so they are listed from what went in and out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from pytest_neuralpower.layers import TensorSpec

if TYPE_CHECKING:
    from pytest_neuralpower.tracing.recorder import Recorder

__all__ = ["list_quantized"]


def list_quantized(recorder: Recorder, func: Any, args: Any, result: Any) -> bool:
    """List a quantised linear layer or convolution; ``False`` if it is neither."""
    name = str(getattr(func, "_qualified_op_name", ""))
    if not name.startswith("quantized::") or not isinstance(result, Tensor):
        return False
    op = name.removeprefix("quantized::")
    spec = recorder.spec
    if op.startswith("linear") and isinstance(args[0], Tensor):
        weight = TensorSpec((result.shape[-1], args[0].shape[-1]), "qint8")
        recorder.add("linear", op, (spec(args[0]),), (weight,), (spec(result),))
        return True
    if op.startswith("conv") and isinstance(args[0], Tensor) and hasattr(args[1], "unpack"):
        packed = args[1]
        # The packed form has its own layout; only unpacking tells the kernel's shape.
        weight_shape = tuple(packed.unpack()[0].shape)
        recorder.add(
            "conv",
            op,
            (spec(args[0]),),
            (TensorSpec(weight_shape, "qint8"),),
            (spec(result),),
            (
                ("dilation", tuple(packed.dilation())),
                ("groups", packed.groups()),
                ("padding", tuple(packed.padding())),
                ("stride", tuple(packed.stride())),
                ("transposed", bool(packed.transpose())),
            ),
        )
        return True
    return False
