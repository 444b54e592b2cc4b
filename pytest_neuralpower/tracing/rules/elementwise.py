"""Pointwise operations and activations: broadcasting, type promotion, the operands' layout."""

# ruff: noqa: A002, ARG001, PLR0917
# A rule has the signature of its torch function, names, order and unused arguments included.

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.nn import Parameter

from pytest_neuralpower.layers import Layer
from pytest_neuralpower.tracing.fallbacks import NoRule
from pytest_neuralpower.tracing.recorder import REMEMBERED, Plan, spec_of
from pytest_neuralpower.tracing.rules.table import Entry, enter, method, rule
from pytest_neuralpower.tracing.strides import dense_like, elementwise_layout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_neuralpower.tracing.recorder import Recorder
    from pytest_neuralpower.tracing.rules.table import Rule

__all__ = ["activation", "pointwise", "unary"]

Ints = tuple[int, ...]

#: Of a layer that writes over its first operand: on a processor it takes half the time.
_IN_PLACE: Final = (("inplace", True),)

#: Keep the dtype; an integer input is torch's error (a fallback then says so).
_ACTIVATIONS: Final = (
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish",
    "hardsigmoid", "hardtanh", "softplus", "softsign", "tanhshrink", "hardshrink", "softshrink",
    "threshold", "rrelu", "logsigmoid",
)  # fmt: skip

#: Activations that are plain mathematics too: integers become floats.
_FLOAT_ACTIVATIONS: Final = ("sigmoid", "tanh", "log_sigmoid", "expit")

#: Integers become floats.
_FLOAT_UNARY: Final = (
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "sin", "cos", "tan",
    "asin", "acos", "atan", "arcsin", "arccos", "arctan", "sinh", "cosh", "asinh", "acosh",
    "atanh", "erf", "erfc", "erfinv", "reciprocal", "lgamma", "digamma", "deg2rad", "rad2deg",
    "sinc", "i0", "logit",
)  # fmt: skip

#: Keep the dtype.
_SAME_UNARY: Final = (
    "neg", "negative", "__neg__", "abs", "absolute", "__abs__", "floor", "ceil", "round", "trunc",
    "fix", "frac", "sign", "sgn", "square", "clamp_min", "clamp_max", "nan_to_num", "positive",
    "__pos__", "bitwise_not", "__invert__",
)  # fmt: skip

_BOOLEAN_UNARY: Final = (
    "isnan", "isinf", "isfinite", "isposinf", "isneginf", "logical_not", "signbit",
)  # fmt: skip

#: Two operands, promoted together.
_BINARY: Final = (
    "add", "sub", "subtract", "mul", "multiply", "rsub", "maximum", "minimum", "fmax", "fmin",
    "remainder", "fmod", "floor_divide", "bitwise_and", "bitwise_or", "bitwise_xor", "copysign",
    "bitwise_left_shift", "bitwise_right_shift", "pow", "prelu", "lerp", "addcmul", "addcdiv",
    "heaviside", "gcd", "lcm", "hypot",
    "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__pow__", "__rpow__",
    "__mod__", "__rmod__", "__floordiv__", "__rfloordiv__", "__and__", "__rand__", "__or__",
    "__ror__", "__xor__", "__rxor__", "__lshift__", "__rshift__",
)  # fmt: skip

#: Two operands; integers become floats.
_FLOAT_BINARY: Final = (
    "div", "divide", "true_divide", "__truediv__", "__rtruediv__", "__div__", "__rdiv__", "atan2",
    "arctan2", "logaddexp", "logaddexp2", "xlogy",
)  # fmt: skip

#: Torch refuses (some) booleans.
_NOT_OF_BOOLEANS: Final = ("sub", "rsub", "floor_divide", "remainder", "fmod")

_COMPARISONS: Final = (
    "eq", "ne", "not_equal", "lt", "less", "le", "less_equal", "gt", "greater", "ge",
    "greater_equal", "logical_and", "logical_or", "logical_xor", "isclose",
    "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__",
)  # fmt: skip

