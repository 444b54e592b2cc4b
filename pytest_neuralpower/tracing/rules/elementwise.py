"""Pointwise operations and activations: broadcasting, type promotion, the operands' layout."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.nn import Parameter

from pytest_neuralpower.tracing.fallbacks import NoRule
from pytest_neuralpower.tracing.recorder import REMEMBERED, OperationPlan, planned, spec_of
from pytest_neuralpower.tracing.strides import Ints, dense_like, elementwise_layout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_neuralpower.tracing.recorder import Recorder
    from pytest_neuralpower.tracing.rules.table import Rule

#: Of a layer that writes over its first operand: on a processor it takes half the time.
_WRITES_OVER: Final = (("inplace", True),)

#: Torch refuses (some) booleans.
_NOT_OF_BOOLEANS: Final = ("sub", "rsub", "floor_divide", "remainder", "fmod")


def unary(
    recorder: Recorder, kind: str, op: str, input: Tensor, dtype: torch.dtype, inplace: bool
) -> Tensor:
    """One input, one output of its shape."""
    parameter = type(input) is Parameter
    if parameter:
        recorder.seen.add(id(input))
    plan = _plan_unary(
        kind, op, input.shape, input.stride(), input.dtype, dtype, parameter, inplace
    )
    return recorder.follow(plan, (input,), input if inplace else None)


@lru_cache(REMEMBERED)
def _plan_unary(
    kind: str,
    op: str,
    shape: Ints,
    strides: Ints,
    dtype: torch.dtype,
    result: torch.dtype,
    parameter: bool,
    inplace: bool,
) -> OperationPlan:
    given = (spec_of(shape, dtype),)
    return planned(
        kind, op, () if parameter else given, shape, result, weights=given if parameter else (),
        params=_WRITES_OVER if inplace else (), strides=dense_like(shape, strides),
    )  # fmt: skip


#: A tensor as (shape, strides, dtype, is a parameter), a number as its type.
_Operand = tuple[Ints, Ints, torch.dtype, bool] | type


def pointwise(
    recorder: Recorder,
    op: str,
    operands: Sequence[Any],
    inplace: bool = False,
    result: torch.dtype | str = "promoted",
    kind: str = "elementwise",
    also_read: tuple[Any, ...] = (),
) -> Tensor:
    """Several operands, tensors or numbers, broadcast against each other.

    ``result`` is the dtype, or ``"promoted"`` (the operands' common one), or ``"float"`` (the
    same, but integers become floats).
    """
    given: list[_Operand] = []
    for operand in operands:
        own = type(operand)
        if own is Tensor:
            given.append((operand.shape, operand.stride(), operand.dtype, False))
        elif own is Parameter:
            recorder.seen.add(id(operand))
            given.append((operand.shape, operand.stride(), operand.dtype, True))
        elif own in _NUMBERS:
            given.append(own)
        elif isinstance(operand, Tensor):
            given.append((operand.shape, operand.stride(), operand.dtype, False))
        else:
            given.append(_number_type(operand))
    plan = _plan_pointwise(kind, op, tuple(given), result, inplace, torch.get_default_dtype())
    # In place, the plan has checked that the first operand has the result's shape.
    reads = (*operands, *also_read) if also_read else operands
    return recorder.follow(plan, reads, operands[0] if inplace else None)


_NUMBERS: Final = (int, float, bool, complex)


def _number_type(value: Any) -> type:
    """``float`` for numpy's ``float64``, which is one."""
    for number in (bool, int, float, complex):
        if isinstance(value, number):
            return number
    raise NoRule


