"""Operations without a shape rule: torch's meta kernels or real kernels on zeros answer, and the
ATen operations that they consist of are listed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter, functional

from pytest_neuralpower.layers import TensorSpec
from pytest_neuralpower.tracing.aten import AtenRecorder
from pytest_neuralpower.tracing.fallbacks import (
    NeedsForward,
    map_tensors,
    meta_like,
    mismatch,
    tensors_in,
)
from pytest_neuralpower.tracing.recorder import Recorder
from pytest_neuralpower.tracing.torch_private import (
    TorchDispatchMode,
    base_of,
    qualified_name,
    storage_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_neuralpower.layers import Layer

#: Zeros are not made beyond this many elements: torch's error then comes from its meta kernel.
_ZEROS = 50_000_000

#: Results by function and operands: shapes, dtypes and strides of the answer, and by whom.
_memo: dict[Any, Any] = {}
_REMEMBERED = 4096


def run_listed(recorder: Recorder, func: Any, op: str, args: Any, kwargs: Any) -> Any:
    """Compute an operation without a rule, and list what it does."""
    parts, result = _by_parts(func, args, kwargs)
    _list(recorder, func, op, args=args, kwargs=kwargs, result=result, parts=parts)
    return result


def _by_parts(
    func: Any, args: Any, kwargs: Any, weights: Sequence[Tensor] = ()
) -> tuple[tuple[Layer, ...] | None, Any]:
    """The ATen operations that a call consists of, and its result.

    ``None`` where nothing ran and the result is nothing new: it lies in an argument's memory, or
    is no tensor.
    """
    parts = Recorder()
    with AtenRecorder(parts, weights):
        result = func(*args, **kwargs)
    if parts.layers:
        return tuple(parts.layers), result
    known = {storage_of(tensor) for tensor in tensors_in((args, kwargs))}
    new = any(storage_of(tensor) not in known for tensor in tensors_in(result))
    return (() if new else None), result


def _list(
    recorder: Recorder,
    func: Any,
    op: str,
    *,
    args: Any,
    kwargs: Any,
    result: Any,
    parts: tuple[Layer, ...] | None,
) -> bool:
    """List one call by its parts, or as uncovered with its own tensors; ``False`` for a view."""
    if parts is None:
        return False
    if _list_quantized(recorder, func, args, result):
        return True
    if not parts or (len(parts) == 1 and not parts[0].covered):
        outputs = tensors_in(result)
        if outputs:
            recorder.record("uncovered", op, tensors_in((args, kwargs)), outputs)
            return True
    for one in parts:
        recorder.add(one.kind, one.op, one.inputs, one.weights, one.outputs, one.params, one.dtype)
    return True


def _list_quantized(recorder: Recorder, func: Any, args: Any, result: Any) -> bool:
    """List a quantised linear layer or convolution; ``False`` if it is none.

    They compute in 8 bits, whatever goes in and out. Torch packs the weights of modules, so these
    are listed from what went in and out.
    """
    spec = recorder.spec
    namespace, _, op = qualified_name(func).partition("::")
    if namespace != "quantized" or not (isinstance(result, Tensor) and isinstance(args[0], Tensor)):
        return False
    params: tuple[tuple[str, Any], ...] = ()
    if op.startswith("linear"):
        kind, weight = "linear", (result.shape[-1], args[0].shape[-1])
    elif op.startswith("conv") and hasattr(args[1], "unpack"):
        packed = args[1]
        # The packed form has its own layout; only unpacking tells the kernel's shape.
        kind, weight = "conv", tuple(packed.unpack()[0].shape)
        params = (
            ("dilation", tuple(packed.dilation())),
            ("groups", packed.groups()),
            ("padding", tuple(packed.padding())),
            ("stride", tuple(packed.stride())),
            ("transposed", bool(packed.transpose())),
        )
    else:
        return False
    weights = (TensorSpec(weight, "qint8"),)
    recorder.add(kind, op, (spec(args[0]),), weights, (spec(result),), params, "int8")
    return True


def answer(recorder: Recorder, func: Any, op: str, args: Any, kwargs: Any) -> Any:
    """Result of an operation without a rule, and its layer, by the first way that works.

    Raises
    ------
    NeedsForward
        The shape of the result depends on values.
    ShapeMismatch
        Torch refuses the operands.
    """
    if _is_dynamic(func):
        raise NeedsForward(f"the shape of {op} depends on values")
    key = _key(func, args, kwargs)
    remembered = _memo.get(key) if key is not None else None
    if remembered is None:
        remembered = _ask(func, op, args, kwargs)
        if key is not None:
            if len(_memo) >= _REMEMBERED:
                _memo.clear()
            _memo[key] = remembered
    how, outline, parts = remembered
    result = map_tensors(lambda one: one.fill(args), outline, _Outline)
    if _list(recorder, func, op, args=args, kwargs=kwargs, result=result, parts=parts):
        recorder.fallbacks[f"{op}: {how}"] = None
    return result


class _Outline(NamedTuple):
    """One result: its shape, strides and dtype, or which argument it is (an operation in place)."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    position: int | None

    def fill(self, args: Any) -> Tensor:
        if self.position is not None:
            return args[self.position]  # type: ignore[no-any-return]
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device="meta")


