"""Tensors made from nothing: they stay real while small, so that masks and indices have values."""

from __future__ import annotations

import math
from typing import Any, Final

import torch

from pytest_neuralpower.tracing.rules.table import Entry, enter

__all__ = ["FREE", "REAL_ELEMENTS", "REAL_FLOATS", "WRAPPERS", "is_large"]

#: Integer and boolean tensors up to this many elements keep their values: masks, positions.
REAL_ELEMENTS: Final = 1_000_000
#: Floating ones keep theirs up to this many. Code rarely reads them, and computing with more
#: would take longer than all the rest of a trace.
REAL_FLOATS: Final = 65_536

#: By size, or like another tensor.
_SIZED: Final = (
    "zeros", "ones", "full", "empty", "rand", "randn", "randint", "empty_strided", "zeros_like",
    "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like", "new_zeros",
    "new_ones", "new_full", "new_empty", "new_empty_strided", "empty_permuted",
)  # fmt: skip
_RANGES: Final = (
    "arange", "range", "linspace", "logspace", "eye", "randperm", "tril_indices", "triu_indices",
    "hann_window", "hamming_window", "blackman_window", "kaiser_window", "bartlett_window",
)  # fmt: skip
#: Around data that is there already.
WRAPPERS: Final = ("tensor", "as_tensor", "asarray", "from_numpy", "scalar_tensor", "new_tensor")

#: Allocate without writing, or wrap data.
FREE: Final = frozenset(
    (*WRAPPERS, "empty", "empty_like", "empty_strided", "empty_permuted", "new_empty",
     "new_empty_strided")
)  # fmt: skip

for _name in (*_SIZED, *_RANGES, *WRAPPERS):
    enter(Entry("factory", _name), _name)


def is_large(op: str, args: Any, kwargs: Any) -> bool:
    """Whether a factory's result is too large to be worth its values."""
    if op not in _SIZED:
        return False
    like = args[0] if args and isinstance(args[0], torch.Tensor) else None
    if op.endswith("_like"):
        count = like.numel() if like is not None else 0
    else:
        given = args if like is None else args[1:]
        size = kwargs.get("size")
        for one in given:
            if size is None and isinstance(one, (tuple, list)):
                size = one
        sizes = given if size is None else size
        count = math.prod(one for one in sizes if isinstance(one, int))
    dtype = kwargs.get("dtype") or (like.dtype if like is not None else torch.get_default_dtype())
    if op.startswith("randint") or (op == "full" and "dtype" not in kwargs):
        dtype = torch.int64
    # Python's own types stand for dtypes, too.
    floating = dtype is float or (isinstance(dtype, torch.dtype) and dtype.is_floating_point)
    return count > (REAL_FLOATS if floating else REAL_ELEMENTS)