@lru_cache(REMEMBERED)
def _plan_pointwise(
    kind: str,
    op: str,
    given: tuple[_Operand, ...],
    result: torch.dtype | str,
    inplace: bool,
    default: torch.dtype,
) -> OperationPlan:
    tensors = [one for one in given if isinstance(one, tuple)]
    if op in _NOT_OF_BOOLEANS and any(
        (one[2] if isinstance(one, tuple) else one) in (torch.bool, bool) for one in given
    ):
        raise NoRule
    if isinstance(result, torch.dtype):
        dtype = result
    else:
        dtype = _promote(given, default)
        if result == "float" and not (dtype.is_floating_point or dtype.is_complex):
            dtype = default
    if len(tensors) == 1:
        shape, own = tensors[0][:2]
        strides = dense_like(shape, own)
    else:
        shape, strides = elementwise_layout(tuple((one[0], one[1]) for one in tensors))
    if inplace:
        first = given[0]
        if not isinstance(first, tuple) or shape != first[0]:
            raise NoRule
        dtype = first[2]
    return planned(
        kind, op, tuple(spec_of(one[0], one[2]) for one in tensors if not one[3]), shape, dtype,
        weights=tuple(spec_of(one[0], one[2]) for one in tensors if one[3]),
        params=_WRITES_OVER if inplace else (), strides=strides,
    )  # fmt: skip


def _promote(given: tuple[_Operand, ...], default: torch.dtype) -> torch.dtype:
    """Common dtype: tensors with dimensions decide, unless a 0-d tensor or a number is of a
    higher category (boolean, integer, floating, complex). Torch's ``result_type``."""
    of_rank: list[torch.dtype | None] = [None, None, None]
    numbers = {
        bool: torch.bool,
        int: torch.int64,
        float: default,
        complex: torch.complex128 if default is torch.float64 else torch.complex64,
    }
    for one in given:
        rank, dtype = (0 if one[0] else 1, one[2]) if isinstance(one, tuple) else (2, numbers[one])
        known = of_rank[rank]
        of_rank[rank] = dtype if known is None else torch.promote_types(known, dtype)
    common: torch.dtype | None = None
    for dtype_or_none in of_rank:
        if dtype_or_none is None:
            continue
        if common is None:
            common = dtype_or_none
        elif _category(dtype_or_none) > _category(common):
            common = torch.promote_types(common, dtype_or_none)
    assert common is not None
    return common


def _category(dtype: torch.dtype) -> int:
    if dtype.is_complex:
        return 3
    if dtype.is_floating_point:
        return 2
    return 0 if dtype is torch.bool else 1


def _unary(
    recorder: Recorder,
    op: str,
    input: Tensor,
    *args: Any,
    becomes: str = "same",
    inplace: bool = False,
    **named: Any,
) -> Tensor:
    """One operand; ``becomes`` says of what dtype the result is.

    ``"activation"`` keeps it, of floats alone (an integer is torch's error, which a fallback then
    says); ``"float"`` turns integers into floats; ``"bool"`` answers booleans.
    """
    dtype = input.dtype
    kind = "elementwise"
    if becomes == "activation":
        if not dtype.is_floating_point:
            raise NoRule
        kind = "activation"
    elif becomes == "float":
        if not (dtype.is_floating_point or dtype.is_complex):
            dtype = torch.get_default_dtype()
        kind = "activation" if op in ("sigmoid", "tanh") else "elementwise"
    elif becomes == "bool":
        dtype = torch.bool
    elif dtype.is_complex or (dtype is torch.bool and op != "bitwise_not"):
        raise NoRule  # refused, or (abs of complex) of another dtype
    # Further arguments are numbers; a tensor among them makes another operation.
    if named.get("out") is not None or any(isinstance(arg, Tensor) for arg in args):
        raise NoRule
    return unary(recorder, kind, op, input, dtype, inplace)


_activation, _to_float = partial(_unary, becomes="activation"), partial(_unary, becomes="float")
_to_same, _to_boolean = partial(_unary, becomes="same"), partial(_unary, becomes="bool")


