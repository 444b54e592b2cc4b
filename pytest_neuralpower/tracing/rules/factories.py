"""Tensors made from nothing: they stay real while small, so that masks and indices have values."""

from __future__ import annotations

from typing import Final

from pytest_neuralpower.tracing.rules.table import Entry, enter

__all__ = ["FACTORIES", "FREE"]

FACTORIES: Final = (
    "zeros", "ones", "full", "empty", "arange", "range", "linspace", "logspace", "eye", "tensor",
    "as_tensor", "scalar_tensor", "rand", "randn", "randint", "randperm", "normal", "empty_strided",
    "from_numpy", "tril_indices", "triu_indices", "hann_window", "hamming_window",
    "blackman_window", "kaiser_window", "bartlett_window", "zeros_like", "ones_like", "full_like",
    "empty_like", "rand_like", "randn_like", "randint_like", "new_zeros", "new_ones", "new_full",
    "new_empty", "new_empty_strided", "new_tensor", "asarray", "empty_permuted", "fftfreq",
    "bernoulli", "multinomial", "poisson",
)  # fmt: skip

#: Allocate without writing, or wrap data that is there already.
FREE: Final = frozenset(
    ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided",
     "as_tensor", "from_numpy", "asarray", "scalar_tensor", "tensor", "new_tensor")
)  # fmt: skip

for _name in FACTORIES:
    if _name not in ("bernoulli", "multinomial", "poisson"):
        enter(Entry("factory", _name), _name)
