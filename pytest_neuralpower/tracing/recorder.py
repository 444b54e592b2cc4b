"""The recorder: collects layers while a model runs, and makes the tensors that flow in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

from pytest_neuralpower.errors import TraceError
from pytest_neuralpower.layers import ITEMSIZE, Layer, Params, ParamValue, TensorSpec
from pytest_neuralpower.tracing.strides import (
    Ints,
    are_one,
    contiguous_strides,
    dense_like,
    formatted_like,
)
from pytest_neuralpower.tracing.torch_private import any_autocast, base_of, memory_of

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    Output = TypeVar("Output", Tensor, Sequence[Tensor])

META = torch.device("meta")

_new: Callable[..., Tensor] = torch.empty_strided

_DTYPE_NAMES: dict[torch.dtype, str] = {}


def dtype_name(dtype: torch.dtype) -> str:
    """Torch's name without its prefix: ``float32``; raises TraceError for one of unknown size."""
    name = _DTYPE_NAMES.get(dtype)
    if name is None:
        name = str(dtype).removeprefix("torch.")
        if name not in ITEMSIZE:
            raise TraceError(f"tensors of {dtype} cannot be priced; known: {', '.join(ITEMSIZE)}")
        _DTYPE_NAMES[dtype] = name
    return name


def spec_of(shape: Sequence[int], dtype: torch.dtype) -> TensorSpec:
    """Raises TraceError where a size is no number, as of a nested tensor, or no known dtype."""
    sizes = tuple(shape)
    for size in sizes:
        if type(size) is not int:
            raise TraceError(
                f"a tensor of shape ({', '.join(map(str, sizes))}) is nested, and cannot be "
                "priced: pad it (torch.nested.to_padded_tensor)"
            )
    return TensorSpec(sizes, dtype_name(dtype))


def is_weight(tensor: Tensor) -> bool:
    """A parameter, or a view of one, such as its transpose."""
    return type(tensor) is Parameter or type(base_of(tensor)) is Parameter


class OperationPlan(NamedTuple):
    """One layer but for its path, and the tensor that the operation returns.

    Rules of frequent operations derive it from shapes alone and remember it, so that a repeated
    block costs a look-up.
    """

    kind: str
    op: str
    inputs: tuple[TensorSpec, ...]
    weights: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dtype: str
    params: Params
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    result: torch.dtype


def planned(
    kind: str,
    op: str,
    inputs: tuple[TensorSpec, ...],
    shape: Ints,
    result: torch.dtype,
    *,
    weights: tuple[TensorSpec, ...] = (),
    params: Params = (),
    strides: Ints | None = None,
    outputs: tuple[TensorSpec, ...] = (),
) -> OperationPlan:
    """A plan that returns a tensor of this shape and dtype.

    Its strides default to contiguous ones, the layer's outputs to the tensor itself.
    """
    outputs = outputs or (spec_of(shape, result),)
    if strides is None:
        strides = contiguous_strides(shape)
    return OperationPlan(
        kind, op, inputs, weights, outputs, outputs[0].dtype, params, shape, strides, result
    )


#: Plans remembered per rule: more than the distinct layers of any one model.
REMEMBERED: Final = 4096


