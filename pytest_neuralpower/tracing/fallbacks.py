"""Fallbacks where no shape rule answers: meta kernels, real kernels on zeros, other routes."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter, functional

from pytest_neuralpower.layers import TensorSpec
from pytest_neuralpower.tracing.torch_private import TorchDispatchMode, base_of, qualified_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_neuralpower.tracing.recorder import Recorder


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


# -- Operations without a rule.

#: Zeros are not made beyond this many elements: torch's error then comes from its meta kernel.
_ZEROS = 50_000_000

#: Results by function and operands: shapes, dtypes and strides of the answer, and by whom.
_memo: dict[Any, Any] = {}
_REMEMBERED = 4096


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


#: Products of two matrices in 8 bits, and their results in more.
_PRODUCTS_OF_BYTES = ("int_mm", "scaled_mm")


def list_uncovered(
    recorder: Recorder, func: Any, op: str, *, args: Any, kwargs: Any, result: Any
) -> None:
    """List an operation without a formula with its real tensors."""
    outputs = tensors_in(result)
    if not outputs or _list_quantized(recorder, func, args, result):
        return
    recorder.record("uncovered", op, tensors_in((args, kwargs)), outputs)


def _list_quantized(recorder: Recorder, func: Any, args: Any, result: Any) -> bool:
    """List a quantised linear layer, convolution or product; ``False`` if it is none.

    They compute in 8 bits, whatever goes in and out. Torch packs the weights of modules, so these
    are listed from what went in and out.
    """
    spec = recorder.spec
    if name_of(func) in _PRODUCTS_OF_BYTES:
        left, right = spec(args[0]), spec(args[1])
        op = name_of(func)
        recorder.add("matmul", op, (left, right), (), (spec(result),), (), left.dtype)
        return True
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
    how, outline, is_view = remembered
    result = map_tensors(lambda one: one.fill(args), outline, _Outline)
    if not is_view:
        recorder.fallbacks[f"{op}: {how}"] = None
        list_uncovered(recorder, func, op, args=args, kwargs=kwargs, result=result)
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


def _ask(func: Any, op: str, args: Any, kwargs: Any) -> tuple[str, Any, bool]:
    """How it was answered, the outline of the result, whether it is a view of an argument."""
    kwargs = {name: value for name, value in kwargs.items() if name != "device"}
    # In place, the copies are changed and not the model's own tensors.
    meta_args, meta_kwargs = map_tensors(_once(_empty_meta), (args, kwargs))
    how = "torch's meta kernel"
    try:
        result = func(*meta_args, **meta_kwargs)
        if func is functional.embedding and meta_args and meta_args[0].is_floating_point():
            # The meta kernel of torch 2.9 takes what the real one refuses.
            raise TypeError("'indices' of an embedding must have an integer scalar type")
        operands = meta_args
    except Exception as meta_error:
        operands, result = _on_zeros(func, op, args, kwargs, meta_error)
        how = "the real kernel on zeros"
    positions = {id(operand): place for place, operand in enumerate(operands)}
    views = []

    def outline(tensor: Tensor) -> Any:
        position = positions.get(id(tensor))
        if position is None:
            if tensor.is_quantized:
                raise NeedsForward(f"{op} makes a quantised tensor")
            views.append(base_of(tensor) is not None)
        return _Outline(tuple(tensor.shape), tensor.stride(), tensor.dtype, position)

    outlined = map_tensors(outline, result)
    return how, outlined, bool(views) and all(views)


def _on_zeros(func: Any, op: str, args: Any, kwargs: Any, meta_error: Exception) -> tuple[Any, Any]:
    tensors = tensors_in((args, kwargs))
    message = str(meta_error).partition("\n")[0]
    if "item() cannot be called" in message or "data-dependent" in message.lower():
        raise NeedsForward(f"{op} depends on values ({message})") from None
    if sum(tensor.numel() for tensor in tensors) > _ZEROS:
        raise mismatch(op, args, kwargs, meta_error) from meta_error
    real_args, real_kwargs = map_tensors(_once(_zeros), (args, kwargs))
    try:
        with _RefuseDynamic(op):
            return real_args, func(*real_args, **real_kwargs)
    except NotImplementedError as error:
        raise NeedsForward(f"{op} has no kernel that takes these tensors ({error})") from error
    except (RuntimeError, IndexError, ValueError, TypeError, AssertionError) as error:
        raise mismatch(op, args, kwargs, error) from error


def _once(make: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """One stand-in for each tensor, however often it is given."""
    made: dict[int, Tensor] = {}

    def stand_in(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            made[id(tensor)] = make(tensor)
        return made[id(tensor)]

    return stand_in


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
