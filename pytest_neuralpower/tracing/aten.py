"""The dispatcher's view: ATen operations listed as they pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor

from pytest_neuralpower.layers import TensorSpec
from pytest_neuralpower.tracing.fallbacks import NeedsForward, map_tensors, meta_like, tensors_in
from pytest_neuralpower.tracing.rules.conv import full
from pytest_neuralpower.tracing.rules.matmul import list_grouped
from pytest_neuralpower.tracing.torch_private import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    TorchDispatchMode,
    qualified_name,
    without_torch_function,
)

if TYPE_CHECKING:
    from pytest_neuralpower.tracing.recorder import Recorder


@contextmanager
def dispatched(
    recorder: Recorder, fakes: FakeTensorMode, caller: str, *, script: bool = False
) -> Iterator[None]:
    """List every ATen operation; tensors without data answer it.

    Raises
    ------
    NeedsForward
        ``caller`` depends on values.
    """
    try:
        with fakes, AtenRecorder(recorder, script=script):
            yield
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise NeedsForward(f"{caller} depends on values ({error})") from error


def fake_like(fakes: FakeTensorMode, tensor: Tensor) -> Tensor:
    """A tensor on the CPU that has no data but within ``fakes``."""
    with fakes:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")


def call_script(recorder: Recorder, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Result of TorchScript, whose code runs outside Python: each call is listed at ATen level."""
    fakes = FakeTensorMode(allow_non_fake_inputs=True)

    pairs: list[tuple[Tensor, Tensor]] = []

    def to_fake(tensor: Tensor) -> Tensor:
        if not tensor.is_meta:
            return tensor
        fake = fake_like(fakes, tensor)
        recorder.made_as(fake, tensor)
        pairs.append((tensor, fake))
        return fake

    def to_meta(fake: Tensor) -> Tensor:
        made = meta_like(fake)
        recorder.made_as(made, fake)
        return made

    with without_torch_function():
        given, named = map_tensors(to_fake, args), map_tensors(to_fake, kwargs)
        # The profiling executor would fuse what we want to see.
        unoptimised = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
        with unoptimised, dispatched(recorder, fakes, "a TorchScript call", script=True):
            result = call(*given, **named)
        for tensor, fake in pairs:  # one may have been written to
            recorder.made_as(tensor, fake)
        return map_tensors(to_meta, result)


def run_script(
    recorder: Recorder, call: Callable[..., Any], args: Any, kwargs: Any, weights: Sequence[Tensor]
) -> Any:
    """Result of TorchScript on the forward route, computed for real and listed likewise."""
    unoptimised = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
    with without_torch_function(), unoptimised:
        try:
            with AtenRecorder(recorder, weights):
                return call(*args, **kwargs)
        except RuntimeError:
            call(*args, **kwargs)  # it tells its reason only where no mode is active
            raise


# -- Operations whose configuration matters: products, convolutions, pooling.


class _Call(NamedTuple):
    """One ATen operation that has run: its name, what went in and what came out.

    Attributes
    ----------
    reads, makes
        Operands and results; where it overwrites a tensor, this one is a result alone.
    """

    recorder: Recorder
    name: str
    args: tuple[Any, ...]
    result: Any
    is_weight: Callable[[Any], bool]
    reads: Sequence[Tensor]
    makes: Sequence[Tensor]

    @property
    def spec(self) -> Callable[[Tensor], TensorSpec]:
        return self.recorder.spec

    def add(
        self, *layer: Any, reads: Sequence[Tensor] | None = None, makes: Sequence[Tensor] = ()
    ) -> None:
        """List a layer (see :meth:`Recorder.add`), of all operands and results if not told."""
        if reads is None:
            reads, makes = self.reads, self.makes
        self.recorder.add(*layer, reads=reads, makes=makes)