#: What the operators are called when spelled out.
_SPELLED: Final = {
    "radd": "add", "rsub": "sub", "rmul": "mul", "truediv": "div", "rtruediv": "div",
    "true_divide": "div", "divide": "div", "rdiv": "div", "rpow": "pow", "mod": "remainder",
    "rmod": "remainder", "floordiv": "floor_divide", "rfloordiv": "floor_divide",
    "and": "bitwise_and", "rand": "bitwise_and", "or": "bitwise_or", "ror": "bitwise_or",
    "xor": "bitwise_xor", "rxor": "bitwise_xor", "lshift": "bitwise_left_shift",
    "rshift": "bitwise_right_shift", "invert": "bitwise_not", "negative": "neg", "pos": "positive",
    "absolute": "abs", "multiply": "mul", "subtract": "sub", "iadd": "add", "isub": "sub",
    "imul": "mul", "itruediv": "div", "idiv": "div", "ipow": "pow", "imod": "remainder",
    "ifloordiv": "floor_divide", "iand": "bitwise_and", "ior": "bitwise_or",
    "ixor": "bitwise_xor", "ilshift": "bitwise_left_shift", "irshift": "bitwise_right_shift",
    "not_equal": "ne", "less": "lt", "less_equal": "le", "greater": "gt", "greater_equal": "ge",
    "expit": "sigmoid", "log_sigmoid": "logsigmoid",
}  # fmt: skip


def _spell(name: str) -> str:
    bare = name.strip("_")
    return _SPELLED.get(bare, bare)


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
    if inplace:
        _list_in_place(recorder, plan)
        return input
    return recorder.follow(plan)


def _list_in_place(recorder: Recorder, plan: Plan) -> None:
    """List what writes over its first operand: nothing new is returned."""
    recorder.layers.append(
        Layer(
            plan.kind, plan.op, recorder.path, plan.inputs, plan.weights, plan.outputs, plan.dtype,
            plan.params,
        )
    )  # fmt: skip


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
) -> Plan:
    given = (spec_of(shape, dtype),)
    output = spec_of(shape, result)
    return Plan(
        kind, op, () if parameter else given, given if parameter else (), (output,), output.dtype,
        _IN_PLACE if inplace else (), shape, dense_like(shape, strides), result,
    )  # fmt: skip


def activation(recorder: Recorder, op: str, input: Tensor, inplace: bool = False) -> Tensor:
    """An activation of a floating tensor."""
    if not input.dtype.is_floating_point:
        raise NoRule
    return unary(recorder, "activation", op, input, input.dtype, inplace)


#: A tensor as (shape, strides, dtype, is a parameter), a number as its type.
_Operand = tuple[Ints, Ints, torch.dtype, bool] | type


def pointwise(
    recorder: Recorder,
    op: str,
    operands: Sequence[Any],
    inplace: bool = False,
    result: torch.dtype | str = "promoted",
    kind: str = "elementwise",
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
    if inplace:
        # The plan has checked that the first operand has the result's shape.
        _list_in_place(recorder, plan)
        return operands[0]  # type: ignore[no-any-return]
    return recorder.follow(plan)


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
) -> Plan:
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
    output = spec_of(shape, dtype)
    return Plan(
        kind,
        op,
        tuple(spec_of(one[0], one[2]) for one in tensors if not one[3]),
        tuple(spec_of(one[0], one[2]) for one in tensors if one[3]),
        (output,),
        output.dtype,
        _IN_PLACE if inplace else (),
        shape,
        strides,
        dtype,
    )


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


def _register_unary(name: str, kind: str, dtype_rule: str) -> None:
    op = _spell(name)

    def forward(
        recorder: Recorder, input: Tensor, *args: Any, inplace: bool = False, **kwargs: Any
    ) -> Tensor:
        dtype = input.dtype
        if dtype_rule == "activation":
            if not dtype.is_floating_point:
                raise NoRule
        elif dtype_rule == "float":
            if not (dtype.is_floating_point or dtype.is_complex):
                dtype = torch.get_default_dtype()
        elif dtype_rule == "bool":
            dtype = torch.bool
        elif dtype.is_complex or (dtype is torch.bool and op != "bitwise_not"):
            raise NoRule  # refused, or (abs of complex) of another dtype
        if kwargs.get("out") is not None or any(isinstance(arg, Tensor) for arg in args):
            raise NoRule
        return unary(recorder, kind, op, input, dtype, inplace)

    _enter_with_inplace(name, op, forward)


