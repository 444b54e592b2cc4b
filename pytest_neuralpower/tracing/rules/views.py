"""Views: they move no data, so they are free and not listed.

Torch's own view kernels answer for tensors without data in a microsecond or two and get every
stride right, so there is nothing to write again here.
"""

from __future__ import annotations

from typing import Final

import torch

from pytest_neuralpower.tracing.rules.table import TABLE, Entry, enter, method

__all__: list[str] = []

_VIEWS: Final = (
    "view", "permute", "transpose", "transpose_", "t", "t_", "adjoint", "swapaxes", "swapdims",
    "swapaxes_", "swapdims_", "movedim", "moveaxis", "squeeze", "squeeze_", "unsqueeze",
    "unsqueeze_", "expand", "expand_as", "narrow", "select", "chunk", "unsafe_chunk", "split",
    "split_with_sizes", "unsafe_split", "tensor_split", "hsplit", "vsplit", "dsplit", "unbind",
    "diagonal", "detach", "detach_", "view_as", "view_as_real", "view_as_complex", "real", "imag",
    "as_strided", "as_strided_", "broadcast_to", "broadcast_tensors", "unflatten", "atleast_1d",
    "atleast_2d", "atleast_3d", "alias", "meshgrid", "set_", "slice_scatter_view", "__iter__",
    "resolve_conj", "resolve_neg", "conj", "unsafe_split_with_sizes",
)  # fmt: skip

for _name in _VIEWS:
    enter(Entry("view", _name.strip("_")), _name)

# Tensor.unfold slides a window as a view; torch.nn.functional.unfold copies, and has a rule.
TABLE[torch.Tensor.unfold] = Entry("view", "unfold")

for _name in ("T", "mT", "H", "mH", "real", "imag", "data"):
    method(_name, Entry("view", _name))
