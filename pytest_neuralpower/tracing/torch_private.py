"""Every name without a promise of torch that is used, so that a change of torch shows here.

Names that only make tracing faster, or only notice a rarity, have a stand-in; the others are
needed.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter, methodcaller
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

__all__ = [
    "AUTOCAST_ENABLED",
    "BUFFERS",
    "CALL",
    "CHILDREN",
    "COMPILER",
    "FLEX_KERNEL",
    "FLEX_MASK",
    "FLEX_MODULE",
    "FLEX_ORDER",
    "FLEX_UNCOMPILED",
    "HOOK_OPTIONS",
    "NATIVE_CLASS",
    "NATIVE_MODULE",
    "OPERATOR_COMPILE",
    "OPERATOR_MODULE",
    "ORIGINAL",
    "PARAMETERS",
    "POST_HOOKS",
    "PRE_HOOKS",
    "DataDependentOutputException",
    "DynamicOutputShapeException",
    "FakeTensor",
    "FakeTensorMode",
    "HigherOrderOperator",
    "TorchDispatchMode",
    "any_autocast",
    "any_global_hook",
    "autocast_on",
    "base_of",
    "children_of",
    "functorch_level",
    "hold_stream",
    "is_dual",
    "is_wrapped",
    "memory_of",
    "nonzeros",
    "parameters_of",
    "qualified_name",
    "tree_flatten",
    "tree_leaves",
    "tree_map",
    "tree_unflatten",
    "unwrapped",
    "without_torch_function",
]

#: Where functions live that ``torch.nn.functional`` and ``nn.LSTM`` (through ``torch._VF``) call.
NATIVE_MODULE: Final = torch._C._nn
NATIVE_CLASS: Final = torch._C._VariableFunctions

#: A context in which functions run without ``__torch_function__``.
without_torch_function: Callable[[], Any] = torch._C.DisableTorchFunction

#: Attributes of a module: its own parameters, buffers and children, and the hooks around forward.
PARAMETERS, BUFFERS, CHILDREN = "_parameters", "_buffers", "_modules"
PRE_HOOKS, POST_HOOKS = "_forward_pre_hooks", "_forward_hooks"
#: How they are called, by the hook's number.
HOOK_OPTIONS: Final = tuple(
    name
    for name in vars(nn.Module())
    if name.startswith("_forward_") and name not in (PRE_HOOKS, POST_HOOKS)
)

#: What a module or another object holds, as its ``__dict__`` has it.
Attributes: TypeAlias = dict[str, Any]

parameters_of: Callable[[nn.Module], Attributes] = attrgetter(PARAMETERS)
children_of: Callable[[nn.Module], dict[str, nn.Module | None]] = attrgetter(CHILDREN)

#: The tensor that a tensor is a view of, or ``None``.
base_of: Callable[[Tensor], Tensor | None] = attrgetter("_base")

#: How many values a sparse tensor holds; of one in blocks, how many blocks.
nonzeros: Callable[[Tensor], int] = methodcaller("_nnz")

_values_of: Callable[[Tensor], Tensor] = methodcaller("_values")

#: Of a tensor that ``vmap`` or ``torch.func`` has wrapped: whether it is one, and what is within.
is_wrapped: Callable[[Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor
unwrapped: Callable[[Tensor], Tensor] = torch._C._functorch.get_unwrapped

#: Whether an autocast is on: torch settles it as one is made.
AUTOCAST_ENABLED: Final = "_enabled"
autocast_on: Callable[[Any], bool] = attrgetter(AUTOCAST_ENABLED)

#: The module that runs compiled code, loaded once something was compiled.
COMPILER: Final = "torch._dynamo"

#: FlexAttention's functions that batch by ``vmap``: of a mask, and of the order of its blocks.
FLEX_MASK: Final = "create_mask"
FLEX_ORDER: Final = "_ordered_to_dense"

#: FlexAttention's module, what it calls its kernel, and its switch of calling it as it is.
FLEX_MODULE: Final = "torch.nn.attention.flex_attention"
FLEX_KERNEL: Final = "flex_attention_hop"
FLEX_UNCOMPILED: Final = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"

#: Where operations that take functions, as ``torch.cond``, are compiled before they are called.
OPERATOR_MODULE: Final = "torch._higher_order_ops.utils"
OPERATOR_COMPILE: Final = "_hop_compile_and_call"

#: What ``torch.compile`` calls the module that it wraps.
ORIGINAL: Final = "_orig_mod"

#: The method through which every module is called. Patching the one that ``__call__`` calls spares
#: the interpreter the update of every subclass's slots (0.1 ms for 500 classes).
CALL: Final = "_call_impl" if hasattr(nn.Module, "_call_impl") else "__call__"


def qualified_name(func: Any) -> str:
    """``ns::op`` of an operation from ``torch.ops``, one overload or all; empty for others."""
    return str(getattr(getattr(func, "overloadpacket", func), "_qualified_op_name", ""))


def memory_of(tensor: Tensor) -> torch.UntypedStorage:
    """What a tensor's elements lie in, also without data: of a tensor and its views the same
    object.

    Of a layout that does not say, what nothing else lies in.
    """
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        pass
    if is_wrapped(tensor):  # by vmap or torch.func
        return memory_of(unwrapped(tensor))
    if tensor.layout is torch.sparse_coo:
        return memory_of(_values_of(tensor))
    compressed = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
    if tensor.layout in compressed:
        return memory_of(tensor.values())
    return torch.UntypedStorage(0)  # type: ignore[no-untyped-call]


def hold_stream(cycles: int) -> None:
    """Keep the current CUDA stream busy for a number of its clock's cycles."""
    torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]


def _no_level() -> None: ...


def _assume_so() -> bool:
    return True


#: The innermost ``vmap`` or ``torch.func.grad``; without it those are not noticed.
functorch_level: Callable[[], Any] = getattr(
    getattr(torch._C, "_functorch", None), "peek_interpreter_stack", _no_level
)


def is_dual() -> bool:
    """Whether tensors may carry tangents: within ``torch.autograd.forward_ad.dual_level``."""
    return forward_ad._current_level >= 0


#: Only a shortcut: without it every cast asks for its device's autocast.
any_autocast: Callable[[], bool] = getattr(torch._C, "_is_any_autocast_enabled", _assume_so)

#: Only a shortcut: without it no forward is bypassed, as global hooks would not run then.
any_global_hook: Callable[[], bool] = getattr(nn.modules.module, "_has_any_global_hook", _assume_so)