def _convolution(call: _Call) -> None:
    data, weight, bias, stride, padding, dilation, transposed, extra, groups = call.args[:9]
    dims = weight.ndim - 2
    params: list[tuple[str, Any]] = [
        ("dilation", full(dilation, dims)),
        ("groups", groups),
        ("padding", full(padding, dims)),
        ("stride", full(stride, dims)),
        ("transposed", transposed),
    ]
    if transposed:
        params.insert(2, ("output_padding", full(extra, dims)))
    op = f"conv_transpose{dims}d" if transposed else f"conv{dims}d"
    spec = call.spec
    weights = [spec(tensor) for tensor in (weight, bias) if tensor is not None]
    call.add("conv", op, [spec(data)], weights, [spec(call.result)], tuple(params))


def _product(call: _Call) -> None:
    """Of two tensors, perhaps added to a third; by a weight's transpose, a linear layer."""
    added = call.name.lstrip("_").startswith("add")
    left, right = call.args[1:3] if added else call.args[:2]
    spec = call.spec
    outputs = [spec(call.result)]
    if call.is_weight(right) and right.ndim == 2:
        inner, outer = right.shape
        weights = [TensorSpec((outer, inner), spec(right).dtype)]
        if added:
            weights.append(spec(call.args[0]))
        call.add("linear", "linear", [spec(left)], weights, outputs)
        return
    inputs = [spec(left), spec(right)] + ([spec(call.args[0])] if added else [])
    params: tuple[tuple[str, Any], ...] = ()
    if call.name == "addbmm":  # it sums over the batch, too
        params = (("reduced", left.shape[0] * left.shape[2]),)
    call.add("matmul", call.name.lstrip("_"), inputs, (), outputs, params)


def _product_of_bytes(call: _Call) -> None:
    """Of two matrices in 8 bits, whatever the result is in."""
    left, right = map(call.spec, call.args[:2])
    outputs = [call.spec(call.result)]
    op = call.name.lstrip("_").removesuffix("_v2")
    call.add("matmul", op, [left, right], (), outputs, (), left.dtype)


def _grouped_product(call: _Call) -> None:
    rows, matrices = call.args[:2]
    if rows.ndim == 2 and matrices.ndim == 3:
        list_grouped(call.recorder, rows, matrices, call.result, call.reads)
        return
    inputs = [call.spec(rows), call.spec(matrices)]
    call.add("matmul", "grouped_mm", inputs, (), [call.spec(call.result)])


def _topk(call: _Call) -> None:
    data, count = call.args[:2]
    if data.ndim:
        dim = call.args[2] if len(call.args) > 2 else -1
        call.recorder.chosen[data.shape[dim]] = count
    outputs = [call.spec(tensor) for tensor in call.makes]
    call.add("uncovered", "topk", [call.spec(data)], (), outputs)


#: Rows beyond which torch multiplies to get Euclidean distances (ATen's ``_euclidean_dist``).
_FEW_ROWS: Final = 25


def _distances(call: _Call) -> None:
    """``cdist``: Euclidean ones of many rows by a product, with both norms as further columns."""
    left, right = call.args[:2]
    power, mode = call.args[2:4] if call.name == "_cdist_forward" else (2, 1)
    many = max(left.shape[-2], right.shape[-2]) > _FEW_ROWS
    multiplies = power == 2 and (mode == 1 or (not mode and many))
    call.add(
        "matmul" if multiplies else "uncovered",
        "cdist",
        [call.spec(left), call.spec(right)],
        (),
        [call.spec(call.result)],
        (("reduced", left.shape[-1] + 2),) if multiplies else (),
    )


def _fourier(call: _Call) -> None:
    """A fast Fourier transform: 5 N log2 N operations, as FFTW and cuFFT count them."""
    data, dims = call.args[:2]
    longer = call.result if call.name == "_fft_c2r" else data
    points = math.prod(longer.shape[dim] for dim in dims)
    call.add(
        "elementwise",
        call.name.lstrip("_"),
        [call.spec(data)],
        (),
        [call.spec(call.result)],
        (("points", points),),
    )