def _enter_with_inplace(name: str, op: str, forward: Rule) -> None:
    enter(Entry("rule", op, forward), name)
    if name.startswith("__"):
        return

    def changed(recorder: Recorder, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("inplace", None)
        return forward(recorder, input, *args, inplace=True, **kwargs)

    enter(Entry("rule", op, changed), f"{name}_")


def _register_pointwise(name: str, result: torch.dtype | str = "promoted") -> None:
    op = _spell(name)
    kind = "activation" if op == "prelu" else "elementwise"

    def forward(
        recorder: Recorder,
        input: Any,
        *others: Any,
        inplace: bool = False,
        out: Tensor | None = None,
        rounding_mode: str | None = None,
        alpha: Any = None,
        value: Any = None,
        **named: Any,
    ) -> Tensor:
        operands = (input, *others, *named.values())
        if out is not None:
            raise NoRule
        if op == "prelu":
            weight = operands[1]
            if weight.numel() not in (1, input.shape[1] if input.ndim > 1 else 1):
                raise NoRule
            output = recorder.like(input)
            recorder.record(kind, op, operands, (output,))
            return output
        # Rounding division of integers stays among integers.
        rounds = result == "float" and rounding_mode is not None
        return pointwise(recorder, op, operands, inplace, "promoted" if rounds else result, kind)

    _enter_with_inplace(name, op, forward)


for _name in _ACTIVATIONS:
    _register_unary(_name, "activation", "activation")
for _name in _FLOAT_ACTIVATIONS:
    _register_unary(_name, "activation", "float")
for _name in _FLOAT_UNARY:
    _register_unary(_name, "elementwise", "float")
for _name in _SAME_UNARY:
    _register_unary(_name, "elementwise", "same")
for _name in _BOOLEAN_UNARY:
    _register_unary(_name, "elementwise", "bool")
for _name in _BINARY:
    _register_pointwise(_name)
for _name in _FLOAT_BINARY:
    _register_pointwise(_name, "float")
for _name in _COMPARISONS:
    _register_pointwise(_name, torch.bool)


def _register_inplace_operator(name: str) -> None:
    op = _spell(name)

    def forward(recorder: Recorder, input: Tensor, other: Any) -> Tensor:
        return pointwise(recorder, op, (input, other), True)

    method(name, Entry("rule", op, forward))


for _name in (
    "__iadd__", "__isub__", "__imul__", "__itruediv__", "__idiv__", "__ipow__", "__imod__",
    "__ifloordiv__", "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__",
):  # fmt: skip
    _register_inplace_operator(_name)


@rule("clamp", "clip")
def clamp(recorder: Recorder, input: Tensor, min: Any = None, max: Any = None) -> Tensor:
    limits = tuple(limit for limit in (min, max) if limit is not None)
    return pointwise(recorder, "clamp", (input, *limits))


@rule("clamp_", "clip_")
def clamp_(recorder: Recorder, input: Tensor, min: Any = None, max: Any = None) -> Tensor:
    limits = tuple(limit for limit in (min, max) if isinstance(limit, Tensor))
    return pointwise(recorder, "clamp", (input, *limits), True)


@rule("glu")
def glu(recorder: Recorder, input: Tensor, dim: int = -1) -> Tensor:
    """Half the channels, gated by the sigmoid of the other half."""
    shape = list(input.shape)
    if shape[dim] % 2:
        raise NoRule
    shape[dim] //= 2
    output = recorder.new(tuple(shape), input.dtype)
    recorder.record("activation", "glu", (input,), (output,))
    return output


def _where(recorder: Recorder, condition: Tensor, input: Any, other: Any) -> Tensor:
    if not isinstance(condition, Tensor):
        raise NoRule
    dtype = torch.result_type(input, other)
    tensors = tuple(operand for operand in (condition, input, other) if isinstance(operand, Tensor))
    return pointwise(recorder, "where", tensors, result=dtype)


def _where_method(recorder: Recorder, input: Tensor, condition: Any, other: Any) -> Tensor:
    return _where(recorder, condition, input, other)


method("where", Entry("rule", "where", _where_method))
rule("where")(_where)


def _masked_fill(recorder: Recorder, input: Tensor, mask: Tensor, value: Any) -> Tensor:
    return pointwise(recorder, "masked_fill", (input, mask), result=input.dtype)


def _masked_fill_(recorder: Recorder, input: Tensor, mask: Tensor, value: Any) -> Tensor:
    return pointwise(recorder, "masked_fill", (input, mask), True, input.dtype)


rule("masked_fill")(_masked_fill)
rule("masked_fill_")(_masked_fill_)


def _dropout(
    recorder: Recorder, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Free in evaluation, where it returns its input."""
    if not training:
        return input
    if not 0 <= p <= 1:
        raise NoRule
    return unary(recorder, "elementwise", "dropout", input, input.dtype, inplace)


def _dropout_inplace(recorder: Recorder, input: Tensor, p: float, training: bool) -> Tensor:
    return _dropout(recorder, input, p, training, True)


for _name in (
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout",
    "feature_alpha_dropout",
):  # fmt: skip
    enter(Entry("rule", "dropout", _dropout), _name)
    enter(Entry("rule", "dropout", _dropout_inplace), f"{_name}_")
