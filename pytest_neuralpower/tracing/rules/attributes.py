"""What is read from a tensor: its description is free, its values need a real forward."""

from __future__ import annotations

from typing import Final

import torch

from pytest_neuralpower.tracing.rules.table import TABLE, Entry, enter, method

__all__: list[str] = []

#: Answered as they are.
_PROPERTIES: Final = (
    "shape", "dtype", "ndim", "layout", "requires_grad", "grad", "grad_fn", "is_leaf", "names",
    "is_sparse", "is_quantized", "is_nested", "is_mkldnn", "itemsize", "nbytes", "_base",
    "_version", "_backward_hooks", "output_nr", "is_sparse_csr", "retains_grad", "is_complex",
)  # fmt: skip
_METHODS: Final = (
    "size", "dim", "numel", "nelement", "stride", "is_contiguous", "is_floating_point",
    "is_complex", "element_size", "storage_offset", "ndimension", "__len__", "is_same_size",
    "has_names", "is_set_to", "result_type", "can_cast", "is_tensor",
    "is_inference", "is_conj", "is_neg", "promote_types", "is_pinned", "is_shared",
    "_is_view", "is_signed", "register_hook", "retain_grad", "__hash__", "__repr__", "dim_order",
    "untyped_storage", "storage", "data_ptr", "is_nonzero_", "__dir__", "broadcast_shapes",
)  # fmt: skip

for _name in _PROPERTIES:
    method(_name, Entry("plain", _name))
for _name in _METHODS:
    enter(Entry("plain", _name), _name)
#: Assigned, and taken back after the trace.
for _name in ("requires_grad", "grad", "data"):
    TABLE[getattr(torch.Tensor, _name).__set__] = Entry("assign", _name)
enter(Entry("assign", "requires_grad"), "requires_grad_")

#: Where a tensor lives: answered as if it were on the device of the example inputs.
for _name in ("device", "is_cuda", "is_cpu", "is_meta", "is_xpu", "is_mps"):
    method(_name, Entry("device", _name))
method("get_device", Entry("device", "get_device"))

#: These need values: they stop the function route unless the tensor is real.
_READS: Final = (
    "item", "tolist", "numpy", "__array__", "__bool__", "__float__", "__int__", "__index__",
    "__complex__", "__contains__", "nonzero", "nonzero_static", "argwhere", "masked_select",
    "unique", "_unique2", "unique_consecutive", "unique_dim", "equal", "allclose", "is_nonzero",
    "bincount", "__format__", "__dlpack__", "_local_scalar_dense", "cuda_",
    "combinations", "histogram", "masked_scatter_size",
)  # fmt: skip

for _name in _READS:
    enter(Entry("read", _name), _name)

#: Autograd inside forward: only the dispatcher sees what it runs.
for _function in (torch.Tensor.backward, torch.autograd.grad, torch.autograd.backward):
    TABLE[_function] = Entry("autograd", "backward")
