"""Layers: one executed operation with its configuration, and what that configuration must cost.

A layer says nothing about a device. Its cost terms (operations and bytes) follow from its
configuration alone, by closed formulas, so a stored layer can be predicted again at any time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple, TypeAlias, overload

import msgspec

from pytest_neuralpower.errors import TraceError

Shape: TypeAlias = tuple[int, ...]
#: Distinct experts that the tokens of one call choose, in a mixture: as many as if all are equally
#: likely, or a number of them, or a share of all (a float up to 1).
Experts: TypeAlias = Literal["uniform"] | int | float
#: What runs a language model: an engine such as vLLM, or the model's own code.
Engine: TypeAlias = Literal["serving", "eager"]
#: How a serving engine draws a token of each row of logits.
Sampling: TypeAlias = Literal["top_p", "greedy"]
#: What a serving engine quantises a model's products to, and the dtype of its keys and values, by
#: vLLM's names: the model's own, or 8-bit floats.
Quantization: TypeAlias = Literal["none", "fp8"]
CacheDtype: TypeAlias = Literal["auto", "fp8"]
ParamValue: TypeAlias = int | float | bool | str | tuple[int, ...]
Params: TypeAlias = tuple[tuple[str, ParamValue], ...]

#: Every kind of layer; ``uncovered`` is an operation for which there is no formula.
KINDS: Final = (
    "conv",
    "linear",
    "matmul",
    "attention",
    "rnn",
    "pool",
    "norm",
    "activation",
    "softmax",
    "elementwise",
    "reduction",
    "embedding",
    "memory",
    "uncovered",
)

#: The operation that draws a token of each row of logits by top-k and top-p.
SAMPLE_TOP_P: Final = "sample_top_p"

#: Bytes of one element.
ITEMSIZE: Final[Mapping[str, int]] = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "float4_e2m1fn_x2": 1,
    "complex32": 4,
    "complex64": 8,
    "complex128": 16,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "bool": 1,
    "qint8": 1,
    "quint8": 1,
    "qint32": 4,
}


class TensorSpec(NamedTuple):
    """Shape and dtype (torch's name without the ``torch.`` prefix) of one tensor."""

    shape: Shape
    dtype: str

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEMSIZE[self.dtype]


def total_bytes(tensors: Iterable[TensorSpec]) -> int:
    """Bytes of several tensors: a loop, for it runs for every layer of every prediction."""
    total = 0
    for shape, dtype in tensors:
        total += math.prod(shape) * ITEMSIZE[dtype]
    return total


def operand_bytes(layer: Layer) -> int:
    """Bytes of a layer's inputs; of experts' weights, those that the tokens are expected to
    choose."""
    total = total_bytes(layer.inputs)
    if layer.op == "grouped_mm":
        weights = layer.inputs[1]
        total -= int(weights.nbytes * (1.0 - expected_experts(layer) / max(weights.shape[0], 1)))
    return total


def expected_experts(layer: Layer) -> float:
    """Distinct experts that a ``grouped_mm`` reads: ``E (1 - (1 - k/E)^tokens)``.

    Every token chooses ``k`` of ``E`` experts (parameter ``chosen``), all equally likely, unless
    the parameter ``read`` says how many are. All of them, where the layer does not say.
    """
    experts = layer.inputs[1].shape[0]
    read = layer.param("read")
    if read is not None:
        return min(float(read), float(experts))
    chosen = layer.param("chosen")
    if chosen is None or experts == 0:
        return float(experts)
    tokens = layer.inputs[0].shape[0] / chosen
    return float(experts * (1.0 - (1.0 - min(chosen / experts, 1.0)) ** tokens))


class CostTerms(NamedTuple):
    """What one layer must do. ``flops`` is 2 x MACs wherever a layer multiplies and accumulates."""

    flops: int
    bytes_in: int
    bytes_out: int
    bytes_weight: int
    bytes_workspace: int

    @property
    def bytes_moved(self) -> int:
        """Inputs, outputs and weights, each once: the ideal traffic, without workspace."""
        return self.bytes_in + self.bytes_out + self.bytes_weight


class Layer(msgspec.Struct, frozen=True):
    """One executed operation.

    Attributes
    ----------
    kind
        One of :data:`KINDS`.
    op
        The operation's own name, as torch spells it: ``conv2d``, ``max_pool2d``, ``gelu``.
    path
        Dotted path of the module it ran in (``layer1.0.conv1``); ``""`` is the root module.
    inputs, weights, outputs
        Tensors it reads and writes. For ``conv``: one input ``(N, Cin, *spatial)``, a weight
        ``(Cout, Cin / groups, *kernel)`` (transposed: ``(Cin, Cout / groups, *kernel)``), then
        the bias if there is one. For ``linear``: input ``(*, K)``, weight ``(N, K)``. For
        ``matmul``: the two operands ``(*, M, K)`` and ``(*, K, N)`` as inputs. For ``attention``:
        query ``(B, H, L, E)``, key ``(B, Hkv, S, E)`` and value ``(B, Hkv, S, Ev)`` as inputs.
    dtype
        Dtype of the computation.
    params
        Hyper-parameters as sorted ``(name, value)`` pairs: ``stride``, ``padding``, ``dilation``,
        ``groups``, ``transposed`` for ``conv``; ``kernel``, ``stride``, ``padding`` for ``pool``;
        ``kept`` for ``flex_attention``: scores in blocks that the mask keeps;
        ``mode``, ``hidden_size``, ``num_layers``, ``bidirectional``, ``steps`` for ``rnn``;
        ``unread`` and ``unwritten`` for bytes that a compiler keeps in registers;
        ``chosen`` for ``grouped_mm``: experts that each token chooses, and perhaps ``read``, the
        distinct ones of all tokens; ``macs`` for ``sparse_mm``, whose inputs are the sparse
        operand's values, the dense one and the indices.
    """

    kind: str
    op: str
    path: str
    inputs: tuple[TensorSpec, ...]
    weights: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dtype: str
    params: Params = ()

    def param(self, name: str, default: Any = None) -> Any:
        """Value of one hyper-parameter, or ``default``."""
        for key, value in self.params:
            if key == name:
                return value
        return default

    @property
    def covered(self) -> bool:
        """False where no formula is known: the layer is listed and flagged, never counted as 0."""
        return self.kind != "uncovered"

    @property
    def configuration(self) -> tuple[Any, ...]:
        """Everything but the path: equal configurations cost the same."""
        return (
            self.kind,
            self.op,
            self.inputs,
            self.weights,
            self.outputs,
            self.dtype,
            self.params,
        )

    @property
    def cost(self) -> CostTerms:
        return cost_terms(self)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of conv, linear, matmul, attention and rnn; 0 for the others."""
        return multiply_accumulates(self)


def multiply_accumulates(layer: Layer) -> int:
    """MACs of a layer that multiplies and accumulates; a bias is not counted; 0 for other kinds.

    A causal or masked attention counts its full score matrix, as dense kernels compute it and as
    torch's ``FlopCounterMode`` counts it.
    """
    kind = layer.kind
    if kind == "conv":
        weight = layer.weights[0].shape
        # Each input element of a transposed convolution, each output element of a plain one,
        # meets (channels of one group) x (kernel) weights: all of a weight but its first axis.
        swept = layer.inputs[0] if layer.param("transposed", False) else layer.outputs[0]
        return swept.numel * math.prod(weight[1:])
    if kind == "linear":
        # A 1-d weight (bilinear and the like never come here) would have no reduction axis.
        return layer.outputs[0].numel * layer.inputs[0].shape[-1]
    if kind == "matmul":
        reduced = layer.param("reduced")
        return int(layer.param("macs", 0)) or layer.outputs[0].numel * (
            int(reduced) if reduced is not None else layer.inputs[0].shape[-1]
        )
    if kind == "attention":
        query, key, value = (tensor.shape for tensor in layer.inputs[:3])
        kept = layer.param("kept")
        scores = math.prod(query[:-1]) * key[-2] if kept is None else int(kept)
        return scores * (query[-1] + value[-1])
    if kind == "rnn":
        return _rnn_macs(layer)
    return 0


#: Gates of each mode of ``rnn``: matrices of every layer and direction.
GATES: Final = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


def _rnn_macs(layer: Layer) -> int:
    """Gates x hidden x (input + recurrent) for each step, layer and direction."""
    hidden = int(layer.param("hidden_size"))
    recurrent = int(layer.param("proj_size", 0)) or hidden
    directions = 2 if layer.param("bidirectional", False) else 1
    steps = int(layer.param("steps"))  # batch x time; the true lengths' sum for a packed input
    width = layer.inputs[0].shape[-1]
    total = 0
    for _ in range(int(layer.param("num_layers", 1))):
        total += GATES[str(layer.param("mode"))] * hidden * (width + recurrent)
        if recurrent != hidden:
            total += hidden * recurrent
        width = recurrent * directions
    return total * steps * directions


#: Arithmetic operations per element for layers without MACs: per output element, for
#: reductions per input element. Conventions, not measurements: a transcendental counts as one.
_OPS_PER_ELEMENT: Final = {
    "norm": 5,  # mean, variance, normalise, scale, shift
    "activation": 1,
    "softmax": 5,  # maximum, subtract, exponentiate, sum, divide
    "elementwise": 1,
    "reduction": 1,
    "embedding": 0,
    "memory": 0,
    "uncovered": 0,
}


#: Operations that read no more of their first input than they return.
_READS_ITS_RESULT: Final = frozenset({"getitem", "gather", "index_select", "take_along_dim"})


def _fourier_flops(layer: Layer) -> int:
    """5 N log2 N for each transform of ``points`` = N values; 0 for other operations."""
    points = layer.param("points")
    if points is None:
        return 0
    # The longer side holds all N: a real transform keeps half of its spectrum.
    values = max(layer.inputs[0].numel, layer.outputs[0].numel)
    return round(5 * values * math.log2(points))


def _moved(layer: Layer, bytes_in: int, bytes_out: int) -> tuple[int, int]:
    """Of a layer's inputs and outputs, what a compiler does not keep in registers."""
    for name, value in layer.params:
        if name == "unread":
            bytes_in = max(bytes_in - int(value), 0)  # type: ignore[arg-type]
        elif name == "unwritten":
            bytes_out = max(bytes_out - int(value), 0)  # type: ignore[arg-type]
    return bytes_in, bytes_out


def cost_terms(layer: Layer) -> CostTerms:
    """Operations and bytes of one layer, from its configuration alone.

    Bytes assume each tensor is moved once. Workspace is the unfolded input (im2col) of a
    convolution with a kernel above one, and the score matrix of an attention: what an
    implementation that materialises them would write (FastDeepIoT's ``mem_inter``).
    """
    kind = layer.kind
    bytes_in = operand_bytes(layer)
    bytes_out = total_bytes(layer.outputs)
    bytes_weight = total_bytes(layer.weights) if layer.weights else 0
    workspace = 0
    per_element = _OPS_PER_ELEMENT.get(kind)
    if per_element is not None:
        swept = layer.inputs if kind == "reduction" and layer.inputs else layer.outputs
        flops = per_element * math.prod(swept[0].shape) if swept and per_element else 0
        flops = _fourier_flops(layer) or flops
        if kind == "norm" and layer.op == "batch_norm" and not layer.param("training", False):
            flops = 2 * layer.outputs[0].numel  # statistics are known: one scale, one shift
        if kind == "embedding":
            # It reads the rows it returns, not the table (a bag reads `rows` of them).
            rows = int(layer.param("rows", 0)) * layer.weights[0].shape[-1]
            itemsize = ITEMSIZE[layer.weights[0].dtype]
            bytes_weight = rows * itemsize if rows else bytes_out
        elif layer.op in _READS_ITS_RESULT:
            # Likewise: indexing touches what it returns, and the index tensors.
            bytes_in = bytes_out + total_bytes(layer.inputs[1:])
        bytes_in, bytes_out = _moved(layer, bytes_in, bytes_out)
    elif kind == "pool":
        window = layer.param("kernel")
        if window is None:  # adaptive: every input element is read about once
            flops = layer.inputs[0].numel
        else:
            flops = layer.outputs[0].numel * math.prod(window)
        bytes_in, bytes_out = _moved(layer, bytes_in, bytes_out)
    else:
        flops = 2 * multiply_accumulates(layer)
        itemsize = ITEMSIZE[layer.dtype]
        if kind == "conv":
            kernel = math.prod(layer.weights[0].shape[2:])
            if kernel > 1:
                channels = layer.inputs[0].shape[1]
                positions = layer.outputs[0].numel // max(layer.outputs[0].shape[1], 1)
                if layer.param("transposed", False):
                    channels = layer.outputs[0].shape[1]
                    positions = layer.inputs[0].numel // max(layer.inputs[0].shape[1], 1)
                workspace = positions * kernel * channels * itemsize
        elif kind == "attention":
            query, key = layer.inputs[0].shape, layer.inputs[1].shape
            workspace = math.prod(query[:-1]) * key[-2] * itemsize
    return CostTerms(flops, bytes_in, bytes_out, bytes_weight, workspace)


@dataclass(frozen=True, slots=True)
class Trace(Sequence[Layer]):
    """The layers of one model call, in the order they ran, and how they were found.

    Attributes
    ----------
    layers
        In execution order.
    route
        ``"function"`` (shapes only, nothing computed), ``"aten"`` or ``"forward"`` (one real
        forward on the CPU): which of the tracing routes succeeded.
    fallbacks
        Operations that had no shape rule, as ``"op: how it was answered"``, in order, once each.
    notes
        What a reader should know, one sentence each: why a slower route was taken, a module that
        ran without its parameters being seen.
    batch
        Samples in one call: first dimension of the first tensor input, also inside an object; 1
        when there is none, 0 where an object's tensors disagree and it does not say.
    model
        Name of the model's class.
    reads
        Of each layer, which layers' outputs it reads: their places in ``layers``, in the order of
        its operands, each once. Views are seen through, and inputs, parameters and buffers are no
        layer's outputs. After a write in place, what reads the tensor or a view of it reads the
        writer; a layer that writes into a part of a tensor also reads who wrote there before.
        Empty where the layers were not traced but read from a file.
    tokens
        Tokens in one call, where its inputs are ids ``(batch, length)``; 0 where they do not tell.
    """

    layers: tuple[Layer, ...]
    route: str = "function"
    fallbacks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    batch: int = 1
    model: str = ""
    reads: tuple[tuple[int, ...], ...] = ()
    tokens: int = 0

    def __len__(self) -> int:
        return len(self.layers)

    @overload
    def __getitem__(self, index: int) -> Layer: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Layer]: ...
    def __getitem__(self, index: int | slice) -> Layer | Sequence[Layer]:
        return self.layers[index]

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def flops(self) -> int:
        return sum(layer.cost.flops for layer in self.layers)

    def with_experts(self, experts: Experts) -> Trace:
        """The trace with so many distinct experts read by each ``grouped_mm``.

        Parameters
        ----------
        experts
            ``uniform`` leaves the trace as it is; see :data:`Experts`. Never are more read than
            there are, nor than rows choose one.

        Raises
        ------
        TraceError
            It is none of these.
        """
        if experts == "uniform":
            return self
        share = type(experts) is float and 0 < experts <= 1
        if not share and (type(experts) is not int or experts < 1):
            raise TraceError(
                f"experts={experts!r}: allowed: 'uniform', a number of experts from 1, or a share "
                "of them such as 0.5"
            )
        layers = []
        for layer in self.layers:
            if layer.op == "grouped_mm":
                known = layer.inputs[1].shape[0]
                read = min(experts * known if share else experts, known, layer.inputs[0].shape[0])
                params = [pair for pair in layer.params if pair[0] != "read"]
                params.append(("read", float(read)))
                layers.append(msgspec.structs.replace(layer, params=tuple(sorted(params))))
            else:
                layers.append(layer)
        notes = [note for note in self.notes if not note.startswith("Assumed that ")]
        if len(notes) < len(self.notes):
            said = f"{experts:.0%} of the experts" if share else f"{experts} experts"
            notes.append(f"Given: the tokens of one call choose {said}, whose weights are read.")
        return replace(self, layers=tuple(layers), notes=tuple(notes))
