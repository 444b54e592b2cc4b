"""Columns: what estimators see of many layers at once, one numpy array a quantity.

Layers of one *family* share their columns. A family is a kind, or a part of a kind that runs on
kernels of its own (depthwise and transposed convolutions), so that it never borrows the
efficiency of the others unnoticed. A convolution over the whole map is a matrix product and
belongs with the linear layers. Everything is vectorised: no torch, no loop but one to read
the shapes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from pytest_neuralpower.layers import (
    ITEMSIZE,
    KINDS,
    Layer,
    cost_terms,
    multiply_accumulates,
    operand_bytes,
    total_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable

# NDArray[np.float64] and [np.intp], spelled out: loading numpy.typing would take a millisecond.
FloatArray: TypeAlias = np.ndarray[tuple[Any, ...], np.dtype[np.float64]]
IndexArray: TypeAlias = np.ndarray[tuple[Any, ...], np.dtype[np.intp]]
Columns: TypeAlias = Mapping[str, FloatArray]

#: Families whose time is that of matrix products (m x k by k x n, ``groups`` of them).
GEMM_FAMILIES: Final = frozenset(
    {"conv", "conv.transposed", "conv.depthwise", "linear", "matmul", "matmul.grouped"}
)

#: Columns whose calibrated range says whether a layer is inside what was measured. They are the
#: sizes that set a kernel's efficiency, not their products: a layer with every size in range is
#: interpolated however many operations it has.
RANGE_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "conv": ("m", "n", "k", "kernel_area", "groups", "dims"),
    "conv.depthwise": ("m", "groups", "kernel_area", "dims"),
    "conv.transposed": ("m", "n", "k", "kernel_area", "groups", "dims"),
    "linear": ("m", "n", "k", "groups"),
    "matmul": ("m", "n", "k", "groups"),
    "matmul.grouped": ("m", "n", "k", "groups"),
    "pool": ("bytes_moved", "kernel_area"),
    "norm": ("bytes_moved", "width"),
    "softmax": ("bytes_moved", "width"),
    "attention": ("heads", "queries", "keys", "width", "causal"),
    "attention.decode": ("heads", "shared_heads", "keys", "width"),
}
_DEFAULT_RANGE: Final = ("bytes_moved",)

#: Columns that trees may split on: the sizes that decide how a kernel runs. Of layers that only
#: stream their tensors that is how much there is of them.
SIZE_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "conv": (
        *("batch", "cin", "h", "cout", "oh", "kernel_area", "stride", "groups", "m", "n", "k"),
    ),
    "conv.depthwise": ("batch", "groups", "oh", "ow", "kernel_area", "stride", "m"),
    "conv.transposed": ("batch", "cin", "h", "cout", "oh", "kernel_area", "stride", "m", "n", "k"),
    "linear": ("m", "n", "k"),
    "matmul": ("groups", "m", "n", "k"),
    "matmul.grouped": ("groups", "m", "n", "k"),
    "pool": ("batch", "channels", "h", "oh", "ow", "kernel_area"),
    "norm": ("rows", "width"),
    "softmax": ("rows", "width"),
    "attention": ("heads", "shared_heads", "queries", "keys", "width", "causal"),
    "attention.decode": ("batch", "shared_heads", "sharing", "keys", "width"),
}
#: Families that a layer can be of: kinds, and the parts of kinds that stand apart.
FAMILIES: Final = tuple(dict.fromkeys([*KINDS, *SIZE_COLUMNS]))

#: Families that only stream their tensors, all alike.
STREAMING: Final = ("activation", "elementwise")

_DEFAULT_SIZES: Final = ("flops", "bytes_in", "bytes_out", "bytes_weight")

#: Queries a sequence up to which attention to more keys than that is decoding: kernels then split
#: the keys among multiprocessors, and reading these takes the time.
_FEW_QUERIES: Final = 16


def family(layer: Layer) -> str:
    """The layer's family: its kind, ``linear`` for a convolution whose kernel covers the whole
    input and for ``addmm`` and ``scaled_mm``, which linear layers run, or the part of a kind that
    stands apart: ``conv.depthwise``, ``conv.transposed``, ``matmul.grouped`` (a mixture of experts)
    and ``attention.decode`` (at most 16 queries a sequence, and more keys)."""
    if layer.kind == "attention":
        queries, keys = layer.inputs[0].shape[-2], layer.inputs[1].shape[-2]
        return "attention.decode" if queries <= _FEW_QUERIES and keys > queries else "attention"
    if layer.kind == "matmul":
        return _PRODUCTS.get(layer.op, "matmul")
    if layer.kind != "conv":
        return layer.kind
    weight = layer.weights[0].shape
    groups = 1
    for name, value in layer.params:
        if name == "transposed" and value:
            return "conv.transposed"
        if name == "groups":
            groups = value  # type: ignore[assignment]
    if groups > 1:
        return "conv.depthwise" if weight[1] == 1 else "conv"
    whole = layer.inputs[0].shape[2:] == weight[2:] and math.prod(layer.outputs[0].shape[2:]) == 1
    return "linear" if whole else "conv"


#: Operations of the kind matmul -> the family of what runs them.
_PRODUCTS: Final = {"addmm": "linear", "scaled_mm": "linear", "grouped_mm": "matmul.grouped"}

#: What follows a family's name where a platform has rows of it in 8-bit floats beside those in its
#: own dtype: other kernels run them.
FLOAT8: Final = ".float8"


def is_float8(layer: Layer) -> bool:
    """Whether the layer multiplies 8-bit floats or, of attention, reads keys in them."""
    return layer.dtype.startswith("float8")


def range_columns(family_name: str) -> tuple[str, ...]:
    """Names of the columns whose calibrated range is checked for this family."""
    return RANGE_COLUMNS.get(family_name, _DEFAULT_RANGE)


def size_columns(family_name: str) -> tuple[str, ...]:
    """Names of the columns that trees may split on."""
    return SIZE_COLUMNS.get(family_name, _DEFAULT_SIZES)


def columns(family_name: str, layers: Sequence[Layer]) -> dict[str, FloatArray]:
    """Columns of layers that all belong to one family.

    Parameters
    ----------
    family_name
        What :func:`family` says of each of ``layers``.
    layers
        The layers; of none there are empty columns.

    Returns
    -------
    dict
        Arrays of shape ``(len(layers),)``. Always: ``flops``, ``bytes_in``, ``bytes_out``,
        ``bytes_weight``, ``bytes_workspace``, ``bytes_moved`` (equal to
        :func:`~pytest_neuralpower.layers.cost_terms`). Matrix-product families add ``m``, ``n``,
        ``k`` and ``groups``; convolutions and pools add their geometry, norms and softmaxes the
        ``rows`` they treat alike and their ``width``, attention its sizes. All but the
        matrix-product families add ``op`` (:func:`op_code`).
    """
    if family_name.startswith("conv"):
        found = _conv_columns(layers)
    elif family_name in ("linear", "matmul"):
        found = _gemm_columns(layers, _linear_row if family_name == "linear" else _matmul_row)
    elif family_name == "matmul.grouped":
        found = with_experts(_table(_EXPERT_NAMES, [_expert_row(layer) for layer in layers]))
    elif family_name == "pool":
        found = _table(_POOL_NAMES, [_pool_row(layer) for layer in layers])
        found["kernel_area"] = found["kh"] * found["kw"]
        # Adaptive pools sweep every input about once; others as often as their windows overlap.
        windows = found["bytes_out"] * found["kernel_area"]
        found["window_bytes"] = np.where(found["adaptive"] > 0, found["bytes_in"], windows)
    elif family_name in ("norm", "softmax"):
        found = _table(_ROW_NAMES, [_row_row(layer) for layer in layers])
    elif family_name == "rnn":
        found = _table(_RNN_NAMES, [_rnn_row(layer) for layer in layers])
    elif family_name in ("attention", "attention.decode"):
        found = _attention_columns(layers)
    else:
        found = _table(_COST_NAMES, [cost_terms(layer) for layer in layers])
        if family_name in ("activation", "elementwise"):
            inplace = [("inplace", True) in layer.params for layer in layers]
            found["inplace"] = np.array(inplace, dtype=np.float64)
        if family_name == "elementwise":
            constant = [layer.op == "pow" and len(layer.inputs) == 1 for layer in layers]
            found["pow"] = np.array(constant, dtype=np.float64)
    found["bytes_moved"] = found["bytes_in"] + found["bytes_out"] + found["bytes_weight"]
    if family_name not in GEMM_FAMILIES:
        found["op"] = np.array([op_code(layer.op) for layer in layers], dtype=np.float64)
    return found


_OP_CODES: Final[dict[str, float]] = {}


def op_code(op: str) -> float:
    """What stands for an operation's name in the column ``op``: any number, the same as long as
    the process lives."""
    code = _OP_CODES.get(op)
    if code is None:
        code = _OP_CODES[op] = float(len(_OP_CODES))
    return code


def op_name(code: float) -> str:
    """The operation that a code of :func:`op_code` stands for."""
    return next(name for name, known in _OP_CODES.items() if known == code)


_COST_NAMES: Final = ("flops", "bytes_in", "bytes_out", "bytes_weight", "bytes_workspace")


def _table(names: Sequence[str], rows: Sequence[tuple[float, ...]]) -> dict[str, FloatArray]:
    matrix = np.array(rows, dtype=np.float64).reshape(len(rows), len(names))
    return {name: np.ascontiguousarray(matrix[:, index]) for index, name in enumerate(names)}


# -- Convolutions.

_CONV_NAMES: Final = (
    *("batch", "cin", "h", "w", "cout", "oh", "ow", "kh", "kw"),
    *("groups", "stride", "transposed", "bias", "itemsize", "dims", "dilation"),
)


def _conv_row(layer: Layer) -> tuple[float, ...]:
    given = layer.inputs[0].shape
    weight = layer.weights[0].shape
    result = layer.outputs[0].shape
    groups, stride, transposed, dilation = 1, 1, 0, 1
    for name, value in layer.params:
        if name == "dilation":
            dilation = max(value) if isinstance(value, tuple) else value  # type: ignore[assignment]
        elif name == "groups":
            groups = value  # type: ignore[assignment]
        elif name == "stride":
            stride = math.prod(value) if isinstance(value, tuple) else value  # type: ignore[assignment]
        elif name == "transposed" and value:
            transposed = 1
    if len(given) == 4:
        batch, cin, h, w = given
        _, cout, oh, ow = result
        kh, kw = weight[2:]
    else:  # 1-d: one row; 3-d: depth folded into the height
        batch, cin, h, w = given[0], given[1], math.prod(given[2:-1]), given[-1]
        cout, oh, ow = result[1], math.prod(result[2:-1]), result[-1]
        kh, kw = math.prod(weight[2:-1]), weight[-1]
    bias = len(layer.weights) - 1
    itemsize = ITEMSIZE[layer.dtype]
    return (
        *(batch, cin, h, w, cout, oh, ow, kh, kw),
        *(groups, stride, transposed, bias, itemsize, len(given) - 2, dilation),
    )


def _conv_columns(layers: Sequence[Layer]) -> dict[str, FloatArray]:
    table = _table(_CONV_NAMES, [_conv_row(layer) for layer in layers])
    transposed = table["transposed"] > 0
    kernel = table["kh"] * table["kw"]
    inside = table["batch"] * table["h"] * table["w"]
    outside = table["batch"] * table["oh"] * table["ow"]
    # A transposed convolution is the gradient of a plain one: both ends change places.
    swept = np.where(transposed, inside, outside)
    deep = np.where(transposed, table["cout"], table["cin"]) / table["groups"]
    wide = np.where(transposed, table["cin"], table["cout"]) / table["groups"]
    weights = deep * wide * table["groups"] * kernel
    size = table["itemsize"]
    table["kernel_area"] = kernel
    table["narrow_kernel"] = np.minimum(table["kh"], table["kw"])
    table["m"], table["n"], table["k"] = swept, wide, deep * kernel
    table["flops"] = 2.0 * swept * weights
    table["bytes_in"] = inside * table["cin"] * size
    table["bytes_out"] = outside * table["cout"] * size
    table["bytes_weight"] = (weights + table["bias"] * table["cout"]) * size
    unfolded = swept * kernel * np.where(transposed, table["cout"], table["cin"]) * size
    table["bytes_workspace"] = np.where(kernel > 1, unfolded, 0.0)
    return table


# -- Matrix products.

_GEMM_NAMES: Final = ("m", "n", "k", "groups", "convolved", "flops", *_COST_NAMES[1:])


def _linear_row(layer: Layer) -> tuple[float, ...]:
    given, result = layer.inputs[0], layer.outputs[0]
    if layer.kind == "conv":  # over the whole map
        depth, width = math.prod(given.shape[1:]), result.shape[1]
    else:
        depth, width = given.shape[-1], result.shape[-1]
    rows = result.numel // max(width, 1)
    # Weights and bias of ``addmm`` are operands like any other.
    held = total_bytes(layer.weights)
    if layer.kind == "matmul":
        held = operand_bytes(layer) - given.nbytes
    return (
        *(rows, width, depth, 1, layer.kind == "conv", 2 * rows * width * depth),
        *(given.nbytes, result.nbytes, held, 0),
    )


def _matmul_row(layer: Layer) -> tuple[float, ...]:
    macs = multiply_accumulates(layer)
    result = layer.outputs[0]
    width = result.shape[-1] if result.shape else 1
    height = result.shape[-2] if len(result.shape) > 1 else 1
    groups = math.prod(result.shape[:-2])
    depth = -(-macs // max(result.numel, 1))  # of a sparse operand, its mean, rounded up
    given, held = operand_bytes(layer), total_bytes(layer.weights)
    return (height, width, depth, groups, 0, 2 * macs, given, result.nbytes, held, 0)


def _gemm_columns(
    layers: Sequence[Layer], row: Callable[[Layer], tuple[float, ...]]
) -> dict[str, FloatArray]:
    return _table(_GEMM_NAMES, [row(layer) for layer in layers])


# -- Products of experts.

_EXPERT_NAMES: Final = (
    *("tokens", "chosen", "experts", "read", "n", "k", "expert_bytes", "row_bytes", "bytes_out"),
)


def _expert_row(layer: Layer) -> tuple[float, ...]:
    given, weights = layer.inputs[:2]
    (rows, depth), result = given.shape, layer.outputs[0]
    experts = weights.shape[0]
    # Without a choice every row is a token's own, and all weights are read.
    chosen = layer.param("chosen") or max(experts, 1)
    return (
        *(rows / chosen, chosen, experts, layer.param("read") or 0, result.shape[-1], depth),
        *(weights.nbytes / max(experts, 1), given.nbytes, result.nbytes),
    )


def with_experts(table: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """Columns of products of experts that follow from how many ``tokens`` choose among them.

    As many experts are read as :func:`~pytest_neuralpower.layers.expected_experts` says, the
    ``groups``, each by ``m`` rows in the mean. Of a number that was given (``read``) no more than
    there are rows.
    """
    found = dict(table)
    tokens, experts = table["tokens"], np.maximum(table["experts"], 1.0)
    rows = tokens * table["chosen"]
    missed = (1.0 - np.minimum(table["chosen"] / experts, 1.0)) ** tokens
    given = np.minimum(np.minimum(table["read"], table["experts"]), rows)
    read = np.where(table["read"] > 0, given, table["experts"] * (1.0 - missed))
    found["groups"] = np.maximum(read, 1.0)
    found["m"] = rows / found["groups"]
    found["flops"] = 2.0 * rows * table["n"] * table["k"]
    found["bytes_in"] = table["row_bytes"] + read * table["expert_bytes"]
    found["bytes_weight"] = np.zeros_like(rows)
    found["bytes_workspace"] = np.zeros_like(rows)
    found["convolved"] = np.zeros_like(rows)
    return found


# -- Pooling.

_POOL_NAMES: Final = (
    *("batch", "channels", "h", "w", "oh", "ow", "kh", "kw", "adaptive"),
    *_COST_NAMES,
)


def _pool_row(layer: Layer) -> tuple[float, ...]:
    given, result = layer.inputs[0].shape, layer.outputs[0].shape
    h, oh = math.prod(given[2:-1]), math.prod(result[2:-1])
    w, ow = given[-1], result[-1]
    window = layer.param("kernel")
    adaptive = window is None
    if isinstance(window, int):
        window = (window,) * (len(given) - 2)
    if window is None:  # adaptive: the window that the two sizes imply
        kh, kw = -(-h // max(oh, 1)), -(-w // max(ow, 1))
    else:
        kh, kw = math.prod(window[:-1]), window[-1]
    return (given[0], given[1], h, w, oh, ow, kh, kw, adaptive, *cost_terms(layer))


# -- Norms and softmaxes.

_ROW_NAMES: Final = ("rows", "width", "training", *_COST_NAMES)


def _row_row(layer: Layer) -> tuple[float, ...]:
    # A weight's own normalisation has no input: what it makes is as large as what it reads.
    shape = (layer.inputs or layer.outputs)[0].shape
    normalized = layer.param("normalized_shape")
    if normalized is not None:  # layer norm
        width = normalized if isinstance(normalized, int) else math.prod(normalized)
    elif layer.kind == "softmax":
        width = shape[layer.param("dim", -1)] if shape else 1
    else:  # batch and group norm: what one weight scales
        width = math.prod(shape) // max(layer.weights[0].numel if layer.weights else 1, 1)
    training = bool(layer.param("training", False))
    return (math.prod(shape) // max(width, 1), width, training, *cost_terms(layer))


# -- Recurrent layers.

_RNN_NAMES: Final = ("batch", "steps", "step_bytes", *_COST_NAMES)


def _rnn_row(layer: Layer) -> tuple[float, ...]:
    """``steps`` wait for one another: of every layer, one after the other; directions do not.

    ``step_bytes`` are the weights that each of them reads.
    """
    layers = int(layer.param("num_layers", 1))
    directions = 2 if layer.param("bidirectional", False) else 1
    samples = layer.outputs[-1].shape[-2] if len(layer.outputs[-1].shape) > 1 else 1
    times = max(int(layer.param("steps", 1)) // max(samples, 1), 1)
    terms = cost_terms(layer)
    held = terms.bytes_weight / (layers * directions)
    return (samples, times * layers, held, *terms)


# -- Attention.

_ATTENTION_NAMES: Final = (
    *("batch", "heads", "shared_heads", "queries", "keys", "width", "cached_bytes"),
    *("causal", "masked", *_COST_NAMES),
)


def _attention_row(layer: Layer) -> tuple[float, ...]:
    query, key = layer.inputs[0].shape, layer.inputs[1].shape
    return (
        math.prod(query[:-3]),
        *(math.prod(query[:-2]), math.prod(key[:-2]), query[-2], key[-2], query[-1]),
        layer.inputs[1].nbytes + layer.inputs[2].nbytes,
        *(bool(layer.param("causal", False)), bool(layer.param("masked", False))),
        *cost_terms(layer),
    )


def _attention_columns(layers: Sequence[Layer]) -> dict[str, FloatArray]:
    table = _table(_ATTENTION_NAMES, [_attention_row(layer) for layer in layers])
    # A causal kernel skips the scores above the diagonal, which cost terms count as others do.
    scored = (table["keys"] + 1) / (2 * np.maximum(table["keys"], 1))
    table["scored_flops"] = table["flops"] * np.where(table["causal"] > 0, scored, 1.0)
    table["sharing"] = table["heads"] / np.maximum(table["shared_heads"], 1.0)
    return table