def _convolution_backward(call: _Call) -> None:
    """The input's gradient is a convolution, the weight's a product; each costs the forward's."""
    above, data, weight, _, stride, padding, dilation, transposed, _, groups, wanted = call.args
    dims = weight.ndim - 2
    spec = call.spec
    if wanted[0]:
        params = (
            ("dilation", full(dilation, dims)),
            ("groups", groups),
            ("padding", full(padding, dims)),
            ("stride", full(stride, dims)),
            ("transposed", not transposed),
        )
        op = f"conv{dims}d" if transposed else f"conv_transpose{dims}d"
        call.add(
            "conv", op, [spec(above)], [spec(weight)], [spec(call.result[0])], params,
            reads=(above, weight), makes=(call.result[0],),
        )  # fmt: skip
    if wanted[1]:
        swept = data if transposed else above  # by each of the kernel's weights
        reduced = swept.shape[0] * math.prod(swept.shape[2:])
        call.add(
            "matmul",
            "convolution_backward",
            [spec(data), spec(above)],
            (),
            [spec(call.result[1])],
            (("reduced", reduced),),
            reads=(data, above),
            makes=(call.result[1],),
        )
    if wanted[2]:
        call.add(
            "reduction", "sum", [spec(above)], (), [spec(call.result[2])],
            reads=(above,), makes=(call.result[2],),
        )  # fmt: skip