def _key(func: Any, args: Any, kwargs: Any) -> Any:
    """What decides the answer; ``None`` if something is not hashable."""

    def freeze(value: Any) -> Any:
        if isinstance(value, Tensor):
            # A real tensor may decide by its values.
            if not value.is_meta and type(value) is not Parameter:
                raise TypeError
            return (Tensor, value.shape, value.stride(), value.dtype)
        if isinstance(value, (tuple, list)):
            return (type(value), tuple(map(freeze, value)))
        return (type(value), value)

    try:
        key = (func, freeze(args), tuple((name, freeze(kwargs[name])) for name in sorted(kwargs)))
        hash(key)
    except (TypeError, RuntimeError, NotImplementedError):
        return None
    return key


def _ask(func: Any, op: str, args: Any, kwargs: Any) -> tuple[str, Any, tuple[Layer, ...] | None]:
    """How it was answered, the outline of the result, and its parts (see :func:`_by_parts`)."""
    kwargs = {name: value for name, value in kwargs.items() if name != "device"}
    # In place, the copies are changed and not the model's own tensors.
    stand_in = _StandIns(_empty_meta)
    meta_args, meta_kwargs = map_tensors(stand_in, (args, kwargs))
    how = "torch's meta kernel"
    try:
        parts, result = _by_parts(func, meta_args, meta_kwargs, stand_in.weights)
        if func is functional.embedding and meta_args and meta_args[0].is_floating_point():
            # The meta kernel of torch 2.9 takes what the real one refuses.
            raise TypeError("'indices' of an embedding must have an integer scalar type")
        operands = meta_args
    except Exception as meta_error:
        operands, parts, result = _on_zeros(func, op, args, kwargs, meta_error)
        how = "the real kernel on zeros"
    positions = {id(operand): place for place, operand in enumerate(operands)}

    def outline(tensor: Tensor) -> Any:
        position = positions.get(id(tensor))
        if position is None and tensor.layout is not torch.strided:
            raise NeedsForward(f"{op} makes a sparse tensor")
        if position is None and tensor.is_quantized:
            raise NeedsForward(f"{op} makes a quantised tensor")
        return _Outline(tuple(tensor.shape), tensor.stride(), tensor.dtype, position)

    return how, map_tensors(outline, result), parts


def _on_zeros(
    func: Any, op: str, args: Any, kwargs: Any, meta_error: Exception
) -> tuple[Any, tuple[Layer, ...] | None, Any]:
    tensors = tensors_in((args, kwargs))
    message = str(meta_error).partition("\n")[0]
    if "item() cannot be called" in message or "data-dependent" in message.lower():
        raise NeedsForward(f"{op} depends on values ({message})") from None
    if sum(tensor.numel() for tensor in tensors) > _ZEROS:
        raise mismatch(op, args, kwargs, meta_error) from meta_error
    stand_in = _StandIns(_zeros)
    real_args, real_kwargs = map_tensors(stand_in, (args, kwargs))
    try:
        with _RefuseDynamic(op):
            return real_args, *_by_parts(func, real_args, real_kwargs, stand_in.weights)
    except NotImplementedError as error:
        raise NeedsForward(f"{op} has no kernel that takes these tensors ({error})") from error
    except (RuntimeError, IndexError, ValueError, TypeError, AssertionError) as error:
        raise mismatch(op, args, kwargs, error) from error


class _StandIns:
    """One stand-in for each tensor, however often it is given."""

    def __init__(self, make: Callable[[Tensor], Tensor]) -> None:
        self.make = make
        self.made: dict[int, Tensor] = {}
        self.weights: list[Tensor] = []

    def __call__(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self.made:
            self.made[id(tensor)] = made = self.make(tensor)
            if type(tensor) is Parameter or type(base_of(tensor)) is Parameter:
                self.weights.append(made)
        return self.made[id(tensor)]


def _empty_meta(tensor: Tensor) -> Tensor:
    # An index or a length of a few numbers keeps its values: meta kernels read them.
    if not tensor.is_meta and not tensor.dtype.is_floating_point and tensor.ndim == 0:
        return tensor
    return meta_like(tensor)


def _zeros(tensor: Tensor) -> Tensor:
    if tensor.is_meta or type(tensor) is Parameter:
        zeros = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
        return zeros.zero_()
    return tensor.clone()


def _is_dynamic(func: Any) -> bool:
    """Operations may say that their result, or its shape, depends on values."""
    tags = getattr(func, "tags", ())
    return any(
        tag in tags for tag in (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)
    )


class _RefuseDynamic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Zeros must not stand for values: stops where an answer would depend on them."""

    def __init__(self, op: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.op = op

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if _is_dynamic(func):
            raise NeedsForward(f"{self.op} depends on values")
        return func(*args, **(kwargs or {}))