def _several(
    recorder: Recorder,
    op: str,
    input: Any,
    *others: Any,
    becomes: torch.dtype | str = "promoted",
    inplace: bool = False,
    out: Tensor | None = None,
    rounding_mode: str | None = None,
    alpha: Any = None,
    value: Any = None,
    **named: Any,
) -> Tensor:
    """Several operands; ``becomes`` is the ``result`` of :func:`pointwise`."""
    if out is not None:
        raise NoRule
    if rounding_mode is not None:  # rounding division of integers stays among integers
        becomes = "promoted"
    return pointwise(recorder, op, (input, *others, *named.values()), inplace, becomes)


_promoted, _quotient = partial(_several, becomes="promoted"), partial(_several, becomes="float")
_comparison = partial(_several, becomes=torch.bool)


def _in_place_operator(recorder: Recorder, op: str, input: Tensor, other: Any) -> Tensor:
    return pointwise(recorder, op, (input, other), True)


def _prelu(recorder: Recorder, op: str, input: Tensor, weight: Tensor) -> Tensor:
    if weight.numel() not in (1, input.shape[1] if input.ndim > 1 else 1):
        raise NoRule
    return recorder.record("activation", op, (input, weight), recorder.like(input))


def _clamp(
    recorder: Recorder, op: str, input: Tensor, min: Any = None, max: Any = None,
    inplace: bool = False,
) -> Tensor:  # fmt: skip
    limits = [limit for limit in (min, max) if limit is not None]
    if inplace:  # keeps its dtype, whatever the numbers
        limits = [limit for limit in limits if isinstance(limit, Tensor)]
    return pointwise(recorder, op, (input, *limits), inplace)


def _glu(recorder: Recorder, op: str, input: Tensor, dim: int = -1) -> Tensor:
    """Half the channels, gated by the sigmoid of the other half."""
    shape = list(input.shape)
    if shape[dim] % 2:
        raise NoRule
    shape[dim] //= 2
    return recorder.result("activation", op, (input,), tuple(shape), input.dtype)


def _where(recorder: Recorder, op: str, condition: Tensor, input: Any, other: Any) -> Tensor:
    if not isinstance(condition, Tensor):
        raise NoRule
    dtype = torch.result_type(input, other)
    tensors = tuple(operand for operand in (condition, input, other) if isinstance(operand, Tensor))
    return pointwise(recorder, op, tensors, result=dtype)


def _where_method(recorder: Recorder, op: str, input: Tensor, condition: Any, other: Any) -> Tensor:
    return _where(recorder, op, condition, input, other)


def _masked_fill(
    recorder: Recorder, op: str, input: Tensor, mask: Tensor, value: Any, inplace: bool = False
) -> Tensor:
    return pointwise(recorder, op, (input, mask), inplace, input.dtype, also_read=(value,))