def _attention_backward(call: _Call) -> None:
    """Scores again, then the gradients of values, scores, queries and keys: five products."""
    above, query, key, value = call.args[:4]
    spec = call.spec
    width = query.shape[-1]
    call.add(
        "matmul",
        "scaled_dot_product_attention_backward",
        [spec(tensor) for tensor in (above, query, key, value)],
        (),
        [spec(tensor) for tensor in tensors_in(call.result)[:3]],
        (("reduced", key.shape[-2] * (3 * width + 2 * value.shape[-1]) // width),),
    )


def _attention(call: _Call) -> None:
    result = call.result
    output = result[0] if isinstance(result, (tuple, list)) else result
    inputs = [call.spec(tensor) for tensor in call.args[:3]]
    op = "scaled_dot_product_attention"
    call.add("attention", op, inputs, (), [call.spec(output)])


def _pooling(call: _Call) -> None:
    op = call.name.removesuffix("_with_indices").lstrip("_")
    args = call.args
    dims = int(op[-2])
    params: tuple[tuple[str, Any], ...] = (("adaptive", True),)
    if "adaptive" not in op:
        kernel = full(args[1], dims)
        stride = full(args[2], dims) if len(args) > 2 and args[2] else kernel
        padding = full(args[3], dims) if len(args) > 3 else (0,) * dims
        params = (("kernel", kernel), ("padding", padding), ("stride", stride))
    outputs = [call.spec(tensor) for tensor in tensors_in(call.result)]
    call.add("pool", op, [call.spec(args[0])], (), outputs, params)


def _embedding(call: _Call) -> None:
    weight, indices = call.args[:2]
    spec = call.spec
    call.add("embedding", "embedding", [spec(indices)], [spec(weight)], [spec(call.result)])


def _recurrent(call: _Call) -> None:
    """oneDNN's fused LSTM: its layers and directions come one at a time."""
    data, weight = call.args[:2]
    spec = call.spec
    call.add(
        "rnn",
        "lstm",
        [spec(data)],
        [spec(tensor) for tensor in call.args[1:5]],
        [spec(tensors_in(call.result)[0])],
        (
            ("bidirectional", False),
            ("hidden_size", weight.shape[0] // 4),
            ("mode", "LSTM"),
            ("num_layers", 1),
            ("steps", math.prod(data.shape[:-1])),
        ),
    )


_LISTERS: Final[dict[str, Callable[[_Call], None]]] = {
    "convolution": _convolution,
    "_convolution": _convolution,
    "convolution_overrideable": _convolution,
    "convolution_backward": _convolution_backward,
    **dict.fromkeys(
        ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "addbmm", "dot", "vdot",
         "_addmm_activation"),
        _product,
    ),
    **dict.fromkeys(("_fft_r2c", "_fft_c2c", "_fft_c2r"), _fourier),
    "_grouped_mm": _grouped_product,
    "topk": _topk,
    **dict.fromkeys(("_int_mm", "_scaled_mm", "_scaled_mm_v2"), _product_of_bytes),
    **dict.fromkeys(("_cdist_forward", "_euclidean_dist"), _distances),
    **dict.fromkeys(
        ("_scaled_dot_product_flash_attention_backward",
         "_scaled_dot_product_flash_attention_for_cpu_backward",
         "_scaled_dot_product_efficient_attention_backward",
         "_scaled_dot_product_cudnn_attention_backward"),
        _attention_backward,
    ),
    **dict.fromkeys(
        ("_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
         "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_cudnn_attention",
         "_scaled_dot_product_fused_attention_overrideable", "scaled_dot_product_attention"),
        _attention,
    ),
    **dict.fromkeys(
        ("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d",
         "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "max_pool2d",
         "adaptive_max_pool3d", "avg_pool1d", "max_pool1d", "adaptive_avg_pool1d", "max_pool3d",
         "adaptive_max_pool1d"),
        _pooling,
    ),
    "embedding": _embedding,
    "mkldnn_rnn_layer": _recurrent,
}  # fmt: skip


# -- The other operations, by the kind that their name tells.

#: Operations that neither compute nor move anything.
_FREE: Final = frozenset(
    ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh",
     "detach", "_local_scalar_dense", "_assert_async", "resize_", "set_", "dropout_eval",
     "_assert_tensor_metadata", "is_same_size", "_unsafe_view", "_efficientzerotensor",
     "_new_zeros_with_same_feature_meta", "sym_size", "sym_numel")
)  # fmt: skip

_KINDS: Final = {
    **dict.fromkeys(
        ("relu", "gelu", "silu", "sigmoid", "tanh", "elu", "leaky_relu", "hardtanh", "hardswish",
         "hardsigmoid", "softplus", "mish", "relu6", "_prelu_kernel", "threshold", "glu", "celu",
         "selu", "log_sigmoid_forward", "softshrink", "hardshrink", "rrelu_with_noise"),
        "activation",
    ),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax"), "softmax"),
    **dict.fromkeys(
        ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
         "cudnn_batch_norm", "_batch_norm_with_update", "_batch_norm_no_update", "batch_norm",
         "native_layer_norm", "native_group_norm", "_fused_rms_norm", "_weight_norm_interface"),
        "norm",
    ),
    **dict.fromkeys(
        ("sum", "mean", "amax", "amin", "max", "min", "prod", "any", "all", "argmax", "argmin",
         "var", "std", "var_mean", "std_mean", "logsumexp", "cumsum", "cumprod", "norm",
         "linalg_vector_norm", "nll_loss_forward", "mse_loss", "count_nonzero"),
        "reduction",
    ),
    **dict.fromkeys(
        ("cat", "stack", "clone", "copy", "_to_copy", "constant_pad_nd", "reflection_pad1d",
         "reflection_pad2d", "replication_pad2d", "upsample_nearest2d", "upsample_bilinear2d",
         "upsample_nearest1d", "upsample_bicubic2d", "upsample_nearest3d", "upsample_linear1d",
         "index", "index_select", "gather", "scatter", "index_put", "repeat", "roll", "flip",
         "fill", "zero", "zeros", "ones", "full", "arange", "zeros_like", "ones_like", "full_like",
         "new_zeros", "new_ones", "new_full", "tril", "triu", "im2col", "col2im", "scalar_tensor",
         "nonzero", "masked_select", "select_backward",
         "slice_backward", "diagonal_backward", "unfold_backward",
         "slice_scatter", "select_scatter", "_unsafe_index", "pixel_shuffle", "pixel_unshuffle"),
        "memory",
    ),
}  # fmt: skip

#: ATen's names that differ from torch's.
_OPS: Final = {
    "_softmax": "softmax", "_log_softmax": "log_softmax", "_safe_softmax": "softmax",
    "native_layer_norm": "layer_norm", "native_group_norm": "group_norm",
    "_fused_rms_norm": "rms_norm", "_to_copy": "to", "index": "getitem", "_prelu_kernel": "prelu",
    "constant_pad_nd": "pad", "log_sigmoid_forward": "logsigmoid", "index_put": "setitem",
    "nll_loss_forward": "nll_loss", "_weight_norm_interface": "weight_norm",
}  # fmt: skip


