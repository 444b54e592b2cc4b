"""Every name without a promise of torch that tracing uses, so that a change of torch shows here.

Names that only make tracing faster, or only notice a rarity, have a stand-in; the others are
needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "NATIVE_CLASS",
    "NATIVE_MODULE",
    "DataDependentOutputException",
    "DynamicOutputShapeException",
    "FakeTensor",
    "FakeTensorMode",
    "TorchDispatchMode",
    "any_autocast",
    "any_global_hook",
    "functorch_level",
    "without_torch_function",
]

#: Where functions live that ``torch.nn.functional`` and ``nn.LSTM`` (through ``torch._VF``) call.
NATIVE_MODULE: Final = torch._C._nn
NATIVE_CLASS: Final = torch._C._VariableFunctions

#: A context in which functions run without ``__torch_function__``.
without_torch_function: Callable[[], Any] = torch._C.DisableTorchFunction


def _no_level() -> None: ...


def _assume_so() -> bool:
    return True


#: The innermost ``vmap`` or ``torch.func.grad``; without it those are not noticed.
functorch_level: Callable[[], Any] = getattr(
    getattr(torch._C, "_functorch", None), "peek_interpreter_stack", _no_level
)

#: Only a shortcut: without it every cast asks for its device's autocast.
any_autocast: Callable[[], bool] = getattr(torch._C, "_is_any_autocast_enabled", _assume_so)

#: Only a shortcut: without it no forward is bypassed, as global hooks would not run then.
any_global_hook: Callable[[], bool] = getattr(nn.modules.module, "_has_any_global_hook", _assume_so)
