"""Operations without a shape rule: torch's meta kernels or real kernels on zeros answer, and the
ATen operations that they consist of are listed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
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
from pytest_neuralpower.tracing.recorder import REMEMBERED, Recorder, is_weight
from pytest_neuralpower.tracing.rules.table import REAL_ELEMENTS
from pytest_neuralpower.tracing.torch_private import (
    TorchDispatchMode,
    memory_of,
    qualified_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_neuralpower.layers import Layer

#: Zeros are not made beyond this many elements: torch's error then comes from its meta kernel.
_ZEROS = 50_000_000


def run_listed(recorder: Recorder, func: Any, op: str, args: Any, kwargs: Any) -> Any:
    """Compute an operation without a rule, and list what it does."""
    first = len(recorder.layers)
    try:
        with AtenRecorder(recorder):
            result = func(*args, **kwargs)
    except BaseException:
        recorder.truncate(first)
        raise
    if len(recorder.layers) > first or _is_new(args, kwargs, result):
        _settle(recorder, first, func, op, args=args, kwargs=kwargs, result=result)
    return result


def _is_new(args: Any, kwargs: Any, result: Any) -> bool:
    """Whether a result lies elsewhere than the arguments."""
    known = [memory_of(tensor) for tensor in tensors_in((args, kwargs))]
    return any(memory_of(tensor) not in known for tensor in tensors_in(result))


class _Parts(NamedTuple):
    """The ATen operations that a call consists of.

    A negative number stands for an operand: -1 for the first tensor among the arguments, and so on.

    Attributes
    ----------
    layers, reads
        As a :class:`Recorder` has them.
    results, operands
        Of each tensor among them, who made what it holds in the end.
    new
        Whether a result lies elsewhere than the operands.
    """

    layers: tuple[Layer, ...]
    reads: tuple[tuple[int, ...], ...]
    results: tuple[int | None, ...]
    operands: tuple[int | None, ...]
    new: bool

    def list_again(self, recorder: Recorder, operands: Sequence[Tensor], results: Any) -> None:
        """List them of other tensors."""
        first = len(recorder.layers)
        makers = [recorder.makers((tensor,)) for tensor in operands]

        def here(part: int) -> tuple[int, ...]:
            return (first + part,) if part >= 0 else makers[-1 - part]

        for one, reads in zip(self.layers, self.reads, strict=True):
            recorder.add(
                one.kind, one.op, one.inputs, one.weights, one.outputs, one.params, one.dtype,
                reads=(), makes=(),
            )  # fmt: skip
            recorder.reads[-1] = tuple(dict.fromkeys(at for part in reads for at in here(part)))
        for tensor, part in zip(operands, self.operands, strict=True):
            if part is not None and part >= 0:  # written in place
                recorder.made(tensor, by=first + part)
        for tensor, part in zip(tensors_in(results), self.results, strict=True):
            for maker in () if part is None else here(part):
                recorder.made(tensor, by=maker)


def _by_parts(
    func: Any, args: Any, kwargs: Any, weights: Sequence[Tensor] = ()
) -> tuple[_Parts, Any]:
    """The ATen operations that a call consists of, and its result."""
    parts = Recorder()
    operands = _operands(args, kwargs)
    for place, tensor in enumerate(operands, 1):
        parts.made(tensor, by=-place)
    with AtenRecorder(parts, weights):
        result = func(*args, **kwargs)

    def makers(tensors: list[Tensor]) -> tuple[int | None, ...]:
        return tuple(next(iter(parts.makers((tensor,))), None) for tensor in tensors)

    return _Parts(
        tuple(parts.layers), tuple(parts.reads), makers(tensors_in(result)), makers(operands),
        _is_new(args, kwargs, result),
    ), result  # fmt: skip


def _settle(
    recorder: Recorder, first: int, func: Any, op: str, *, args: Any, kwargs: Any, result: Any
) -> None:
    """Keep the parts that were listed of a call, or list it as a whole: as a quantised layer, or as
    uncovered with its own tensors."""
    layers = recorder.layers[first:]
    if _list_quantized(recorder, first, func, args, result):
        return
    if not layers or (len(layers) == 1 and not layers[0].covered):
        outputs = tensors_in(result)
        if outputs:
            given = tensors_in((args, kwargs))
            recorder.truncate(first)
            recorder.record("uncovered", op, given, outputs)


def _list_quantized(recorder: Recorder, first: int, func: Any, args: Any, result: Any) -> bool:
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
    recorder.truncate(first)
    recorder.add(
        kind, op, (spec(args[0]),), weights, (spec(result),), params, "int8",
        reads=args[:1], makes=(result,),
    )  # fmt: skip
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
    known = _answers.get(key) if key is not None else None
    if known is None:
        known = _ask(func, op, args, kwargs)
        if key is not None:
            if len(_answers) >= REMEMBERED:
                _answers.clear()
            _answers[key] = known
    operands = _operands(args, kwargs)
    result = map_tensors(lambda one: one.fill(operands), known.outline, _Outline)
    first = len(recorder.layers)
    known.parts.list_again(recorder, operands, result)
    if known.parts.layers or known.parts.new:
        _settle(recorder, first, func, op, args=args, kwargs=kwargs, result=result)
        recorder.fallbacks[f"{op}: {known.how}"] = None
    return result


class _Outline(NamedTuple):
    """One result: its shape, strides and dtype; which operand it is (of an operation in place, with
    no ``offset``), or where in an operand's memory it lies."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    operand: int | None = None
    offset: int | None = None

    def fill(self, operands: Sequence[Tensor]) -> Tensor:
        if self.operand is not None:
            own = operands[self.operand]
            if self.offset is None:
                return own
            if type(own) is Tensor and own.is_meta and own.dtype is self.dtype:
                return own.as_strided(self.shape, self.strides, own.storage_offset() + self.offset)
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device="meta")