#: Operations in place that do not read what they write over.
_OVERWRITE: Final = frozenset(
    ("copy", "fill", "zero", "normal", "uniform", "exponential", "bernoulli", "random",
     "log_normal", "cauchy", "geometric")
)  # fmt: skip


class AtenRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lists every ATen operation that runs while it is active, whatever answers it.

    Parameters
    ----------
    weights
        What stands for parameters, beside these themselves.
    script
        Real floating tensors are a script's weights.
    """

    def __init__(
        self, recorder: Recorder, weights: Sequence[Tensor] = (), *, script: bool = False
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder
        self.script = script
        # Views of weights (a linear's transpose) stay weights; kept alive, as identities recur.
        self._weights: dict[int, Tensor] = {id(weight): weight for weight in weights}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = qualified_name(func).rpartition("::")[2]
        bare = name[:-1] if name.endswith("_") and not name.endswith("__") else name
        describes = func.is_view or torch.Tag.inplace_view in func.tags  # squeeze_ among the latter
        if describes or bare in _FREE or name in _FREE:
            if func.is_view and args and isinstance(args[0], Tensor) and self.is_weight(args[0]):
                for tensor in tensors_in(result):
                    self._weights[id(tensor)] = tensor
            return result
        written = _written_by(func, args, kwargs)
        reads = [
            tensor
            for tensor in ([] if _is_factory(name) else tensors_in((args, kwargs)))
            if not any(tensor is one for one in written)
            or (bare not in _OVERWRITE and tensor is not kwargs.get("out"))
            or self.recorder.written_part(tensor) is not None
        ]
        call = _Call(
            self.recorder, bare, args, result, self.is_weight, reads, tensors_in(result) or written
        )
        lister = _LISTERS.get(bare)
        if lister is not None:
            lister(call)
        else:
            self._list(func, call, kwargs)
        return result

    def is_weight(self, tensor: Any) -> bool:
        """A parameter, a view of one, or (in a script) a real floating tensor."""
        return isinstance(tensor, Tensor) and (
            id(tensor) in self._weights
            or isinstance(tensor, torch.nn.Parameter)
            or (
                self.script
                and not isinstance(tensor, FakeTensor)
                and tensor.dtype.is_floating_point
            )
        )

    def _list(self, func: Any, call: _Call, kwargs: Any) -> None:
        name, args = call.name, call.args
        kind = _KINDS.get(name) or _KINDS.get(name.removesuffix("_data").removesuffix("_backward"))
        if kind is None:
            pointwise = torch.Tag.pointwise in func.tags
            kind = "elementwise" if pointwise else "uncovered"
        outputs = [tensor for tensor in call.makes if tensor.numel()]
        if kind == "norm":
            outputs = outputs[:1]  # the saved statistics are a by-product
        if not outputs:
            return
        params: tuple[tuple[str, Any], ...] = ()
        op = _OPS.get(name, name)
        if "batch_norm" in name:
            op = "batch_norm"
            training = args[5] if len(args) > 5 and isinstance(args[5], bool) else False
            params = (("training", training),)
        tensors = tensors_in((args, kwargs))
        call.add(
            kind,
            op,
            [call.spec(tensor) for tensor in tensors if not self.is_weight(tensor)],
            [call.spec(tensor) for tensor in tensors if self.is_weight(tensor)],
            [call.spec(tensor) for tensor in outputs],
            params,
        )


def _is_factory(name: str) -> bool:
    """Makes a tensor like another one, of which it reads nothing."""
    return name.endswith("_like") or name.startswith("new_")


def _written_by(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """What an operation writes into, as its schema has it."""
    arguments = func._schema.arguments
    if not func._schema.is_mutable:
        return []
    given = {**dict(zip((one.name for one in arguments), args, strict=False)), **kwargs}
    return tensors_in([given[one.name] for one in arguments if one.is_write and one.name in given])
