"""The dispatcher's view: ATen operations listed as they pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from pytest_neuralpower.tracing.aten_layers import LISTERS, AtenCall
from pytest_neuralpower.tracing.fallbacks import tensors_in
from pytest_neuralpower.tracing.torch_private import FakeTensor, TorchDispatchMode

if TYPE_CHECKING:
    from pytest_neuralpower.tracing.recorder import Recorder

__all__ = ["AtenRecorder"]

#: Operations that neither compute nor move anything.
_FREE: Final = frozenset(
    ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh",
     "detach", "_local_scalar_dense", "_assert_async", "resize_", "set_", "dropout_eval",
     "_assert_tensor_metadata", "is_same_size", "_unsafe_view", "sym_size", "sym_numel")
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
         "slice_scatter", "select_scatter", "_unsafe_index", "pixel_shuffle", "pixel_unshuffle"),
        "memory",
    ),
    **dict.fromkeys(("embedding",), "embedding"),
}  # fmt: skip

#: ATen's names that differ from torch's.
_OPS: Final = {
    "_softmax": "softmax", "_log_softmax": "log_softmax", "_safe_softmax": "softmax",
    "native_layer_norm": "layer_norm", "native_group_norm": "group_norm",
    "_fused_rms_norm": "rms_norm", "_to_copy": "to", "index": "getitem", "_prelu_kernel": "prelu",
    "constant_pad_nd": "pad", "log_sigmoid_forward": "logsigmoid", "index_put": "setitem",
    "nll_loss_forward": "nll_loss", "_weight_norm_interface": "weight_norm",
}  # fmt: skip


class AtenRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lists every ATen operation; sits above a ``FakeTensorMode``, which answers them."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder
        # Views of weights (a linear's transpose) stay weights; kept alive, as identities recur.
        self._weights: dict[int, Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = str(getattr(func, "_opname", "") or func.overloadpacket.__name__)
        bare = name[:-1] if name.endswith("_") and not name.endswith("__") else name
        if func.is_view or bare in _FREE or name in _FREE:
            if func.is_view and args and isinstance(args[0], Tensor) and self.is_weight(args[0]):
                for tensor in tensors_in(result):
                    self._weights[id(tensor)] = tensor
            return result
        lister = LISTERS.get(bare)
        if lister is not None:
            lister(self.recorder, AtenCall(bare, args, result, self.is_weight))
        else:
            self._list(func, bare, args, kwargs, result)
        return result

    def is_weight(self, tensor: Any) -> bool:
        """A parameter, a view of one, or (in a script) a real floating tensor."""
        return isinstance(tensor, Tensor) and (
            id(tensor) in self._weights
            or isinstance(tensor, torch.nn.Parameter)
            or (not isinstance(tensor, FakeTensor) and tensor.dtype.is_floating_point)
        )

    def _list(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> None:
        kind = _KINDS.get(name)
        if kind is None:
            pointwise = torch.Tag.pointwise in func.tags
            kind = "elementwise" if pointwise else "uncovered"
        outputs = [tensor for tensor in tensors_in(result) if tensor.numel()]
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
        spec = self.recorder.spec
        self.recorder.add(
            kind,
            op,
            [spec(tensor) for tensor in tensors if not self.is_weight(tensor)],
            [spec(tensor) for tensor in tensors if self.is_weight(tensor)],
            [spec(tensor) for tensor in outputs],
            params,
        )