def _dropout(
    recorder: Recorder,
    op: str,
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Tensor:
    """Free in evaluation, where it returns its input."""
    if not training:
        return input
    if not 0 <= p <= 1:
        raise NoRule
    return unary(recorder, "elementwise", op, input, input.dtype, inplace)


_AS_WRITTEN: Final = (
    "A quantised graph is listed as it is written: it computes in floating point with what it "
    "dequantises; a backend may compute in 8 bits instead."
)


def _quantize(recorder: Recorder, op: str, input: Tensor, *more: Any, **options: Any) -> Tensor:
    """To the dtype among its arguments; scales are read, too."""
    given = (*more, *options.values())
    dtype = next((each for each in given if isinstance(each, torch.dtype)), None)
    if dtype is None:
        raise NoRule
    return pointwise(recorder, op, (input,), False, dtype, also_read=given)


def _dequantize(
    recorder: Recorder, op: str, input: Tensor, *more: Any, out_dtype: Any = None, **options: Any
) -> Tensor:
    recorder.notes[_AS_WRITTEN] = None
    given = (*more, *options.values())
    dtype = out_dtype or torch.float32
    return pointwise(recorder, op, (input,), False, dtype, also_read=given)


DROPOUTS: Final = (
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout",
    "feature_alpha_dropout",
)  # fmt: skip

#: Rules that also answer for the function's form in place, ``relu_``.
IN_PLACE: Final = (
    _activation, _to_float, _to_same, _to_boolean, _promoted, _quotient, _comparison, _clamp,
    _masked_fill, _dropout,
)  # fmt: skip

#: How torch's graphs of quantised models spell it, of one scale or of many.
_SCALES: Final = ("tensor", "channel", "token", "channel_group")

RULES: Final[dict[Any, Rule]] = {
    **{f"quantized_decomposed::quantize_per_{scales}": _quantize for scales in _SCALES},
    **{f"quantized_decomposed::dequantize_per_{scales}": _dequantize for scales in _SCALES},
    **dict.fromkeys(
        ("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish",
         "hardsigmoid", "hardtanh", "softplus", "softsign", "tanhshrink", "hardshrink",
         "softshrink", "threshold", "_threshold", "rrelu", "logsigmoid", "log_sigmoid"),
        _activation,
    ),
    **dict.fromkeys(
        ("sigmoid", "tanh", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt",
         "rsqrt", "sin", "cos", "tan", "asin", "acos", "atan", "arcsin", "arccos", "arctan",
         "sinh", "cosh", "asinh", "acosh", "atanh", "erf", "erfc", "erfinv", "reciprocal",
         "lgamma", "digamma", "deg2rad", "rad2deg", "sinc", "i0", "logit"),
        _to_float,
    ),
    **dict.fromkeys(
        ("neg", "negative", "abs", "absolute", "floor", "ceil", "round", "trunc", "fix", "frac",
         "sign", "sgn", "square", "clamp_min", "clamp_max", "nan_to_num", "positive",
         "bitwise_not", "__invert__"),
        _to_same,
    ),
    **dict.fromkeys(
        ("isnan", "isinf", "isfinite", "isposinf", "isneginf", "logical_not", "signbit"),
        _to_boolean,
    ),
    **dict.fromkeys(
        ("add", "sub", "subtract", "mul", "multiply", "rsub", "maximum", "minimum", "fmax", "fmin",
         "remainder", "fmod", "floor_divide", "bitwise_and", "bitwise_or", "bitwise_xor",
         "copysign", "bitwise_left_shift", "bitwise_right_shift", "pow", "lerp", "addcmul",
         "addcdiv", "heaviside", "gcd", "lcm", "hypot", "__add__", "__radd__", "__sub__",
         "__rsub__", "__mul__", "__rmul__", "__pow__", "__rpow__", "__mod__", "__rmod__",
         "__floordiv__", "__rfloordiv__", "__and__", "__rand__", "__or__", "__ror__", "__xor__",
         "__rxor__", "__lshift__", "__rshift__"),
        _promoted,
    ),
    **dict.fromkeys(
        ("div", "divide", "true_divide", "__truediv__", "__rtruediv__", "__div__", "__rdiv__",
         "atan2", "arctan2", "logaddexp", "logaddexp2", "xlogy"),
        _quotient,
    ),
    **dict.fromkeys(
        ("eq", "ne", "not_equal", "lt", "less", "le", "less_equal", "gt", "greater", "ge",
         "greater_equal", "logical_and", "logical_or", "logical_xor", "isclose", "__eq__",
         "__ne__", "__lt__", "__le__", "__gt__", "__ge__"),
        _comparison,
    ),
    **dict.fromkeys(
        ("__iadd__", "__isub__", "__imul__", "__itruediv__", "__idiv__", "__ipow__", "__imod__",
         "__ifloordiv__", "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__"),
        _in_place_operator,
    ),
    **dict.fromkeys(DROPOUTS, _dropout),
    **dict.fromkeys(("clamp", "clip"), _clamp),
    "prelu": _prelu,
    "glu": _glu,
    "where": _where,
    Tensor.where: _where_method,
    # Wrappers in Python, called as the function that they wrap.
    Tensor.__pow__: _promoted,
    Tensor.__ipow__: _in_place_operator,
    "masked_fill": _masked_fill,
}  # fmt: skip