class Recorder:
    """Layers in execution order, and what happened on the way.

    Attributes
    ----------
    layers
        What ran so far.
    reads
        Of each layer, the layers whose outputs it reads.
    producers
        By a tensor's memory, which its views share: the layer that wrote there last. It keeps the
        memory alive, as another tensor would come to lie there.
    made_by_none
        Types of operands that no layer makes; parameters among them until one is written to.
    path
        Dotted path of the module that is running.
    seen
        Identities of the parameters that an operation was given.
    fallbacks, notes
        See :class:`pytest_neuralpower.layers.Trace`; dictionaries keep order and drop repeats.
    chosen
        By a number of experts (of whatever ``topk`` ranked): how many of them each token chose.
    home
        Device type on which the model would run: decides autocast's lists.
    """

    __slots__ = (
        "_specs",
        "chosen",
        "fallbacks",
        "home",
        "layers",
        "made_by_none",
        "notes",
        "path",
        "producers",
        "reads",
        "seen",
    )  # fmt: skip

    def __init__(self, home: str = "cpu") -> None:
        self.layers: list[Layer] = []
        self.reads: list[tuple[int, ...]] = []
        self.producers: MutableMapping[Any, int] = {}
        self.made_by_none: set[type] = {Parameter, NoneType, int, float, bool}
        self.path = ""
        self.seen: set[int] = set()
        self.fallbacks: dict[str, None] = {}
        self.notes: dict[str, None] = {}
        self.chosen: dict[int, int] = {}
        self.home = home
        self._specs: dict[tuple[Any, torch.dtype], TensorSpec] = {}

    def spec(self, tensor: Tensor) -> TensorSpec:
        key = (tensor.shape, tensor.dtype)
        found = self._specs.get(key)
        if found is None:
            found = self._specs[key] = spec_of(tensor.shape, tensor.dtype)
        return found

    def add(  # noqa: PLR0917 - the order of Layer's own fields
        self,
        kind: str,
        op: str,
        inputs: Iterable[TensorSpec],
        weights: Iterable[TensorSpec],
        outputs: Iterable[TensorSpec],
        params: Params = (),
        dtype: str | None = None,
        *,
        reads: Iterable[Any],
        makes: Iterable[Tensor],
    ) -> None:
        """List one layer from finished specs; its dtype is its first output's, or what is given.

        ``reads`` are its operands (what is no tensor is passed over), ``makes`` the tensors that
        it returns or writes into.
        """
        outputs = tuple(outputs)
        inputs = tuple(inputs)
        dtype = dtype or (outputs or inputs or (TensorSpec((), "float32"),))[0].dtype
        self.reads.append(self.makers(reads))
        self.layers.append(
            Layer(kind, op, self.path, inputs, tuple(weights), outputs, dtype, params)
        )
        self.made(*makes)

    def follow(
        self, plan: OperationPlan, operands: Iterable[Any], written: Tensor | None = None
    ) -> Tensor:
        """List the planned layer of these operands and return its result: a tensor without data,
        or the operand that it has written over."""
        kind, op, inputs, weights, outputs, dtype, params, shape, strides, result = plan
        layers = self.layers
        self.reads.append(self.makers(operands))
        layers.append(Layer(kind, op, self.path, inputs, weights, outputs, dtype, params))
        if written is None:
            made = _new(shape, strides, dtype=result, device=META)
            self.producers[made.untyped_storage()] = len(layers) - 1
            return made
        self.made(written)
        return written

    def makers(self, tensors: Iterable[Any]) -> tuple[int, ...]:
        """The layers that made these tensors, in order, each once; an input has none."""
        of_memory, passed_over = self.producers.get, self.made_by_none
        makers: tuple[int, ...] = ()
        for tensor in tensors:
            kind = type(tensor)
            if kind is Tensor:
                try:
                    maker = of_memory(tensor.untyped_storage())
                except (NotImplementedError, RuntimeError):  # a sparse one, one within vmap
                    maker = of_memory(memory_of(tensor))
            elif kind in passed_over or not isinstance(tensor, Tensor):
                continue
            else:
                maker = of_memory(memory_of(tensor))
            if maker is not None and maker not in makers:
                makers += (maker,)
        return makers

    def made(self, *tensors: Tensor, by: int | None = None) -> None:
        """Say that a layer made these: the one listed last, or the one told."""
        maker = len(self.layers) - 1 if by is None else by
        for tensor in tensors:
            self.producers[memory_of(tensor)] = maker
            if type(tensor) is Parameter:
                self.made_by_none.discard(Parameter)

    def made_as(self, tensor: Tensor, source: Tensor) -> None:
        """Say that a tensor holds what another one holds, though in other memory."""
        for maker in self.makers((source,)):
            self.made(tensor, by=maker)

    def truncate(self, count: int) -> None:
        """Keep the first ``count`` layers only."""
        del self.layers[count:], self.reads[count:]

    def record(
        self,
        kind: str,
        op: str,
        tensors: Sequence[Any],
        output: Output,
        into: Tensor | None = None,
        **params: ParamValue,
    ) -> Output:
        """List one layer and return its output, a tensor or several.

        Parameters among ``tensors`` become its weights. What it writes ``into`` a larger tensor is
        its output, and the layer stands for what was there before, too.
        """
        inputs, weights = self._operands(tensors)
        outputs = (output,) if isinstance(output, Tensor) else output
        self.add(
            kind, op, inputs, weights, [self.spec(each) for each in outputs],
            tuple(sorted(params.items())) if params else (),
            reads=tensors if into is None else (*tensors, into),
            makes=outputs if into is None else (into,),
        )  # fmt: skip
        return output

    @staticmethod
    def written_part(tensor: Tensor) -> Tensor | None:
        """A tensor about to be overwritten, if others lie in its memory, too."""
        whole = tensor.untyped_storage().nbytes()
        return tensor if tensor.numel() * tensor.element_size() < whole else None

    def result(
        self, kind: str, op: str, tensors: Sequence[Any], shape: Ints, dtype: torch.dtype
    ) -> Tensor:
        """List one layer of these tensors and return its result, a contiguous tensor."""
        inputs, weights = self._operands(tensors)
        return self.follow(planned(kind, op, inputs, tuple(shape), dtype, weights=weights), tensors)

    def _operands(
        self, tensors: Sequence[Any]
    ) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Inputs and weights among what an operation is given."""
        inputs = []
        weights = []
        for tensor in tensors:
            if type(tensor) is Parameter:
                self.seen.add(id(tensor))
                weights.append(self.spec(tensor))
            elif isinstance(tensor, Tensor):
                inputs.append(self.spec(tensor))
        return tuple(inputs), tuple(weights)

    def weight_specs(self, *weights: Tensor | None) -> tuple[TensorSpec, ...]:
        """Specs of the weights that are there; marks them as read."""
        specs = []
        for weight in weights:
            if weight is not None:
                self.seen.add(id(weight))
                specs.append(self.spec(weight))
        return tuple(specs)

    def note_seen(self, *tensors: Tensor) -> None:
        """Mark parameters that a rule lists as inputs."""
        for tensor in tensors:
            if type(tensor) is Parameter:
                self.seen.add(id(tensor))

    def same_dtype(self, left: torch.dtype, right: torch.dtype) -> bool:
        """Whether a product accepts operands of these dtypes: equal, or cast by autocast."""
        return left == right or (any_autocast() and self.autocast(left) == self.autocast(right))

    @staticmethod
    def new(shape: Any, dtype: torch.dtype, strides: Any = None) -> Tensor:
        """A tensor without data; contiguous unless strides are given."""
        return _new(
            shape,
            contiguous_strides(shape) if strides is None else strides,
            dtype=dtype,
            device=META,
        )

    @staticmethod
    def like(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """As ``empty_like``: strides are preserved where they are dense."""
        shape = tensor.shape
        return _new(
            shape, dense_like(shape, tensor.stride()), dtype=dtype or tensor.dtype, device=META
        )

    def formatted(self, like: Tensor, shape: Ints, dtype: torch.dtype) -> Tensor:
        """A tensor that is channels_last where another of its rank is, contiguous elsewhere."""
        return self.new(shape, dtype, formatted_like(like.shape, like.stride(), tuple(shape)))

    def autocast(self, dtype: torch.dtype) -> torch.dtype:
        """Dtype of an operation on autocast's low-precision list."""
        if any_autocast() and dtype.is_floating_point and dtype is not torch.float64:
            device = self._autocast_device()
            if device is not None:
                return torch.get_autocast_dtype(device)
        return dtype

    def _autocast_device(self) -> str | None:
        """The device whose autocast holds, if any.

        Where the model stands on the CPU, CUDA's holds too: it is asked for by code that is meant
        for that device, and so a machine without CUDA lists the same layers as one with it.
        """
        if self.home == "cpu" and torch.is_autocast_enabled("cuda"):
            return "cuda"
        return self.home if torch.is_autocast_enabled(self.home) else None

    def cast(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """An operand in the dtype that autocast gives it: by a kernel of its own, unless it is a
        weight, whose cast autocast keeps."""
        if tensor.dtype is dtype or type(tensor) is Parameter or type(base_of(tensor)) is Parameter:
            return tensor
        return self.record("memory", "to", (tensor,), self.like(tensor, dtype))

    def dense(self, tensor: Tensor) -> Tensor:
        """A tensor that lies row-major, for kernels that take no other: a copy where it does not,
        as inside the operation itself."""
        if tensor.is_contiguous():
            return tensor
        return self.record("memory", "contiguous", (tensor,), self.new(tensor.shape, tensor.dtype))

    def matrices(self, tensor: Tensor, columns: int) -> Tensor:
        """An operand of a product, whose last ``columns`` dimensions are a matrix: a copy where the
        others cannot be viewed as one, or the matrix has no dimension of stride 1."""
        shape, strides = tensor.shape, tensor.stride()
        if len(shape) < 3 or (
            are_one(shape[:-columns], strides[:-columns]) and (1 in strides[-2:] or 1 in shape[-2:])
        ):
            return tensor
        return self.dense(tensor)

    def autocast_up(self, dtype: torch.dtype) -> torch.dtype:
        """Dtype of an operation that autocast runs in float32 on CUDA but not on the CPU."""
        if (
            any_autocast()
            and dtype in (torch.float16, torch.bfloat16)
            and self._autocast_device() == "cuda"
        ):
            return torch.float32
        return dtype
