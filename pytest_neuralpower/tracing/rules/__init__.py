"""Shape rules: one table from torch's functions to what the tracer does with them.

Each module exports its ``RULES``, from the name of a torch function to the rule of every function,
method and functional of that name; a function itself as key has a rule of its own. To add an
operation, add its row there.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any, Final

import torch

from pytest_neuralpower.tracing.control_flow import OPERATIONS
from pytest_neuralpower.tracing.recorder import REMEMBERED
from pytest_neuralpower.tracing.rules import (
    attention,
    conv,
    elementwise,
    indexing,
    matmul,
    memory,
    norm,
    pooling,
    reduction,
    rnn,
    serving_kernels,
)
from pytest_neuralpower.tracing.rules.table import FUNCTIONS, PROPERTIES, Entry, Rule
from pytest_neuralpower.tracing.torch_private import (
    NATIVE_CLASS,
    NATIVE_MODULE,
    HigherOrderOperator,
    qualified_name,
)

__all__ = ["Entry", "entry_of", "merged"]

_UNKNOWN: Final = Entry("unknown", "")


def merged(*tables: Mapping[Any, str | Rule]) -> dict[Any, str | Rule]:
    """One table of all; ValueError for a function that two of them name."""
    whole: dict[Any, str | Rule] = {}
    for table in tables:
        if doubled := whole.keys() & table.keys():
            raise ValueError(f"named in two tables of rules: {', '.join(map(str, doubled))}")
        whole.update(table)
    return whole


_TREATMENTS: Final = merged(
    FUNCTIONS,
    attention.RULES,
    conv.RULES,
    elementwise.RULES,
    indexing.RULES,
    matmul.RULES,
    memory.RULES,
    norm.RULES,
    pooling.RULES,
    reduction.RULES,
    rnn.RULES,
    serving_kernels.RULES,
)

#: Where torch's functions are.
_PLACES: Final = (torch, torch.Tensor, torch.nn.functional, NATIVE_MODULE, NATIVE_CLASS)

#: Where its bindings of ATen's operations are.
_NATIVE: Final = (NATIVE_CLASS, NATIVE_MODULE, torch.Tensor)

#: Rules that take ``inplace``: of ``relu_`` as of ``relu``.
_IN_PLACE: Final[frozenset[Any]] = frozenset(
    (*elementwise.IN_PLACE, indexing.scatter, memory.rearrange)
)

#: What a layer is called where the function's name is another spelling.
_SPELLED: Final = {
    "__radd__": "add", "__rsub__": "sub", "rsub": "sub", "__rmul__": "mul", "__truediv__": "div",
    "__rtruediv__": "div", "true_divide": "div", "divide": "div", "__rdiv__": "div",
    "__rpow__": "pow", "__mod__": "remainder", "__rmod__": "remainder",
    "__floordiv__": "floor_divide", "__rfloordiv__": "floor_divide", "__and__": "bitwise_and",
    "__rand__": "bitwise_and", "__or__": "bitwise_or", "__ror__": "bitwise_or",
    "__xor__": "bitwise_xor", "__rxor__": "bitwise_xor", "__lshift__": "bitwise_left_shift",
    "__rshift__": "bitwise_right_shift", "__invert__": "bitwise_not", "negative": "neg",
    "absolute": "abs", "multiply": "mul", "subtract": "sub", "__iadd__": "add", "__isub__": "sub",
    "__imul__": "mul", "__itruediv__": "div", "__idiv__": "div", "__ipow__": "pow",
    "__imod__": "remainder", "__ifloordiv__": "floor_divide", "__iand__": "bitwise_and",
    "__ior__": "bitwise_or", "__ixor__": "bitwise_xor", "__ilshift__": "bitwise_left_shift",
    "__irshift__": "bitwise_right_shift", "not_equal": "ne", "less": "lt", "less_equal": "le",
    "greater": "gt", "greater_equal": "ge", "log_sigmoid": "logsigmoid", "clip": "clamp",
    "linalg_vector_norm": "norm", "concat": "cat", "concatenate": "cat", "hstack": "cat",
    "vstack": "cat", "im2col": "unfold", "constant_pad_nd": "pad", "dsmm": "mm",
    "requires_grad_": "requires_grad",
    **dict.fromkeys(memory.CASTS, "to"),
    **dict.fromkeys(("upsample", "upsample_nearest", "upsample_bilinear"), "interpolate"),
    **dict.fromkeys(elementwise.DROPOUTS, "dropout"),
    **{f"{name}_with_indices": name for name in pooling.WITH_INDICES},
}  # fmt: skip


@lru_cache(REMEMBERED)
def entry_of(function: Any) -> Entry:
    """What to do with one function, looked up by its name when it is first met."""
    name = getattr(function, "__name__", "")
    if name in PROPERTIES:
        descriptor = getattr(function, "__self__", None)
        name, treatments = getattr(descriptor, "__name__", ""), PROPERTIES[name]
        known = name in treatments and getattr(torch.Tensor, name, None) is descriptor
        return Entry(treatments[name], name) if known else _UNKNOWN
    if isinstance(function, HigherOrderOperator):
        known = name in OPERATIONS
        return Entry("control", name, OPERATIONS[name]) if known else _UNKNOWN
    qualified = qualified_name(function)
    if qualified.startswith("aten::"):
        # An operation of a graph: torch's own function of that name takes the same arguments.
        # Others, and those that only ATen has, are listed as the dispatcher sees them.
        name = qualified.removeprefix("aten::")
        function = next(
            (getattr(place, name) for place in _NATIVE if hasattr(place, name)), function
        )
    elif qualified in _TREATMENTS:
        function, name = qualified, qualified.rpartition("::")[2]
    treatment = _TREATMENTS.get(function)
    if treatment is None:
        # Others may have a function of that name, too.
        if all(getattr(place, name, None) is not function for place in _PLACES):
            return _UNKNOWN
        treatment = _TREATMENTS.get(name)
        if treatment is None and name.endswith("_"):
            name = name[:-1]
            plain = _TREATMENTS.get(name)
            if callable(plain) and plain in _IN_PLACE:
                treatment = partial(plain, inplace=True)
    if isinstance(treatment, str):
        return Entry(treatment, _SPELLED.get(name, name))
    if treatment is None:
        return _UNKNOWN
    return Entry("rule", _SPELLED.get(name) or name.strip("_"), treatment)