class _Answer(NamedTuple):
    """What torch answered to an operation without a rule.

    Attributes
    ----------
    how
        Which kernel did, for the trace's ``fallbacks``.
    outline
        The result, with an :class:`_Outline` for each tensor.
    parts
        The ATen operations that the call consists of.
    """

    how: str
    outline: Any
    parts: _Parts


#: By function and operands (see :func:`_key`).
_answers: dict[Any, _Answer] = {}


def _operands(args: Any, kwargs: Any) -> list[Tensor]:
    """Tensors among arguments, in one order however these are named."""
    return tensors_in((args, [kwargs[name] for name in sorted(kwargs)]))


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


def _ask(func: Any, op: str, args: Any, kwargs: Any) -> _Answer:
    """Torch's answer, from its meta kernel or the real one."""
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
        operands = _operands(meta_args, meta_kwargs)
    except Exception as meta_error:
        operands, parts, result = _on_zeros(func, op, args, kwargs, meta_error)
        how = "the real kernel on zeros"
    memories = [memory_of(operand) for operand in operands]

    def outline(tensor: Tensor) -> Any:
        own = _Outline(tuple(tensor.shape), (), tensor.dtype)
        for place, operand in enumerate(operands):
            if tensor is operand:
                return own._replace(operand=place)
        if tensor.layout is not torch.strided:
            raise NeedsForward(f"{op} makes a sparse tensor")
        if tensor.is_quantized:
            raise NeedsForward(f"{op} makes a quantised tensor")
        own = own._replace(strides=tensor.stride())
        memory = memory_of(tensor)
        for place, operand in enumerate(operands):
            if memory is memories[place]:
                offset = int(tensor.storage_offset() - operand.storage_offset())
                return own._replace(operand=place, offset=offset)
        return own

    return _Answer(how, map_tensors(outline, result), parts)


def _on_zeros(
    func: Any, op: str, args: Any, kwargs: Any, meta_error: Exception
) -> tuple[list[Tensor], _Parts, Any]:
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
            parts, result = _by_parts(func, real_args, real_kwargs, stand_in.weights)
            return _operands(real_args, real_kwargs), parts, result
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
            if is_weight(tensor):
                self.weights.append(made)
        return self.made[id(tensor)]


def _empty_meta(tensor: Tensor) -> Tensor:
    # An index or a length of a few numbers keeps its values: meta kernels read them.
    if not tensor.is_meta and not tensor.dtype.is_floating_point and tensor.ndim == 0:
        return tensor
    return meta_like(tensor)


def _zeros(tensor: Tensor) -> Tensor:
    if not (tensor.is_meta or type(tensor) is Parameter):
        return tensor.clone()
    shape, strides, dtype = tensor.shape, tensor.stride(), tensor.dtype
    if tensor.numel() <= REAL_ELEMENTS:
        return torch.empty_strided(shape, strides, dtype=dtype, device="cpu").zero_()
    # The system hands out zeros as they are read: a refusal of these shapes reads none.
    reach = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
    memory = torch.from_numpy(np.zeros(reach * dtype.itemsize, dtype=np.uint8))
    return memory.view(dtype).as_strided(shape, strides)


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
